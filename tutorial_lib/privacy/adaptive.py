"""Attackers who know the defence, and prepare for it (chapters 4 and 5).

    CellMeans          stored codes -> what a vector with that code is worth on average
    Alignment          stored space -> embedder's space, a linear map learned from pairs
    DefendedEmbedder   guesses seen through the defence, so that they compare like with like
    adapt              all three, as far as a defence allows each

What an attacker needs for it differs. A quantiser, a truncation and the size of a noise can be read off the store
and repeated at home on any text: such an attacker makes as many pairs as wanted, and owns none of the store's texts.
A rotation, an affine map or unpublished axes rest on a key: there the pairs must be *known*, texts whose stored
vector the attacker holds. None of these attackers retrains the inverter on defended vectors, which costs what
training costs and may recover more, so whatever they recover is a lower bound on the leak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import VectorError
from .defences import Defence, checked, unit


@dataclass(frozen=True)
class CellMeans:
    """Dequantisation to the mean of the cell: each code becomes the average of the values that are rounded to it.

    A store's own decoding takes the middle of the cell or the codebook's centre, which is off wherever vectors lie
    unevenly in it, most of all with one or two bits a value. The mean minimises the squared error (Lloyd 1957).
    """

    codes: tuple[np.ndarray, ...]  # per piece of the vector, its cells as stored [cells, width]
    means: tuple[np.ndarray, ...]  # their means [cells, width]

    @classmethod
    def fit(cls, stored: np.ndarray, embeddings: np.ndarray, width: int = 1) -> CellMeans:
        """Learn the means from pairs: stored [m, d] as decoded by the store, their embeddings [m, d].

        width: values that share a code, 1 for a scalar quantiser.  Raises VectorError for shapes that do not fit.
        """
        stored, embeddings = checked(stored), checked(embeddings)
        if stored.shape != embeddings.shape or width < 1 or stored.shape[1] % width:
            raise VectorError(
                f"cell means were asked for {list(stored.shape)} stored and {list(embeddings.shape)} embedded values, "
                f"{width} to a code: give two arrays of one shape, its second number a multiple of the width"
            )
        codes, means = [], []
        for start in range(0, stored.shape[1], width):
            piece = slice(start, start + width)
            here = stored[:, start] if width == 1 else stored[:, piece]  # sorting numbers is faster than sorting rows
            cells, cell = np.unique(here, axis=0, return_inverse=True)
            cell = cell.ravel()
            sums = np.stack([np.bincount(cell, weights=values) for values in embeddings[:, piece].T], axis=1)
            codes.append(cells.reshape(-1, width))
            means.append((sums / np.bincount(cell)[:, None]).astype(np.float32))
        return cls(tuple(codes), tuple(means))

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """float32 [n, d] as decoded by the store -> [n, d]; a code never met before takes its nearest cell's mean."""
        stored = checked(stored)
        width = self.codes[0].shape[1]
        if stored.shape[1] != width * len(self.codes):
            raise VectorError(
                f"cell means of {width * len(self.codes)} values were given {stored.shape[1]}: fit them on this store"
            )
        pieces = np.split(stored, len(self.codes), axis=1)
        return np.concatenate(
            [means[_nearest(piece, cells)] for piece, cells, means in zip(pieces, self.codes, self.means, strict=True)],
            axis=1,
        )


@dataclass(frozen=True)
class Alignment:
    """A linear way back to the embedder's space: unit(stored @ matrix + shift)."""

    matrix: np.ndarray  # float32 [k, d]
    shift: np.ndarray  # float32 [d]

    @classmethod
    def fit(
        cls,
        stored: np.ndarray,
        embeddings: np.ndarray,
        *,
        method: Literal["ridge", "procrustes"] = "ridge",
        penalty: float | None = None,
    ) -> Alignment:
        """Learn the map from m pairs: stored [m, k], embeddings of their texts [m, d].

        ridge: least squares with a penalty; undoes any affine map, fills in truncated values and is the best
        linear denoiser.  procrustes: the nearest rotation (Schonemann 1966), which needs fewer pairs but
        can only undo a rotation.  penalty: None chooses it by leaving out a fifth of the pairs.
        Raises VectorError for fewer than 5 pairs or shapes that do not fit together.
        """
        stored, embeddings = checked(stored), checked(embeddings)
        if len(stored) != len(embeddings) or len(stored) < 5:
            raise VectorError(
                f"{len(stored)} stored vectors and {len(embeddings)} embeddings were given: "
                "alignment needs the same number of both, 5 pairs or more"
            )
        if method == "procrustes":
            if stored.shape[1] != embeddings.shape[1]:
                raise VectorError(
                    f"procrustes was given {stored.shape[1]} and {embeddings.shape[1]} dimensions: "
                    'a rotation keeps the dimension; use method="ridge"'
                )
            u, _, vt = np.linalg.svd(stored.T @ embeddings)
            return cls((u @ vt).astype(np.float32), np.zeros(embeddings.shape[1], dtype=np.float32))
        if penalty is None:
            cut = max(1, len(stored) // 5)
            tried = np.geomspace(1e-6, 10, 8)
            maps = _ridge(stored[cut:], embeddings[cut:], tried)
            error = _ruler(embeddings[cut:])
            penalty = float(tried[np.argmin([error(m.apply(stored[:cut]), embeddings[:cut]) for m in maps])])
        return _ridge(stored, embeddings, [penalty])[0]

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """float32 [n, k] as stored -> unit vectors float32 [n, d] for the inverter."""
        return unit(checked(stored) @ self.matrix + self.shift)


class DefendedEmbedder:
    """An embedder whose vectors have passed through a defence and back: everything else is the embedder's own.

    Ranked by it, the true text has cosine 1 again whatever the defence took away, since both sides have lost the same;
    ranked by the embedder itself, a text that lies nearer to the damaged vector than the true one would win.
    """

    def __init__(self, embedder: Any, defence: Defence, way_back: WayBack) -> None:
        self._embedder, self._defence, self._way_back = embedder, defence, way_back

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        """n strings -> float32 [n, d], as an attacker would read them out of the store."""
        return self._way_back.apply(self._defence.apply(self._embedder.encode(texts, **options)))

    @property
    def queries(self) -> int:
        """The embedder's own count."""
        return int(self._embedder.queries)

    @queries.setter
    def queries(self, value: int) -> None:
        self._embedder.queries = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)


