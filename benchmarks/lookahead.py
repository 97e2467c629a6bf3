"""Drafts of chapter 6's search that foresee more: not in the library, since no chapter has measured them yet.

`variants.py` runs them, as "looking ahead" and the like. What came of them stands on the page *What we tried*,
section *A surrogate*. When they are worth it they belong into `tutorial_lib/surrogate.py`, whose `fit`
then gets a trend, instead of the copy here: until then a change of it would make readers execute chapter 6 for nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import linalg, sparse
from torch import Tensor

from tutorial_lib import Embedder, surrogate
from tutorial_lib.neighbours import NEAREST, score
from tutorial_lib.surrogate import Guided, Surrogate
from tutorial_lib.variants import Guess, Population
from tutorial_lib.word_lists import WordList, whole_words

KIN = 1.0  # weight in the kernel of what words say alone, beside 1 for pieces
ASKED = 8  # best guesses in which a place is sought for every word ...
OFFERED = 24  # ... of which so many a round join the pieces that may be put in
WIDE = 8  # texts from which a search looks a step farther


class Alone:
    """What pieces say alone: the embeddings of those that are a word of a list, less their mean."""

    def __init__(self, words: WordList, embedder: Embedder) -> None:
        ids = embedder.token_ids([" ".join(word) for word in words.words])
        single = [row for row, pieces in enumerate(ids) if len(pieces) == 1]
        self.pieces = [ids[row][0] for row in single]
        self.vectors = words.vectors[single] - words.vectors[single].mean(0)  # [n, d]
        self._row = {piece: row for row, piece in enumerate(self.pieces)}

    @classmethod
    @functools.cache
    def of(cls, embedder: Embedder) -> Alone:
        """All words of an embedder's vocabulary, embedded once for every target."""
        return cls(WordList.embed(whole_words(embedder), embedder, progress=False), embedder)

    def means(self, texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """float32 [n, d]: the mean over each text's pieces, those that are no word counting as nothing."""
        rows = [[self._row[piece] for piece in text if piece in self._row] for text in texts]
        starts = np.cumsum([0, *(len(row) for row in rows)])
        flat = np.array([row for found in rows for row in found], dtype=np.int64)
        shares = np.repeat([1 / max(1, len(text)) for text in texts], np.diff(starts)).astype(np.float32)
        return sparse.csr_array((shares, flat, starts), shape=(len(texts), len(self.vectors))) @ self.vectors


class Informed(Surrogate):
    """A surrogate that begins with what words say alone: a Gaussian process whose mean is a multiple of their mean, by
    generalised least squares, and in whose kernel words that say nearly the same do nearly the same."""

    def __init__(self, alone: Alone) -> None:
        super().__init__()
        self.alone = alone
        self.map = np.zeros((0, 0), dtype=np.float32)  # [d, d], from what words say alone to what they do

    def fit(self) -> None:
        """As the surrogate does, with more in the kernel and a trend."""
        kept = np.argsort(-np.array(self._cosines), kind="stable")[: surrogate._LEARNT]
        texts, cosines = [self._texts[i] for i in kept], np.array([self._cosines[i] for i in kept])
        vectors = np.stack([self._vectors[i] for i in kept]).astype(np.float64)
        rows = [self.features(text) for text in texts]
        self._column = {}
        for row in rows:
            for feature in row:
                self._column.setdefault(feature, len(self._column))  # type: ignore[arg-type]
        shares, said = self._matrix(rows), self.alone.means(texts).astype(np.float64)
        weights = np.exp(surrogate._SHARPNESS * (cosines - cosines.max())) + surrogate._LEAST
        mean = weights / weights.sum()
        kernel = (shares @ shares.T).toarray().astype(np.float64) + KIN * said @ said.T
        level = kernel @ mean
        kernel += mean @ level - level[:, None] - level
        kernel[np.diag_indices_from(kernel)] += surrogate._RIDGE / weights
        centred = said - mean @ said
        solved = linalg.solve(kernel, np.hstack([vectors - mean @ vectors, centred]), assume_a="pos")
        dual, trend = np.hsplit(solved, [vectors.shape[1]])
        slope = float((centred * dual).sum() / (centred * trend).sum())
        dual -= slope * trend
        self.map = (KIN * said.T @ dual + slope * np.eye(dual.shape[1])).astype(np.float32)
        self._effects = shares.T @ dual.astype(np.float32)

    def of(self, pieces: Sequence[int]) -> np.ndarray:
        """float32 [n, d]: what each piece adds per share; nothing if it was never seen and is no word."""
        return super().of(pieces) + self.alone.means([(piece,) for piece in pieces]) @ self.map

    def _foreseen(self, texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        return super()._foreseen(texts) + self.alone.means(texts) @ self.map


class Ahead(Guided):
    """Chapter 6's search, which prices texts up to ``depth`` changes away before it asks, and with ``words`` knows what
    they say alone and offers those that would come nearest in the place of some piece of a good guess."""

    def __init__(self, *models: Any, depth: int = 3, words: bool = True) -> None:
        super().__init__(*models)
        self.depth, self.alone = depth, Alone.of(self.embedder) if words else None
        self._made: dict[tuple[int, ...], Guess] = {}  # texts of a level, with the guess each was made from

    def begin(self, target: Tensor) -> Population:
        population = super().begin(target)
        if self.alone is not None:
            population.values = Informed(self.alone)
        return population

    def next(self, population: Population, count: int, longest: int) -> list[str]:
        if self.alone is not None and population.rounds:
            self.offer(population, self.alone)
        return super().next(population, count, longest)

    @staticmethod
    def offer(population: Population, alone: Alone) -> None:
        """Let the words that would come nearest in the place of some piece of a good guess be put in."""
        values, asked = population.values, population.best[:ASKED]
        lengths = [len(guess.ids) for guess in asked]
        share = np.repeat([1 / length for length in lengths], lengths)[:, None]
        without = np.repeat([guess.unit for guess in asked], lengths, axis=0)
        without = without - share * values.of([piece for guess in asked for piece in guess.ids])  # [m, d]
        effects = values.of(alone.pieces)  # [n, d]
        nearer = (without @ population.unit)[:, None] + share * (effects @ population.unit)
        square = (without**2).sum(1)[:, None] + 2 * share * (without @ effects.T) + share**2 * (effects**2).sum(1)
        cosines = (nearer / np.sqrt(np.maximum(square, 1e-6))).max(0)
        for index in np.argsort(-cosines, kind="stable")[:OFFERED]:
            population.pieces[alone.pieces[index]] += 1

    def near(
        self, population: Population, parents: Sequence[Guess], longest: int, sense: float
    ) -> dict[tuple[int, ...], float]:
        """Texts near the parents, texts near the best of those, and so on, with the cosines foreseen of them all."""
        out: dict[tuple[int, ...], float] = {}
        for level in range(self.depth):
            self._made = {}
            out |= super().near(population, parents, longest, sense)
            if level + 1 < self.depth and self._made:
                parents = self.foresee(population, sense)
        return out

    def sift(
        self, population: Population, texts: Mapping[tuple[int, ...], Guess], nats: np.ndarray, count: int, sense: float
    ) -> dict[tuple[int, ...], float]:
        """As without looking ahead, remembering from which guess a text was made."""
        chosen = Guided.sift(population, texts, nats, count, sense)
        self._made |= {text: texts[text] for text in chosen}
        return chosen

    def foresee(self, population: Population, sense: float) -> list[Guess]:
        """The best texts of this level, read as if they had been embedded where they are foreseen."""
        rows, parents = list(self._made), list(self._made.values())
        known = np.stack([parent.unit for parent in parents])
        vectors = population.values.moved(rows, [parent.ids for parent in parents], known).astype(np.float32)
        cosines = vectors @ population.unit
        worth = score(np.minimum(cosines, NEAREST), self.nats(population, rows), sense)
        top = np.argsort(-worth, kind="stable")[:WIDE]
        embeddings = torch.from_numpy(vectors[top]).to(population.target.device)
        ahead = [
            Guess(text, float(cosines[index]), embedding, rows[index])
            for index, text, embedding in zip(
                top, self.embedder.decode([rows[index] for index in top]), embeddings, strict=True
            )
        ]
        self.read(population, ahead)
        return ahead
