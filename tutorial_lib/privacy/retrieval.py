"""What a defence costs: how well a defended store still answers (chapter 4).

retrieval_task(passages)   queries and documents from held-out text
beir_task(source)          a data set of the BEIR collection, from a folder or from the Hub
score_retrieval(...)       recall@10 and nDCG@10, with n and interval
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorpusError, TextError, VectorError
from ..metrics import Estimate, bootstrap
from .defences import Defence, unit

# What answers a query: the number of its one document, or several documents with how relevant each is.
Relevant = int | Mapping[int, float]
_SCORES_AT_ONCE = 20_000_000  # of queries with documents: 80 MB


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, documents, and for each query the documents that answer it."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    relevant: tuple[Relevant, ...]
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


def beir_task(
    source: str, split: str = "test", *, documents: int | None = None, queries: int | None = None, seed: int = 0
) -> RetrievalTask:
    """A data set of BEIR (Thakur et al. 2021): human questions, documents, and graded judgements of relevance.

    source: a folder as BEIR's own archives unpack to (`corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`), or the
    name of a data set on the Hub laid out as BEIR's are there ("BeIR/scifact": configurations `corpus` and `queries`,
    and the judgements in "BeIR/scifact-qrels").  A document is its title and its text.  queries: that many of the
    judged ones, drawn by `seed` (default: all).  documents: at most that many, those that answer a query first
    (default: all); fewer make the task easier.  Raises CorpusError for what is not there or not laid out so.
    """
    folder = Path(source)
    read = _read_folder if (folder / "corpus.jsonl").exists() else _read_hub
    try:
        corpus, asked, judged = read(source, split)
        judgements: dict[str, dict[str, float]] = {}
        for row in judged:
            if float(row["score"]) > 0:
                judgements.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = float(row["score"])
        wording = {str(row["_id"]): str(row["text"]) for row in asked}
        kept = {
            str(row["_id"]): " ".join(part for part in (row.get("title"), row["text"]) if part) for row in corpus
        }
    except (KeyError, TypeError) as error:
        raise CorpusError(
            f"the retrieval task in {source!r} is not laid out as BEIR's are ({error}): corpus and queries need the "
            "columns _id and text, the judgements query-id, corpus-id and score"
        ) from error
    # A judgement may name a document that the corpus lost, and a document may be empty.
    kept = {name: text for name, text in kept.items() if text.strip()}
    answers = {q: {d: s for d, s in found.items() if d in kept} for q, found in judgements.items() if q in wording}
    names = sorted(q for q, found in answers.items() if found)
    if not names:
        raise CorpusError(f"the {split} judgements of {source!r} name no query and document that are there")
    chosen = [names[i] for i in np.random.default_rng(seed).permutation(len(names))[: queries or len(names)]]
    first = dict.fromkeys(d for q in chosen for d in answers[q])
    order = [*first, *(d for d in kept if d not in first)][: max(len(first), documents or len(kept))]
    place = {name: number for number, name in enumerate(order)}
    return RetrievalTask(
        tuple(wording[q] for q in chosen),
        tuple(kept[d] for d in order),
        tuple({place[d]: score for d, score in answers[q].items()} for q in chosen),
        name=f"{source}, {split} split",
    )


Rows = Any  # an iterable of mappings: a datasets.Dataset


def _read_folder(source: str, split: str) -> tuple[Rows, Rows, Rows]:
    """BEIR's own files, read by `datasets`."""
    folder = Path(source)
    judgements = folder / "qrels" / f"{split}.tsv"
    for path in (folder / "queries.jsonl", judgements):
        if not path.exists():
            raise CorpusError(f"{source!r} holds a BEIR corpus and no {path.relative_to(folder)}: unpack all of it")
    import datasets

    def load(kind: str, path: Path, **options: Any) -> Rows:
        return datasets.load_dataset(kind, data_files=str(path), split="train", **options)

    try:
        # Names stay text: a number read as such would lose its leading zeros.
        names = {"query-id": datasets.Value("string"), "corpus-id": datasets.Value("string")}
        features = datasets.Features(names | {"score": datasets.Value("float64")})
        return (
            load("json", folder / "corpus.jsonl"),
            load("json", folder / "queries.jsonl"),
            load("csv", judgements, delimiter="\t", features=features),
        )
    except Exception as error:  # the readers below raise their own classes for a damaged file
        raise CorpusError(f"the retrieval task in {source!r} cannot be read ({type(error).__name__})") from error


