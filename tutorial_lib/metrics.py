"""How good is a guess: BLEU, token F1, exact match and cosine, each with an n and an interval.

    Estimate                        a number that knows its 95 % interval and its n
    bootstrap, proportion           where the intervals come from
    sentence_bleu, token_f1, exact_match, cosine     one text (or row) at a time
    evaluate, compare               all four over many texts; the paired difference of two systems
    random_passage, nearest_passage, bag_of_words    what costs nothing, to stand beside every score

The definitions are those of *Text Embeddings Reveal (Almost) As Much As Text* (Morris et al. 2023,
arXiv 2310.06816). Chapter 2 explains them on examples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import TutorialError, VectorError

if TYPE_CHECKING:
    from .embedder import Embedder

METRICS = ("bleu", "token_f1", "exact", "cosine")


@dataclass(frozen=True)
class Estimate:
    """A value with its interval: `print(estimate)` gives `31.9 (30.1–33.6, n = 200)`.

    One text gives no interval: `low` and `high` are then NaN and nothing can be told apart from it.
    `format(estimate, ".3f")` fixes the digits; without a format they follow from the interval's width.
    """

    value: float  # in the unit of what was measured
    low: float  # lower end of the interval, same unit
    high: float  # upper end of the interval, same unit
    n: int  # texts the estimate rests on

    def overlaps(self, other: Estimate) -> bool:
        """True unless the two intervals are disjoint (an unknown interval overlaps everything)."""
        return not (self.high < other.low or other.high < self.low)

    def __format__(self, spec: str) -> str:
        spec = spec or f".{self._decimals()}f"
        value = format(self.value, spec)
        if math.isnan(self.low) or math.isnan(self.high):
            return f"{value} (n = {self.n})"
        between = " to " if self.low < 0 else "–"  # a dash beside a minus sign is read as another
        return f"{value} ({format(self.low, spec)}{between}{format(self.high, spec)}, n = {self.n})"

    def __str__(self) -> str:
        return format(self, "")

    def _decimals(self) -> int:
        """Two significant digits of the interval's width, between one decimal and six."""
        width = self.high - self.low
        if not math.isfinite(width) or width <= 0:
            return 1 if abs(self.value) > 1 else 3
        return min(6, max(1, 1 - math.floor(math.log10(width))))


