"""Defences for stored vectors (chapter 4).

    GaussianNoise, Quantise (Int8, Binary), ProductQuantisation, Truncate, PCATruncate, SecretRotation,
    SecretAffine
        fit(vectors) learns what the defence needs, apply(vectors) gives what lies in the store,
        query(vectors) what a legitimate search compares with it

Two attackers try them: the naive one feeds what is stored to the inverter (`read`); the adaptive one knows the
defence and prepares for it (`adaptive`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import VectorError


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32 [n, d]; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


class Defence:
    """A way to store vectors.  Without a change of its own it stores them as they are.

    label: its name on figures; bits: what one stored vector takes; secret: whether it rests on a key;
    repeatable: whether an attacker can do the same to a guess, bit for bit; code_width: values that share a stored
    code, 0 where values are stored as numbers; metric: how stored vectors are compared ("cosine", or "dot" where
    their length carries meaning).
    """

    label = "none"
    secret = False
    repeatable = False
    code_width = 0
    metric: Literal["cosine", "dot"] = "cosine"
    dimension = 0  # of the vectors it was fitted on

    def fit(self, vectors: np.ndarray) -> Defence:
        """Learn ranges, axes or codebooks from float32 [n, d]; returns itself."""
        self.dimension = checked(vectors).shape[1]
        return self

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, d] -> what is stored, decoded to float32 [n, k]."""
        return self._check(vectors)

    def query(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, d] -> what a client with the right to search sends, [n, k]."""
        return self.apply(vectors)

    def read(self, stored: np.ndarray) -> np.ndarray:
        """A naive attacker's reading: [n, k] padded with zeros to the embedder's [n, d], at unit length."""
        padded = np.zeros((len(stored), self.dimension), dtype=np.float32)
        padded[:, : stored.shape[1]] = stored
        return unit(padded)

    @property
    def bits(self) -> float:
        """Bits that one stored vector takes."""
        return 32.0 * self.dimension

    def _check(self, vectors: np.ndarray) -> np.ndarray:
        vectors = checked(vectors)
        if not self.dimension:
            raise VectorError(
                f"the defence {self.label!r} was applied before it was fitted: call fit(vectors) first"
            )
        if vectors.shape[1] != self.dimension:
            raise VectorError(
                f"the defence {self.label!r} was fitted on {self.dimension} dimensions and given "
                f"{vectors.shape[1]}: "
                "fit it again for this embedder"
            )
        return vectors


@dataclass
class GaussianNoise(Defence):
    """x + scale * N(0, 1) per value, drawn once when the vector is stored (Morris et al. 2023).

    Each vector has noise of its own, whatever its place in the store: noise that repeats from one array to the next
    could be learned from known pairs.
    """

    scale: float  # standard deviation, in the unit of one value; 1/sqrt(d) is a vector's own typical value
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise VectorError(f"noise of scale {self.scale} was asked for: a standard deviation is 0 or more")
        self.label = f"noise {self.scale:g}"

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        vectors = self._check(vectors)
        noise = np.empty_like(vectors)
        for row, vector in zip(noise, vectors, strict=True):
            np.random.default_rng([self.seed, zlib.crc32(vector.tobytes())]).standard_normal(out=row, dtype=np.float32)
        return vectors + np.float32(self.scale) * noise

    def query(self, vectors: np.ndarray) -> np.ndarray:
        return self._check(vectors)  # the noise hides what is stored; a query is not stored


@dataclass
class Quantise(Defence):
    """Each value rounded to one of 2^bits_per_value levels over its own range (sign alone at 1 bit)."""

    bits_per_value: int  # 1 to 16
    repeatable = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits_per_value <= 16:
            raise VectorError(f"{self.bits_per_value} bits a value were asked for: choose 1 to 16")
        self.code_width = int(self.bits_per_value <= 8)  # cells finer than a byte's are too many to average over
        self.label = {1: "binary", 8: "int8"}.get(self.bits_per_value, f"{self.bits_per_value} bits")

    def fit(self, vectors: np.ndarray) -> Quantise:
        super().fit(vectors)
        self._low, self._high = np.quantile(vectors, [0.001, 0.999], axis=0).astype(np.float32)  # [d] each
        return self

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        vectors = self._check(vectors)
        if self.bits_per_value == 1:
            return np.where(vectors > 0, 1, -1).astype(np.float32)
        steps = 2**self.bits_per_value - 1
        width = np.maximum(self._high - self._low, 1e-12) / steps
        level = np.clip(np.round((vectors - self._low) / width), 0, steps)
        return (self._low + level * width).astype(np.float32)

    def query(self, vectors: np.ndarray) -> np.ndarray:
        return self._check(vectors)  # full-precision queries against stored codes, as vector databases do

    @property
    def bits(self) -> float:
        return float(self.bits_per_value * self.dimension)


def Int8() -> Quantise:
    """Scalar quantisation to a byte a value, the setting most vector databases offer first."""
    return Quantise(8)


def Binary() -> Quantise:
    """The sign of each value, one bit: what "binary quantisation" keeps."""
    return Quantise(1)


@dataclass
class ProductQuantisation(Defence):
    """Vectors cut into `codes` pieces, each replaced by the nearest of 256 centres (Jegou et al. 2011)."""

    codes: int  # bytes a stored vector takes; must divide the dimension
    seed: int = 0
    repeatable = True

    def __post_init__(self) -> None:
        self.label = f"PQ {self.codes} B"

    def fit(self, vectors: np.ndarray) -> ProductQuantisation:
        from sklearn.cluster import KMeans  # comes with sentence-transformers

        super().fit(vectors)
        if self.codes < 1 or self.dimension % self.codes:
            raise VectorError(
                f"{self.codes} codes do not divide {self.dimension} dimensions: choose a divisor"
            )
        self.code_width = self.dimension // self.codes
        centres = min(256, len(vectors))
        self._books = [
            KMeans(centres, n_init=1, max_iter=10, random_state=self.seed)
            .fit(piece)
            .cluster_centers_.astype(np.float32)
            for piece in np.split(checked(vectors), self.codes, axis=1)
        ]  # codes x [256, d / codes]
        return self

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        pieces = np.split(self._check(vectors), self.codes, axis=1)
        # Nearest centre by |c|^2 - 2 x.c: [n, 256] per piece
        nearest = [((b**2).sum(1) - 2 * p @ b.T).argmin(1) for p, b in zip(pieces, self._books, strict=True)]
        return np.concatenate([b[i] for b, i in zip(self._books, nearest, strict=True)], axis=1)

    def query(self, vectors: np.ndarray) -> np.ndarray:
        return self._check(vectors)

    @property
    def bits(self) -> float:
        return 8.0 * self.codes


@dataclass
class Truncate(Defence):
    """The first `keep` values, rescaled to length 1, as Matryoshka embedders allow (Kusupati et al. 2022).

    all-MiniLM-L6-v2 was not trained that way: the price in retrieval is higher than a Matryoshka model's.
    """

    keep: int  # values kept
    repeatable = True

    def __post_init__(self) -> None:
        self.label = f"first {self.keep}"

    def fit(self, vectors: np.ndarray) -> Truncate:
        super().fit(vectors)
        _keep(self.keep, self.dimension)
        return self

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        return unit(self._check(vectors)[:, : self.keep])

    @property
    def bits(self) -> float:
        return 32.0 * self.keep


@dataclass
class PCATruncate(Defence):
    """The `keep` directions of largest variance, rescaled to length 1; the axes are not published."""

    keep: int  # directions kept
    secret = True

    def __post_init__(self) -> None:
        self.label = f"PCA {self.keep}"

    def fit(self, vectors: np.ndarray) -> PCATruncate:
        super().fit(vectors)
        _keep(self.keep, min(vectors.shape))
        # Not centred: cosine is measured from the origin, so the mean direction is one to keep.
        _, _, axes = np.linalg.svd(checked(vectors), full_matrices=False)
        self._axes = axes[: self.keep].T.astype(np.float32)  # [d, keep]
        return self

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        return unit(self._check(vectors) @ self._axes)

    @property
    def bits(self) -> float:
        return 32.0 * self.keep


@dataclass
class SecretRotation(Defence):
    """x Q with a secret orthogonal Q: every cosine is kept, so search does not change at all."""

    seed: int = 0  # the key
    label = "secret rotation"
    secret = True

    def fit(self, vectors: np.ndarray) -> SecretRotation:
        super().fit(vectors)
        self._key = _orthogonal(self.dimension, self.seed)
        return self

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        return self._check(vectors) @ self._key


@dataclass
class SecretAffine(Defence):
    """x A + b stored, q A^-T searched: dot products change by a constant a query, so ranks do not.

    The scheme of Wong et al. (2009, "secure kNN"); it was shown to fall to known pairs because it is linear.
    """

    seed: int = 0  # the key
    condition: float = 10.0  # largest over smallest stretch of A
    label = "secret affine map"
    secret = True
    metric = "dot"

    def fit(self, vectors: np.ndarray) -> SecretAffine:
        super().fit(vectors)
        stretch = np.geomspace(1, self.condition, self.dimension).astype(np.float32)
        left, right = _orthogonal(self.dimension, self.seed), _orthogonal(self.dimension, self.seed + 1)
        rng = np.random.default_rng(self.seed + 2)
        self._map = (left * stretch) @ right
        self._inverse = (left / stretch) @ right  # A^-T
        self._shift = rng.standard_normal(self.dimension, dtype=np.float32)
        return self

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        return self._check(vectors) @ self._map + self._shift

    def query(self, vectors: np.ndarray) -> np.ndarray:
        return self._check(vectors) @ self._inverse


def checked(vectors: np.ndarray) -> np.ndarray:
    """float32 [n, d]; VectorError for any other shape, for nothing, and for NaN or infinity."""
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or not vectors.size:
        raise VectorError(
            f"vectors of shape {vectors.shape} were given: a matrix [n, d] with n, d >= 1 is needed"
        )
    if not np.isfinite(vectors).all():
        raise VectorError("vectors with NaN or infinite values were given: leave those rows out")
    return vectors


def _keep(keep: int, limit: int) -> None:
    if not 1 <= keep <= limit:
        raise VectorError(f"{keep} values were to be kept: choose 1 to {limit}")


def _orthogonal(dimension: int, seed: int) -> np.ndarray:
    """A random orthogonal matrix, uniform (Haar), float32 [d, d]."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((dimension, dimension)))
    return (q * np.sign(np.diag(r))).astype(np.float32)
