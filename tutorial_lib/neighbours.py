"""Neighbours: every text one change away from a good guess, weighed at once and without a query.

One reading of a guess by the inverter says how likely each known piece is at each of its places (:class:`Places`), and
:class:`PieceValues` foresees what a piece does to the vector. Together they price every replacement, insertion and
omission of a piece, and every exchange of two neighbouring runs, some hundred thousand texts, by a few matrix products.
Only the best of them are read in full. The prices are rough: of the joins that a change makes, those are counted whose
probability the one reading holds. Used by :mod:`tutorial_lib.variants`; measured on the page *What we tried*.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_LEARNT = 1000  # nearest texts that stay, whenever there are twice as many, to learn the values of pieces from
_RIDGE = 1e-2
#: Nobody foresees distances so well as to tell apart what is nearer than this.
NEAREST = 1 - 2e-3
#: A nat of the inverter's weighs as much as a distance e^0.02 times as large.
SENSE = 0.02


def score(cosine: float | np.ndarray, nats: float | np.ndarray, sense: float = SENSE) -> np.ndarray:
    """Worth of a text from the cosine of its embedding with the target and its nats under the inverter, in all.

    Minus the logarithm of the distance, so that halving it counts the same near and far, less what the inverter minds.
    In all and not per piece: a likely piece too many makes a text likelier per piece, and must not be free.
    """
    return -np.log(np.maximum(1 - np.asarray(cosine), 1e-7)) - sense * np.asarray(nats)


class PieceValues:
    """What a piece does to the vector, learnt from the texts embedded so far for one target.

    Ridge regression of unit embeddings [d] on the shares of pieces in the text, near texts counting most. A mean over
    tokens is nearly linear in these shares, and what is not, the order above all, is averaged out.
    """

    def __init__(self) -> None:
        self._texts: list[tuple[int, ...]] = []
        self._vectors: list[np.ndarray] = []
        self._cosines: list[float] = []
        self._column: dict[int, int] = {}
        self._effects = np.zeros((0, 0), dtype=np.float32)  # [pieces, d]

    def add(self, ids: tuple[int, ...], embedding: np.ndarray, cosine: float) -> None:
        """Remember an embedded text; only the nearest ones stay."""
        self._texts.append(ids)
        self._vectors.append(embedding)
        self._cosines.append(cosine)
        if len(self._texts) >= 2 * _LEARNT:
            kept = np.argsort(-np.array(self._cosines), kind="stable")[:_LEARNT]
            self._texts = [self._texts[i] for i in kept]
            self._vectors = [self._vectors[i] for i in kept]
            self._cosines = [self._cosines[i] for i in kept]

    def fit(self) -> None:
        """Learn from everything remembered."""
        self._column = {}
        for text in self._texts:
            for piece in text:
                self._column.setdefault(piece, len(self._column))
        shares, vectors = self._shares(self._texts), np.stack(self._vectors).astype(np.float64)
        shares -= shares.mean(0)
        vectors -= vectors.mean(0)
        cosines = np.array(self._cosines)
        weighted = shares * (np.exp(12 * (cosines - cosines.max())) + 0.02)[:, None]
        gram = shares.T @ weighted + _RIDGE * np.eye(shares.shape[1])
        self._effects = np.linalg.solve(gram, weighted.T @ vectors).astype(np.float32)

    def moved(
        self, texts: Sequence[tuple[int, ...]], parents: Sequence[tuple[int, ...]], known: np.ndarray
    ) -> np.ndarray:
        """Expected unit embeddings float64 [n, d] of texts, each made from a parent whose embedding [n, d] is known."""
        change = self._shares(texts) - self._shares(parents)
        known = known / np.linalg.norm(known, axis=1, keepdims=True)
        expected = known + change @ self._effects
        return expected / np.linalg.norm(expected, axis=1, keepdims=True)

    def of(self, pieces: Sequence[int]) -> np.ndarray:
        """float32 [n, d]: what each piece adds per share; nothing if it was never seen."""
        effects = np.zeros((len(pieces), self._vectors[0].shape[0]), dtype=np.float32)
        for row, piece in enumerate(pieces):
            column = self._column.get(piece)
            if column is not None:
                effects[row] = self._effects[column]
        return effects

    def _shares(self, texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[n, pieces]: the share of each known piece in each text."""
        out = np.zeros((len(texts), len(self._column)))
        for row, text in zip(out, texts, strict=True):
            for piece in text:
                column = self._column.get(piece)
                if column is not None:
                    row[column] += 1 / len(text)
        return out


