"""Leakage against retrieval: every defence, every strength, two attackers (chapter 4).

price_defences(families, ...)   -> points, one per defence and attacker
price_figure(points)            the chapter's main figure: a curve per family, one panel per attacker
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..metrics import Estimate, bootstrap, proportion, token_f1
from .adaptive import DefendedEmbedder, adapt
from .defences import Defence
from .pii import facts_recovered, names_recovered
from .retrieval import Relevant, score_retrieval

if TYPE_CHECKING:
    from ..embedder import Embedder

Attacker = Literal["naive", "adaptive"]
ATTACKERS: tuple[Attacker, ...] = ("naive", "adaptive")


@dataclass(frozen=True)
class Point:
    """What one defence leaks to one attacker, and what it costs in search."""

    family: str  # curve it belongs to
    label: str  # the defence and its strength
    attacker: Attacker
    bits: float  # per stored vector
    exact: Estimate  # texts recovered word for word, per cent
    f1: Estimate  # token F1, per cent
    names: Estimate  # full names recovered, per cent
    facts: Estimate  # texts all of whose facts are recovered, per cent
    ndcg: Estimate  # nDCG@10 of the defended store, 0 to 1
    recall: Estimate  # recall@10 of the defended store, 0 to 1


@dataclass(frozen=True)
class Task:
    """The retrieval task, embedded: queries [q, d], documents [n, d], and for each query what answers it."""

    queries: np.ndarray
    documents: np.ndarray
    relevant: Sequence[Relevant]


def price_defences(
    families: Mapping[str, Sequence[Defence]],
    *,
    texts: Sequence[str],
    names: Sequence[str],
    facts: Sequence[Sequence[str]],
    vectors: np.ndarray,
    known: np.ndarray,
    task: Task,
    embedder: Embedder,
    recover: Callable[[np.ndarray, Any], Sequence[str]],
    public: np.ndarray | None = None,
    attackers: Sequence[Attacker] = ATTACKERS,
) -> list[Point]:
    """Attack and search every defence of `families` (name of a curve -> defences of rising strength).

    texts, names, facts (see `facts_recovered`), vectors [n, d]: the secret records.  known [m, d], public [m', d]: what
    the adaptive attacker prepares with, see `adapt`.  recover: unit vectors [n, d] and the embedder to rank guesses by
    -> a guess for each, `lambda v, e: invert(v, e, ...).texts`; the embedder is a `DefendedEmbedder` where the adaptive
    attacker can repeat the defence.  Each defence is fitted on the task's documents, as a store would fit it on its own
    contents.
    """
    truth = embedder.token_ids(embedder.normalise(texts))
    points = []
    for family, defences in families.items():
        for defence in defences:
            defence.fit(task.documents)
            found = score_retrieval(task.queries, task.documents, task.relevant, defence)
            stored = defence.apply(vectors)
            for attacker in attackers:
                ranked_by: Any = embedder
                if attacker == "naive":
                    target = defence.read(stored)
                else:
                    way_back = adapt(defence, known, public)
                    target = way_back.apply(stored)
                    if defence.repeatable:
                        ranked_by = DefendedEmbedder(embedder, defence, way_back)
                guesses = list(recover(target, ranked_by))
                ids = embedder.token_ids(guesses)
                points.append(
                    Point(
                        family,
                        defence.label,
                        attacker,
                        defence.bits,
                        exact=proportion([a == b for a, b in zip(truth, ids, strict=True)]),
                        f1=bootstrap([100 * token_f1(a, b) for a, b in zip(truth, ids, strict=True)]),
                        names=names_recovered(names, guesses).full,
                        facts=facts_recovered(facts, guesses),
                        ndcg=found.ndcg,
                        recall=found.recall,
                    )
                )
    return points


def price_figure(points: Sequence[Point], *, measure: Literal["f1", "names", "facts", "exact"] = "f1") -> Any:
    """One curve per family: leakage (per cent) against nDCG@10, one panel per attacker.

    Bars are 95 % intervals of the leakage; the grey band is the interval of the undefended store's search.
    Down and right is better: little leaks, search still works.
    """
    from ..figures import INK, MARKERS, PALETTE, figure

    plain = next((p for p in points if p.family == "none"), points[0])
    families = [f for f in dict.fromkeys(p.family for p in points) if f != "none"]
    panels = [a for a in ATTACKERS if any(p.attacker == a for p in points)]
    made, axes = figure(5.2 * len(panels), 5.4, columns=len(panels), sharey=True, squeeze=False)
    for axis, attacker in zip(axes[0], panels, strict=True):
        axis.axvspan(plain.ndcg.low, plain.ndcg.high, color="0.93", zorder=0)
        axis.axvline(plain.ndcg.value, color="0.5", linestyle="--", linewidth=1)
        for number, family in enumerate(("none", *families)):
            curve = [p for p in points if p.family == family and p.attacker == attacker]
            if not curve:
                continue
            leaked = [getattr(p, measure) for p in curve]
            axis.errorbar(
                [p.ndcg.value for p in curve],
                [e.value for e in leaked],
                yerr=np.array([[e.value - e.low for e in leaked], [e.high - e.value for e in leaked]]),
                color=INK if family == "none" else PALETTE[(number - 1) % len(PALETTE)],
                marker="*" if family == "none" else MARKERS[(number - 1) % len(MARKERS)],
                markersize=14 if family == "none" else 7,
                capsize=2,
                label="no defence" if family == "none" else family,
            )
        axis.set(xlabel="nDCG@10", title=f"{attacker} attacker", xlim=(0, None), ylim=(-2, 102))
    labels = {
        "f1": "token F1, %",
        "names": "full names recovered, %",
        "facts": "facts recovered, %",
        "exact": "recovered exactly, %",
    }
    axes[0][0].set_ylabel(labels[measure])
    handles, names = axes[0][0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=2 * len(panels))  # as wide as the figure: two a panel
    return made
