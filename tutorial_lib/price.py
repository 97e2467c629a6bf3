"""Leakage against retrieval: every defence, every strength, two attackers (chapter 4).

price(families, ...)      -> points, one per defence and attacker
price_figure(points)      the chapter's main figure: a curve per family, one panel per attacker
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .metrics import Estimate, bootstrap, proportion, token_f1
from .pii import names_recovered
from .privacy import Alignment, Defence
from .retrieval import retrieval

if TYPE_CHECKING:
    from .embedder import Embedder

ATTACKERS = ("naive", "adaptive")


@dataclass(frozen=True)
class Point:
    """What one defence leaks to one attacker, and what it costs in search."""

    family: str  # curve it belongs to
    label: str  # the defence and its strength
    attacker: Literal["naive", "adaptive"]
    bits: float  # per stored vector
    exact: Estimate  # texts recovered word for word, per cent
    f1: Estimate  # token F1, per cent
    names: Estimate  # full names recovered, per cent
    ndcg: Estimate  # of the defended store, 0 to 1


@dataclass(frozen=True)
class Task:
    """The retrieval task, embedded: queries [q, d], documents [n, d], answers [q]."""

    queries: np.ndarray
    documents: np.ndarray
    relevant: Sequence[int]


def price(
    families: Mapping[str, Sequence[Defence]],
    *,
    texts: Sequence[str],
    names: Sequence[str],
    vectors: np.ndarray,
    known: np.ndarray,
    task: Task,
    embedder: Embedder,
    recover: Callable[[np.ndarray], Sequence[str]],
    attackers: Sequence[str] = ATTACKERS,
) -> list[Point]:
    """Attack and search every defence of `families` (name of a curve -> defences of rising strength).

    texts, names, vectors [n, d]: the secret records; known [m, d]: embeddings whose stored form the adaptive
    attacker holds too; recover: unit vectors [n, d] -> a guess for each, `lambda v: invert(v, ...).texts`.
    Each defence is fitted on the task's documents, as a store would fit it on its own contents.
    """
    truth = embedder.token_ids(embedder.normalise(texts))
    points = []
    for family, defences in families.items():
        for defence in defences:
            defence.fit(task.documents)
            found = retrieval(task.queries, task.documents, task.relevant, defence)
            stored = defence.apply(vectors)
            for attacker in attackers:
                if attacker == "naive":
                    target = defence.read(stored)
                else:
                    target = Alignment.fit(defence.apply(known), known).apply(stored)
                guesses = list(recover(target))
                ids = embedder.token_ids(guesses)
                points.append(
                    Point(
                        family,
                        defence.label,
                        attacker,
                        defence.bits,  # type: ignore[arg-type]
                        exact=proportion([a == b for a, b in zip(truth, ids, strict=True)]),
                        f1=bootstrap([100 * token_f1(a, b) for a, b in zip(truth, ids, strict=True)]),
                        names=names_recovered(names, guesses).full,
                        ndcg=found.ndcg,
                    )
                )
    return points


def price_figure(points: Sequence[Point], *, measure: Literal["f1", "names", "exact"] = "f1") -> Any:
    """One curve per family: leakage (per cent) against nDCG@10, one panel per attacker.

    Bars are 95 % intervals of the leakage; the interval of the retrieval is the grey band around the dashed
    line of the undefended store.  Down and right is better: little leaks, search still works.
    """
    import matplotlib.pyplot as plt

    plain = next((p for p in points if p.family == "none"), points[0])
    families = [f for f in dict.fromkeys(p.family for p in points) if f != "none"]
    panels = [a for a in ATTACKERS if any(p.attacker == a for p in points)]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.2), sharey=True, squeeze=False)
    for axis, attacker in zip(axes[0], panels, strict=True):
        axis.axvspan(plain.ndcg.low, plain.ndcg.high, color="0.92", zorder=0)
        axis.axvline(plain.ndcg.value, color="0.5", linestyle="--", linewidth=1)
        for number, family in enumerate(families):
            curve = [p for p in points if p.family == family and p.attacker == attacker]
            y = [getattr(p, measure) for p in curve]
            spread = np.array([[e.value - e.low for e in y], [e.high - e.value for e in y]])
            axis.errorbar(
                [p.ndcg.value for p in curve],
                [e.value for e in y],
                yerr=spread,
                marker="osD^vPX*"[number % 8],
                color=_COLOURS[number % len(_COLOURS)],
                capsize=2,
                linewidth=1.4,
                label=family,
            )
        whole = [getattr(p, measure).value for p in points if p.family == "none" and p.attacker == attacker]
        if whole:
            axis.plot(
                [plain.ndcg.value],
                whole,
                marker="*",
                markersize=12,
                color="black",
                linestyle="",
                label="no defence",
            )
        axis.set(
            xlabel="nDCG@10 of the defended store",
            title=f"{attacker} attacker",
            xlim=(0, None),
            ylim=(0, 100),
        )
    label = {"f1": "token F1, %", "names": "full names recovered, %", "exact": "recovered exactly, %"}[
        measure
    ]
    axes[0][0].set_ylabel(label)
    axes[0][0].legend(fontsize=8, loc="best")
    figure.tight_layout()
    return figure


# Okabe and Ito's palette, readable for the colour-blind; markers differ too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000")