@dataclass(frozen=True)
class Places:
    """One reading of a guess: log-probabilities under the inverter, given the guess up to there."""

    pieces: np.ndarray  # float32 [t + 1, P], of the first P known pieces at each place, the one after the last included
    end: np.ndarray  # float32 [t + 1], of the end


@dataclass(frozen=True)
class Read:
    """A guess that was embedded and read."""

    ids: tuple[int, ...]
    unit: np.ndarray  # float32 [d], its embedding
    cosine: float  # with the target
    places: Places


class Price(NamedTuple):
    """What is expected of a text nobody has embedded."""

    origin: int  # which guess it comes from
    cosine: float  # with the target
    nats: float  # under the inverter, in all, as far as one reading of the guess tells


class Neighbours:
    """Prices the neighbours of guesses, given what pieces do to the vector and how much sense counts.

    ``columns`` numbers the known pieces; a reading holds the first of them, those known when it was made. ``pool`` are
    the pieces (column numbers) that may be put in.
    """

    def __init__(
        self, values: PieceValues, target: np.ndarray, columns: Mapping[int, int], pool: np.ndarray, sense: float
    ) -> None:
        self.target, self.columns, self.pool, self.sense = target, columns, pool, sense
        self.pieces = np.array(list(columns))
        self.effects = values.of(list(columns))  # [P, d]
        self.nearer = self.effects @ target  # [P], towards the target
        self.products = self.effects @ self.effects.T  # [P, P]

    def changed(
        self, guesses: Sequence[Read], longest: int, count: int, noise: float, rng: np.random.Generator
    ) -> dict[tuple[int, ...], Price]:
        """About ``count`` of the best texts (ids) with one piece replaced, put in or left out. Gumbel ``noise`` on
        their worth makes it a draw, lest every round look at the same ones."""
        parts, origin = [], []
        for number, guess in enumerate(guesses):
            pool = self.pool[self.pool < guess.places.pieces.shape[1]]
            for kind, expected in (
                ("replace", self.replacing(guess, pool)),
                ("insert", self.inserting(guess, pool) if len(guess.ids) < longest else None),
                ("drop", self.dropping(guess) if len(guess.ids) > 1 else None),
            ):
                if expected is not None:
                    parts.append(expected)
                    origin.append((number, kind, pool))
        found: dict[tuple[int, ...], Price] = {}
        for part, (place, column) in _best([worth for worth, _ in parts], count, noise, rng):
            number, kind, pool = origin[part]
            ids = guesses[number].ids
            new = () if kind == "drop" else (int(self.pieces[pool[column]]),)
            text = (*ids[:place], *new, *ids[place + (kind != "insert") :])
            worth, cosine = (float(expected[place, column]) for expected in parts[part])
            found.setdefault(text, Price(number, cosine, self._nats(worth, cosine)))
        return found

    def reordered(
        self, guesses: Sequence[Read], count: int, noise: float, rng: np.random.Generator
    ) -> dict[tuple[int, ...], Price]:
        """The same of texts in which two neighbouring runs of pieces have changed places. As nobody foresees what an
        order does to the vector, they count as near as the guess they come from."""
        guesses_at = [(number, guess) for number, guess in enumerate(guesses) if len(guess.ids) > 1]
        parts = [self.exchanging(guess)[None] for _, guess in guesses_at]
        found: dict[tuple[int, ...], Price] = {}
        for part, (_, at) in _best(parts, count, noise, rng):
            number, guess = guesses_at[part]
            i, j, k = (int(places[at]) for places in runs(len(guess.ids)))
            text = guess.ids[:i] + guess.ids[j:k] + guess.ids[i:j] + guess.ids[k:]
            nats = self._nats(float(parts[part][0, at]), guess.cosine)
            found.setdefault(text, Price(number, guess.cosine, nats))
        return found

    # Each of these gives worth and expected cosine of every text of its kind.

    def replacing(self, guess: Read, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[t, p]: at each place each piece of the pool."""
        n, there, own = self._own(guess)
        along = self.effects @ guess.unit
        nearer = (self.nearer[pool] - self.nearer[there][:, None]) / n
        size = self.products[pool, pool] + self.products[there, there][:, None] - 2 * self.products[np.ix_(there, pool)]
        square = 1 + 2 * (along[pool] - along[there][:, None]) / n + size / n**2
        nats = -own.sum() + own[:n, None] - guess.places.pieces[:n, pool]
        worth, cosine = self._worth(guess, nearer, square, nats)
        worth[pool == there[:, None]] = -np.inf  # the guess itself
        return worth, cosine

    def inserting(self, guess: Read, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[t + 1, p]: before each place, and at the end, each piece of the pool."""
        n, there, own = self._own(guess)
        thinned = -self.effects[there].sum(0) / (n * (n + 1))  # [d], as all others lose in share
        nearer = thinned @ self.target + self.nearer[pool] / (n + 1)
        square = 1 + 2 * (thinned @ guess.unit + self.effects[pool] @ guess.unit / (n + 1))
        square += thinned @ thinned + 2 * self.effects[pool] @ thinned / (n + 1)
        square += self.products[pool, pool] / (n + 1) ** 2
        nats = -own.sum() - guess.places.pieces[:, pool]
        worth, cosine = self._worth(guess, nearer, square, nats)
        return worth, np.broadcast_to(cosine, worth.shape)

    def dropping(self, guess: Read) -> tuple[np.ndarray, np.ndarray]:
        """[t, 1]: without the piece at each place."""
        n, there, own = self._own(guess)
        total = self.effects[there].sum(0)
        change = (total - self.effects[there]) / (n - 1) - total / n  # [t, d]
        square = 1 + 2 * change @ guess.unit + (change**2).sum(1)
        joined = np.append(guess.places.pieces[np.arange(n - 1), there[1:]], guess.places.end[n - 1])
        nats = -own.sum() + own[:n] + own[1:] - joined
        worth, cosine = self._worth(guess, change @ self.target, square, nats)
        return worth[:, None], cosine[:, None]

    def exchanging(self, guess: Read) -> np.ndarray:
        """[m]: worth of exchanging each pair of neighbouring runs, :func:`runs`, from its three joins."""
        n, there, own = self._own(guess)
        follows = np.column_stack([guess.places.pieces[:, there], guess.places.end])  # [t + 1, t + 1]
        i, j, k = runs(n)
        nats = -own.sum() + own[i] + own[j] + own[k] - follows[i, j] - follows[k, i] - follows[j, k]
        return score(guess.cosine, nats, self.sense)

    def _nats(self, worth: float, cosine: float) -> float:
        """What :func:`score` took off for sense."""
        return (float(score(cosine, 0.0)) - worth) / self.sense

    def _own(self, guess: Read) -> tuple[int, np.ndarray, np.ndarray]:
        """Length, columns of the guess's pieces [t], log-probabilities of its pieces and its end [t + 1]."""
        n, there = len(guess.ids), np.array([self.columns[piece] for piece in guess.ids])
        return n, there, np.append(guess.places.pieces[np.arange(n), there], guess.places.end[n])

    def _worth(
        self, guess: Read, nearer: np.ndarray, square: np.ndarray, nats: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """From the change of the product with the target and the square of the length that the vector will have."""
        cosine = np.minimum((guess.cosine + nearer) / np.sqrt(np.maximum(square, 1e-6)), NEAREST)
        return score(cosine, nats, self.sense), cosine


@functools.cache
def runs(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every i < j < k <= n: the neighbouring runs [i, j) and [j, k) of n pieces."""
    rows = [(i, j, k) for i in range(n) for j in range(i + 1, n) for k in range(j + 1, n + 1)]
    i, j, k = np.array(rows).T
    return i, j, k


def _best(
    parts: Sequence[np.ndarray], count: int, noise: float, rng: np.random.Generator
) -> list[tuple[int, tuple[int, int]]]:
    """Part, row and column of the ``count`` largest entries of several matrices, after adding Gumbel noise."""
    if not sum(part.size for part in parts):
        return []
    flat = np.concatenate([part.ravel() for part in parts])
    flat = flat + noise * rng.gumbel(size=len(flat))
    top = np.argpartition(-flat, min(count, len(flat)) - 1)[:count]
    top = top[np.argsort(-flat[top], kind="stable")]
    ends = np.cumsum([part.size for part in parts])
    found = []
    for index in top[np.isfinite(flat[top])].tolist():
        part = int(np.searchsorted(ends, index, side="right"))
        place = index - (int(ends[part - 1]) if part else 0)
        found.append((part, divmod(place, parts[part].shape[1])))
    return found
