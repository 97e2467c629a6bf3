"""What a defence costs: how well a defended store still answers (chapter 4).

retrieval_task(passages)   queries and documents from held-out text
retrieval(...)             recall@10 and nDCG@10, with n and interval
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import TextError, VectorError
from ..metrics import Estimate, bootstrap
from .defences import Defence, unit


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, documents, and for each query the number of the one document that answers it."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    relevant: tuple[int, ...]
    name: str = field(default="inverse cloze task")


def retrieval_task(passages: Sequence[str], *, queries: int | None = None, seed: int = 0) -> RetrievalTask:
    """Inverse cloze task (Lee et al. 2019): the first half of a held-out passage looks for its second half.

    passages: any texts of four words or more; every second half is a document, `queries` of the first halves
    (all by default) are asked.  Raises TextError for fewer than 20 usable passages.
    """
    halves = [
        (" ".join(w[: len(w) // 2]), " ".join(w[len(w) // 2 :]))
        for w in map(str.split, passages)
        if len(w) >= 4
    ]
    if len(halves) < 20:
        raise TextError(
            f"{len(halves)} passages of four words or more were given: a retrieval task needs 20 or more"
        )
    chosen = np.random.default_rng(seed).permutation(len(halves))[: queries or len(halves)]
    return RetrievalTask(
        tuple(halves[i][0] for i in chosen), tuple(d for _, d in halves), tuple(int(i) for i in chosen)
    )


@dataclass(frozen=True)
class RetrievalScores:
    """How well the right document is found among all: both between 0 and 1, each with n and interval."""

    recall: Estimate  # share of queries whose document is among the first k
    ndcg: Estimate  # 1 / log2(1 + rank) of that document, 0 beyond the first k
    per_query: np.ndarray  # float [n], the nDCG of each query


def score_retrieval(
    queries: np.ndarray,
    documents: np.ndarray,
    relevant: Sequence[int],
    defence: Defence | None = None,
    *,
    k: int = 10,
) -> RetrievalScores:
    """Search the defended store.  queries [q, d], documents [n, d]: the embedder's vectors, undefended.

    relevant: [q], number of each query's document.  defence: fitted; None searches the vectors as they are.
    """
    if len(queries) != len(relevant) or not len(queries):
        raise VectorError(
            f"{len(queries)} queries and {len(relevant)} answers were given: give one answer for each query"
        )
    defence = defence or Defence().fit(documents)
    stored = defence.apply(documents)
    if defence.metric == "cosine":
        stored = unit(stored)
    scores = defence.query(queries) @ stored.T  # [q, n]
    target = np.take_along_axis(scores, np.asarray(relevant)[:, None], axis=1)
    rank = 1 + (scores > target).sum(1)  # ties in the document's favour: they are one in a thousand at most
    gain = np.where(rank <= k, 1 / np.log2(1 + rank), 0.0)
    return RetrievalScores(bootstrap((rank <= k).astype(float)), bootstrap(gain), gain)