def bootstrap(
    values: Sequence[float] | np.ndarray,
    *,
    statistic: Callable[..., Any] = np.mean,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap over texts (Efron 1979): resample the texts, see how the statistic moves.

    values: [n], one number per text, or [n, k], k numbers per text that are resampled together.
    statistic: a numpy-style reduction that takes `axis` (np.mean, np.median, ...); it is called with
    arrays [m, n] or [m, n, k] and axis=1 and gives [m]. Deterministic for a seed. For values that are
    all equal the interval collapses to a point, which overstates what is known: for yes/no values
    use `proportion`. Raises TutorialError for no values, values that are not finite, or a level
    outside (0, 1).
    """
    array = _finite(values, "bootstrap")
    _check_level(level)
    if resamples < 1:
        raise TutorialError(f"bootstrap was given resamples={resamples}; it takes 1 or more (2000 is usual).")
    n = len(array)
    value = float(np.asarray(statistic(array[None], axis=1))[0])
    if n == 1:
        return Estimate(value, math.nan, math.nan, 1)
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // array.size)  # resamples drawn at once: at most 16 MB of values
    drawn: list[np.ndarray] = []
    for start in range(0, resamples, rows):
        index = rng.integers(0, n, size=(min(rows, resamples - start), n))  # [m, n]
        drawn.append(np.asarray(statistic(array[index], axis=1)))  # [m, n(, k)] -> [m]
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n)


def proportion(
    successes: Sequence[bool] | np.ndarray,
    *,
    texts: Sequence[Hashable] | None = None,
    level: float = 0.95,
    scale: float = 100.0,
) -> Estimate:
    """The share of successes, times `scale` (100: per cent), with Wilson's score interval (1927).

    successes: [n] of 0/1 or booleans. Unlike the bootstrap, the interval stays honest at 0 and at 100 %:
    none right in 200 texts gives 0.0–1.9 %, not 0–0.

    texts: which text each value is of, where a text has several (names, addresses). Those of one text often come back
    together or not at all, so that n values say less than n texts would: the interval is of as many as they are worth
    if they always do (Kish 1965), which no data need show. n counts the values. Raises TutorialError for no values,
    values other than 0 and 1, or not one text for each.
    """
    array = _finite(successes, "proportion")
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise TutorialError("proportion was given values other than 0 and 1; give one yes/no value per text.")
    _check_level(level)
    n, p = len(array) if texts is None else _worth(texts, len(array)), float(array.mean())
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # min and max only remove rounding: in exact arithmetic the interval holds p and stays within [0, 1]
    low, high = min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))
    return Estimate(scale * p, scale * low, scale * high, len(array))


def _worth(texts: Sequence[Hashable], n: int) -> float:
    """How many independent values n are worth of which those of one text are all alike (Kish 1965)."""
    if len(texts) != n:
        raise TutorialError(f"proportion was given {n} values and {len(texts)} texts; give one for each.")
    return n * n / sum(count * count for count in Counter(texts).values())


def sentence_bleu(reference: str, guess: str) -> float:
    """BLEU of one guess, 0 to 100 (Papineni et al. 2002), by sacrebleu.

    sacrebleu's defaults: 13a tokenisation, n-grams up to 4, exponential smoothing; case matters, so
    give strings as the embedder's tokenizer returns them. One departure: `use_effective_order=True`,
    because a correct text of fewer than four words has no 4-gram and would score 0; on longer
    guesses the two settings agree. Raises TutorialError for an empty reference.
    """
    from sacrebleu import sentence_bleu as score  # here: importing it takes as long as the rest of the module

    if not reference.strip():
        raise TutorialError("sentence_bleu was given an empty reference; give the text that was embedded.")
    return float(min(100.0, score(guess, [reference], use_effective_order=True).score))


def token_f1(reference_ids: Sequence[Hashable], guess_ids: Sequence[Hashable]) -> float:
    """F1 of the two multisets of tokens, 0 to 1: how many of the right tokens, in any order.

    A token that the text holds twice counts twice. Two empty sequences are the same text: 1.
    """
    if not reference_ids and not guess_ids:
        return 1.0
    shared = (Counter(reference_ids) & Counter(guess_ids)).total()
    return 2 * shared / (len(reference_ids) + len(guess_ids))


def exact_match(reference_ids: Sequence[Hashable], guess_ids: Sequence[Hashable]) -> bool:
    """True when the two texts are the same to the embedder: equal token ids in the same order."""
    return list(reference_ids) == list(guess_ids)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a` with the same row of `b`: [n, d], [n, d] -> [n] float32 (or [d], [d] -> []).

    The sums run in float64, so that two nearly equal vectors are not told apart by rounding.
    Raises VectorError for different shapes, values that are not finite, or a vector of zeros.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim not in (1, 2):
        raise VectorError(
            f"cosine was given arrays of shape {list(x.shape)} and {list(y.shape)}; it compares row by row, "
            "so give two arrays of the same shape [n, d]."
        )
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    if not np.isfinite(lengths).all():
        raise VectorError("cosine was given a vector with NaN or infinity; look for an overflow upstream.")
    if (lengths == 0).any():
        raise VectorError("cosine was given a vector of zeros, which has no direction; leave that row out.")
    return np.clip((x * y).sum(axis=-1) / lengths, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Scores:
    """What `evaluate` found. All but the cosine are per cent (0 to 100), as in the paper's tables."""

    bleu: Estimate  # mean sentence BLEU, 0..100
    token_f1: Estimate  # mean F1 of token multisets, per cent
    exact: Estimate  # texts recovered to the token, per cent, Wilson interval
    cosine: Estimate  # mean cosine of the two embeddings, -1..1
    per_text: dict[str, np.ndarray] = field(repr=False)  # metric -> [n], same units
    references: tuple[str, ...] = field(repr=False)  # normalised: what `compare` pairs by

    @property
    def n(self) -> int:
        """Texts scored."""
        return len(self.references)

    def as_dict(self) -> dict[str, float | int]:
        """Flat, for JSON: bleu, bleu_low, bleu_high, ..., n. What is not known (one text's interval) is NaN."""
        flat: dict[str, float | int] = {}
        for name in METRICS:
            estimate: Estimate = getattr(self, name)
            flat |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return flat | {"n": self.n}

    def table_row(self, label: str = "") -> dict[str, str]:
        """One row for a table of systems: the label, then the four estimates as text."""
        return {
            "method": label,
            "BLEU": f"{self.bleu:.1f}",
            "token F1 %": f"{self.token_f1:.1f}",
            "exact %": f"{self.exact:.1f}",
            "cosine": f"{self.cosine:.3f}",
        }


def evaluate(references: Sequence[str], guesses: Sequence[str], embedder: Embedder) -> Scores:
    """Score guesses against the texts that were embedded; chapter 2 reads the four numbers.

    Both sides are first normalised by the embedder's tokenizer: what it throws away before the network
    sees it (case, for an uncased model) no inverter can return. An empty guess scores 0 on everything,
    cosine included, since it has no embedding. Intervals are 95 %: bootstrap over texts, and Wilson for
    exact match. A table for an embedder cannot be asked for a guess's vector: cosines are NaN then.
    Embeds 2n texts, which the embedder's query counter counts: reset it before an attack,
    not before scoring one. Raises TutorialError for no texts, lists of different lengths, or an empty
    reference.
    """
    if len(references) != len(guesses):
        raise TutorialError(
            f"evaluate was given {len(references)} references and {len(guesses)} guesses; "
            "give one guess per reference."
        )
    if not references:
        raise TutorialError("evaluate was given no texts; give at least one reference and its guess.")
    for position, reference in enumerate(references):
        if not reference.strip():
            raise TutorialError(
                f"evaluate was given an empty reference at position {position}; leave it out."
            )
    targets, hypotheses = embedder.normalise(list(references)), embedder.normalise(list(guesses))
    target_ids, guess_ids = embedder.token_ids(list(references)), embedder.token_ids(list(guesses))
    some = [i for i, ids in enumerate(guess_ids) if ids]  # guesses that hold at least one token
    cosines = np.zeros(len(targets), dtype=np.float32)
    closed = getattr(embedder, "closed", False)
    if closed:
        cosines[:] = np.nan
    elif some:
        pairs = [[references[i] for i in some], [guesses[i] for i in some]]
        cosines[some] = cosine(*(embedder.encode(texts, truncate=True) for texts in pairs))
    per_text = {
        "bleu": np.array([sentence_bleu(t, h) for t, h in zip(targets, hypotheses, strict=True)]),
        "token_f1": 100 * np.array([token_f1(t, g) for t, g in zip(target_ids, guess_ids, strict=True)]),
        "exact": 100
        * np.array([float(exact_match(t, g)) for t, g in zip(target_ids, guess_ids, strict=True)]),
        "cosine": cosines,
    }
    return Scores(
        bleu=bootstrap(per_text["bleu"]),
        token_f1=bootstrap(per_text["token_f1"]),
        exact=proportion(per_text["exact"] / 100),
        cosine=Estimate(math.nan, math.nan, math.nan, len(targets)) if closed else bootstrap(per_text["cosine"]),
        per_text=per_text,
        references=tuple(targets),
    )


def compare(scores_a: Scores, scores_b: Scores, metric: str = "bleu", *, level: float = 0.95) -> Estimate:
    """b minus a on the same texts: the interval of the difference, much tighter than the two intervals.

    metric: bleu, token_f1, exact or cosine. Paired bootstrap over texts; for exact match, whose
    bootstrap collapses when no text changes sides, the interval of Agresti & Min (2005) for matched
    proportions. A difference whose interval leaves out 0 is more than luck. Raises TutorialError for an
    unknown metric or scores of different texts.
    """
    if metric not in METRICS:
        raise TutorialError(f"compare was given metric={metric!r}; choose one of {', '.join(METRICS)}.")
    if scores_a.references != scores_b.references:
        raise TutorialError(
            "compare was given scores of different texts; evaluate both systems on the same list."
        )
    difference = scores_b.per_text[metric].astype(float) - scores_a.per_text[metric].astype(float)
    if metric != "exact":
        return bootstrap(difference, level=level)
    _check_level(level)
    n, won, lost = len(difference), int((difference > 0).sum()), int((difference < 0).sum())
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (won - lost) / (n + 2)  # half a text added to each of the four cells
    half = z * math.sqrt(max(0.0, won + lost + 1 - (won - lost) ** 2 / (n + 2))) / (n + 2)
    value = (won - lost) / n
    low, high = min(value, max(-1.0, centre - half)), max(value, min(1.0, centre + half))
    return Estimate(100 * value, 100 * low, 100 * high, n)


def random_passage(n: int, train_texts: Sequence[str], seed: int = 0) -> list[str]:
    """Baseline: answer each of `n` vectors with a training passage drawn at random. -> n texts."""
    if not train_texts:
        raise TutorialError("random_passage was given no training texts; give at least one to draw from.")
    return [train_texts[i] for i in np.random.default_rng(seed).integers(0, len(train_texts), size=n)]


def nearest_passage(
    embeddings: np.ndarray, train_texts: Sequence[str], train_embeddings: np.ndarray
) -> list[str]:
    """Baseline: answer each vector with the training passage whose embedding is nearest by cosine.

    embeddings: [n, d]; train_embeddings: [m, d], row by row those of the m training texts. -> n texts.
    Raises VectorError when the shapes do not fit.
    """
    x, y = np.asarray(embeddings, dtype=np.float32), np.asarray(train_embeddings, dtype=np.float32)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or len(y) != len(train_texts) or not len(y):
        raise VectorError(
            f"nearest_passage was given embeddings {list(x.shape)}, training embeddings {list(y.shape)} and "
            f"{len(train_texts)} training texts; give [n, d], [m, d] and m >= 1 texts."
        )
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    rows = max(1, 20_000_000 // len(y))  # similarities held at once: at most 80 MB
    best = [np.argmax(x[i : i + rows] @ y.T, axis=1) for i in range(0, len(x), rows)]  # [n, d] @ [d, m]
    return [train_texts[i] for part in best for i in part]


def bag_of_words(texts: Sequence[str], embedder: Embedder, seed: int = 0) -> list[str]:
    """Baseline with an oracle: every word of the true text, in random order. -> one text per text.

    No attack knows all the words; what it scores is what word order is worth under each metric.
    """
    rng = np.random.default_rng(seed)
    return [" ".join(rng.permutation(text.split()).tolist()) for text in embedder.normalise(list(texts))]


def _finite(values: Any, caller: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.size == 0:
        raise TutorialError(f"{caller} was given no values; give at least one number per text.")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise TutorialError(
            f"{caller} was given {bad} values that are NaN or infinite; leave those texts out."
        )
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise TutorialError(
            f"The interval's level was given as {level}; give a share between 0 and 1, such as 0.95."
        )
