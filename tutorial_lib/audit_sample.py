"""The first look of an audit: one pass over the store for a sample, in the length that the embedder writes, and does
the embedder fit? (chapter 4)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import TutorialError, VectorError
from .metrics import Estimate, bootstrap
from .privacy.defences import unit
from .stores import Store

if TYPE_CHECKING:
    from .embedder import Embedder

FIT_ROWS = 32  # vectors inverted once to see whether the embedder fits
FIT_MARGIN = 0.1  # cosine by which guesses must beat those for random vectors
_MEASURED = ["the sun is warm", "a letter from home"]  # embedded to see how long an embedder's vectors are


@dataclass(frozen=True)
class Scan:
    """What one pass over the store found."""

    rows: int  # rows read
    skipped: int  # rows without a usable vector
    norm: tuple[float, float, float]  # smallest, mean and largest length of a vector
    ids: list[str]  # of the sample
    vectors: np.ndarray  # float32 [n, d], the sample as stored
    texts: list[str | None]  # the sample's texts, None where the store keeps none


def scan(store: Store, sample: int, *, seed: int = 0, batch: int = 4096) -> Scan:
    """One pass in batches: a uniform sample without replacement of at most `sample` usable rows.

    Rows with NaN, infinite, NULL or zero vectors are counted and left out.  Raises VectorError for mixed
    dimensions and when no row is usable.
    """
    if sample < 1:
        raise TutorialError(f"a sample of {sample} rows was asked for: use 1 or more")
    rng = np.random.default_rng(seed)
    vectors = np.empty((max(1, min(sample, store.count)), store.dimension), dtype=np.float32)
    ids: list[str] = []
    texts: list[str | None] = []
    usable = skipped = rows = 0
    low, total, high = np.inf, 0.0, 0.0
    for found in store.batches(batch, bad_rows="skip"):
        norms = np.linalg.norm(found.vectors, axis=1)
        keep = np.flatnonzero(norms > 0)
        rows, skipped = found.end, skipped + found.skipped + len(norms) - len(keep)
        if len(keep):
            low, high, total = (
                min(low, norms[keep].min()),
                max(high, norms.max()),
                total + float(norms[keep].sum()),
            )
        # Row number i (from 0) replaces a random slot of the sample with probability sample / (i + 1).
        slots = (rng.random(len(keep)) * (usable + 1 + np.arange(len(keep)))).astype(np.int64)
        for place, row in enumerate(keep):
            slot = len(ids) if len(ids) < sample else int(slots[place])
            if slot >= sample:
                continue
            text = found.texts[row] if found.texts is not None else None
            if slot == len(vectors):  # rows written since the store was counted
                vectors = np.concatenate([vectors, np.empty_like(vectors)])
            if slot == len(ids):
                ids.append(found.ids[row])
                texts.append(text)
            else:
                ids[slot], texts[slot] = found.ids[row], text
            vectors[slot] = found.vectors[row]
        usable += len(keep)
    if not usable:
        raise VectorError(
            f"{store.url} has no usable vector: all {skipped} rows are zero, NULL or not finite"
        )
    return Scan(rows, skipped, (float(low), total / usable, float(high)), ids, vectors[: len(ids)], texts)


def scaling(embedder: Embedder) -> Callable[[np.ndarray], np.ndarray]:
    """What brings vectors [n, d] to the length an inverter for this embedder was trained with, measured on two texts:
    length 1 where the embedder's own vectors have it (a store may have scaled or rounded them), else as they are."""
    if getattr(embedder, "closed", False):  # a table: nobody to ask how long its vectors are
        return _as_it_is
    lengths = np.linalg.norm(embedder.encode(_MEASURED), axis=1)
    return unit if np.allclose(lengths, 1, rtol=0, atol=1e-3) else _as_it_is


def lost_lengths(scale: Callable[[np.ndarray], np.ndarray], norm: tuple[float, float, float]) -> bool:
    """Did a store scale to length 1 what the embedder writes in lengths of its own? (Qdrant does so for cosine.)

    scale: the embedder's :func:`scaling`.  norm: smallest, mean and largest length in the store, :class:`Scan`.
    """
    return scale is _as_it_is and bool(np.allclose(norm, 1, rtol=0, atol=1e-3))


def _as_it_is(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors, dtype=np.float32)


def scaled_like(embedder: Embedder, vectors: np.ndarray) -> np.ndarray:
    """float32 [n, d]: scaled to length 1 where the embedder's own vectors have it, else as they are."""
    return scaling(embedder)(vectors)


@dataclass(frozen=True)
class Fit:
    """Whether the vectors come from the embedder that the inverter was trained for."""

    verdict: str  # "yes", "no" or "unclear"
    reason: str  # one sentence
    cosine: float  # of re-embedded first guesses with their vectors, mean
    random: float  # the same for random vectors of the same mean and spread


def fits(
    vectors: np.ndarray,
    embedder: Embedder,
    first_guess: Callable[[np.ndarray], np.ndarray],
    scale: Callable[[np.ndarray], np.ndarray] = unit,
    *,
    seed: int = 0,
) -> Fit:
    """Compare first guesses for the store's vectors with first guesses for random vectors.

    vectors: float32 [n, d] from the store.  first_guess: vectors [m, d] -> [m], cosine of each guess, re-embedded,
    with its vector.  scale: the embedder's `scaling`.  The random vectors have the sample's own mean and spread per
    dimension, so only vectors that an inverter can *read* beat them.
    """
    if vectors.shape[1] != embedder.dimension:
        reason = (
            f"the vectors have {vectors.shape[1]} dimensions and {embedder.name} writes {embedder.dimension}"
        )
        return Fit("no", reason, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    vectors = scale(vectors)
    chosen = vectors[rng.permutation(len(vectors))[:FIT_ROWS]]
    noise = rng.standard_normal((FIT_ROWS, vectors.shape[1])) * vectors.std(axis=0) + vectors.mean(axis=0)
    real, chance = first_guess(chosen), first_guess(scale(noise))
    gain = (
        bootstrap(real - chance.mean())
        if len(real) > 1
        else Estimate(float(real[0] - chance.mean()), 0.0, 0.0, 1)
    )
    where = f"guesses come back at cosine {real.mean():.2f}, for random vectors at {chance.mean():.2f}"
    if len(real) > 1 and gain.low > FIT_MARGIN:
        return Fit(
            "yes", f"{where}: these are vectors of {embedder.name}", float(real.mean()), float(chance.mean())
        )
    if len(real) > 1 and gain.high < FIT_MARGIN:
        why = (
            f"{where}: another embedder of the same size wrote them, or they were transformed before storage"
        )
        return Fit("no", why, float(real.mean()), float(chance.mean()))
    return Fit("unclear", f"{where}: too close to tell", float(real.mean()), float(chance.mean()))