@dataclass(frozen=True)
class WayBack:
    """What an adaptive attacker has learned: stored -> cell means -> alignment, each only where it applies."""

    cells: CellMeans | None = None
    alignment: Alignment | None = None

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """float32 [n, k] as stored -> unit vectors float32 [n, d]."""
        stored = self.cells.apply(stored) if self.cells else stored
        return self.alignment.apply(stored) if self.alignment else unit(stored)


def adapt(defence: Defence, known: np.ndarray, public: np.ndarray | None = None) -> WayBack:
    """Prepare for a fitted defence.

    known [m, d]: embeddings of texts whose stored vectors the attacker holds.  public [m', d]: embeddings of any text
    at all; used instead where the defence rests on no secret, so that pairs can be made at home (default: `known`).
    Raises VectorError for fewer than 6 pairs, or 5 where the defence leaves no choice of a way back.
    """
    pairs = known if defence.secret or public is None else public
    stored = defence.apply(pairs)
    kinds = [(cells, align) for align in (False, True) for cells in ((False, True) if defence.code_width else (False,))]
    if stored.shape != pairs.shape:
        kinds = [(False, True)]
    needed = 5 + (len(kinds) > 1)  # five to learn from, and one to choose by
    if len(pairs) < needed:
        raise VectorError(f"{len(pairs)} pairs were given to prepare for {defence.label!r}: give {needed} or more")
    # Cell means of few pairs, and a map of d x d numbers, are known only roughly: on fine cells they do more harm than
    # good. A fifth of the pairs decides which of them help.
    cut = max(1, len(pairs) // 5)
    error = _ruler(pairs[cut:])

    def held_out(kind: tuple[bool, bool]) -> float:
        way_back = _learn(stored[cut:], pairs[cut:], defence.code_width, *kind)
        return error(way_back.apply(stored[:cut]), pairs[:cut])

    best = min(kinds, key=held_out) if len(kinds) > 1 else kinds[0]
    return _learn(stored, pairs, defence.code_width, *best)


def _ruler(sample: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    """How far unit vectors [n, d] are from embeddings [n, d], each principal axis of `sample` in units of its spread.

    Cosine would count the loud axes alone, and inverters read the quiet ones too: ours whitens before it reads, so
    noise that hardly moves the cosine drowns what it sees (chapter 2).
    """
    values, axes = np.linalg.eigh(np.cov(unit(sample).T.astype(np.float64)))
    values = np.maximum(values, 0) + 0.05 * values.mean()  # a few pairs do not know the quietest axes well

    def error(guessed: np.ndarray, embeddings: np.ndarray) -> float:
        return float(((((guessed - unit(embeddings)) @ axes) ** 2) / values).mean())

    return error


def _learn(stored: np.ndarray, pairs: np.ndarray, width: int, with_cells: bool, align: bool) -> WayBack:
    cells = CellMeans.fit(stored, pairs, width) if with_cells else None
    return WayBack(cells, Alignment.fit(cells.apply(stored) if cells else stored, pairs) if align else None)


def _nearest(piece: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Number of the nearest cell: [n, width], sorted cells [c, width] -> int [n]."""
    if cells.shape[1] == 1:
        levels, values = cells[:, 0], piece[:, 0]
        above = np.clip(np.searchsorted(levels, values), 1, max(1, len(levels) - 1))
        if len(levels) == 1:
            return np.zeros(len(values), dtype=np.int64)
        return above - (values - levels[above - 1] <= levels[above] - values)
    return np.asarray(((cells**2).sum(1) - 2 * piece @ cells.T).argmin(1))  # by |c|^2 - 2 x.c


def _ridge(x: np.ndarray, y: np.ndarray, penalties: Sequence[float] | np.ndarray) -> list[Alignment]:
    """Ridge regression with an intercept, once per penalty (relative to the mean variance of x)."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    cx, cy = (x - mean_x).astype(np.float64), (y - mean_y).astype(np.float64)
    values, axes = np.linalg.eigh(cx.T @ cx)  # one decomposition serves every penalty
    values = np.maximum(values, 0)
    turned = axes.T @ (cx.T @ cy)  # [k, d]
    found = []
    for penalty in penalties:
        matrix = axes @ (turned / (values + penalty * values.mean() + 1e-12)[:, None])
        found.append(Alignment(matrix.astype(np.float32), (mean_y - mean_x @ matrix).astype(np.float32)))
    return found