def _read_hub(source: str, split: str) -> tuple[Rows, Rows, Rows]:
    """BEIR's data sets on the Hub, or copies of them in a folder."""
    import datasets

    def load(name: str, config: str | None, wanted: str) -> Rows:
        try:
            found = datasets.load_dataset(name, config)
        except (ValueError, RuntimeError):
            # The older of them still carry a loading script, which datasets no longer runs; the Hub keeps a Parquet
            # copy of each.
            found = datasets.load_dataset(name, config, revision="refs/convert/parquet")
        return found[wanted] if wanted in found else next(iter(found.values()))

    try:
        qrels = datasets.load_dataset(f"{source}-qrels")
        if split not in qrels:
            raise CorpusError(f"{source}-qrels has the splits {', '.join(qrels)} and no {split!r}")
        return load(source, "corpus", "corpus"), load(source, "queries", "queries"), qrels[split]
    except CorpusError:
        raise
    except Exception as error:  # offline, unknown, gated: the Hub client raises many types
        raise CorpusError(
            f"the retrieval task {source!r} is no BEIR folder and could not be loaded from the Hub "
            f"({type(error).__name__}): check the name and the network, or unpack BEIR's archive and give its folder"
        ) from error


@dataclass(frozen=True)
class RetrievalScores:
    """How well the right documents are found among all: both between 0 and 1, each with n and interval."""

    recall: Estimate  # share of a query's documents that are among the first k
    ndcg: Estimate  # sum of relevance / log2(1 + rank) over the first k, relative to the best order
    per_query: np.ndarray  # float [n], the nDCG of each query


def score_retrieval(
    queries: np.ndarray,
    documents: np.ndarray,
    relevant: Sequence[Relevant],
    defence: Defence | None = None,
    *,
    k: int = 10,
) -> RetrievalScores:
    """Search the defended store.  queries [q, d], documents [n, d]: the embedder's vectors, undefended.

    relevant: [q], what answers each query.  defence: fitted; None searches the vectors as they are.
    """
    if len(queries) != len(relevant) or not len(queries):
        raise VectorError(
            f"{len(queries)} queries and {len(relevant)} answers were given: give one answer for each query"
        )
    defence = defence or Defence().fit(documents)
    stored = defence.apply(documents)
    if defence.metric == "cosine":
        stored = unit(stored)
    sent = defence.query(queries)
    recall, gain = np.empty(len(sent)), np.empty(len(sent))
    rows = max(1, _SCORES_AT_ONCE // len(stored))
    for start in range(0, len(sent), rows):
        scores = sent[start : start + rows] @ stored.T  # [rows, n]
        for number, row in enumerate(scores, start):
            recall[number], gain[number] = _score(row, relevant[number], k)
    return RetrievalScores(bootstrap(recall), bootstrap(gain), gain)


def _score(scores: np.ndarray, answers: Relevant, k: int) -> tuple[float, float]:
    """recall@k and nDCG@k of one query; ties go in favour of its documents: they are one in a thousand at most."""
    graded = answers if isinstance(answers, Mapping) else {int(answers): 1.0}
    places = np.fromiter(graded, dtype=np.int64)
    gains = np.array([graded[int(place)] for place in places], dtype=np.float64)
    order = np.lexsort((-gains, -scores[places]))  # best match first, the more relevant first among equals
    mine = scores[places][order]
    above = (scores[None, :] > mine[:, None]).sum(1) - np.array([(mine > own).sum() for own in mine])
    rank = 1 + above + np.arange(len(mine))  # documents of others above, and one's own before
    discount = np.where(rank <= k, 1 / np.log2(1 + rank), 0.0)
    best = (np.sort(gains)[::-1][:k] / np.log2(2 + np.arange(min(k, len(gains))))).sum()
    return float((rank <= k).sum() / len(mine)), float((gains[order] * discount).sum() / best)
