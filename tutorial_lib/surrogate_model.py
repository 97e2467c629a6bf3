"""The surrogate's model: what texts do to the vector, learnt from the embedder's answers for one target.

A transformer's vector has the order of the pieces in it: what stands beside what moves it. :class:`Surrogate` learns
that by ridge regression of the vectors on the shares of pieces, of pairs of neighbours and of pairs with a gap, a
string kernel as in the Bayesian optimisation of texts (Moss et al. 2020, *BOSS*). With :class:`WordsAlone` it begins
with what each word says by itself, so that it has a view of words that no text so far had. It asks for no gradient and
needs no other network. Used by :mod:`tutorial_lib.surrogate`; explained in chapter 6; measured on the page *What we
tried*.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import linalg, sparse

from tutorial_lib.embedder import Embedder
from tutorial_lib.errors import TextError
from tutorial_lib.neighbours import PieceValues
from tutorial_lib.word_lists import WordList

_LEARNT = 1000  # nearest texts that are learnt from
_RIDGE = 1e-3
_SHARPNESS = 12.0  # a text farther by 0.01 of cosine counts less by a factor of e^-0.12 ...
_LEAST = 0.02  # ... but never less than so much of the nearest one
_PAIRS = 0.3  # weight of pairs in the kernel, beside 1 for pieces
_GAPS = (2, 3)  # distances of the pieces of other pairs, which weigh less by their square
_BEGIN, _END = -1, -2  # beside the first piece and the last one
_KIN = 1.0  # weight in the kernel of what words say alone, beside 1 for pieces

Feature = int | tuple[int, int, int]  # a piece, or two pieces and their distance


def features(ids: tuple[int, ...]) -> Mapping[Feature, float]:
    """What a text is to the surrogate: shares of its pieces, of its neighbours (ends included) and of other pairs."""
    return _features(ids, _GAPS, _PAIRS)


@functools.lru_cache(maxsize=8192)  # the texts learnt from come again in every round
def _features(ids: tuple[int, ...], gaps: tuple[int, ...], pairs: float) -> Mapping[Feature, float]:
    found: dict[Feature, float] = {}
    share = 1 / max(1, len(ids))
    for piece in ids:
        found[piece] = found.get(piece, 0.0) + share
    for distance in (1, *gaps):
        row = (_BEGIN, *ids, _END) if distance == 1 else ids
        weight = pairs**0.5 * share / distance
        for first, second in zip(row, row[distance:], strict=False):
            pair = (first, second, distance)
            found[pair] = found.get(pair, 0.0) + weight
    return found


class WordsAlone:
    """What pieces say alone: the embeddings of those that are a word of a list, less their mean.

    ``pieces``: n embedder ids. ``vectors``: float32 [n, d]. Raises :class:`TextError` when no word is one piece.
    """

    def __init__(self, words: WordList, embedder: Embedder) -> None:
        ids = embedder.token_ids([" ".join(word) for word in words.words])
        single = [row for row, pieces in enumerate(ids) if len(pieces) == 1]
        if not single:
            raise TextError("None of the words is one piece of the embedder's vocabulary: take those of whole_words.")
        self.pieces = [ids[row][0] for row in single]
        self.vectors = words.vectors[single] - words.vectors[single].mean(0)
        self._row = {piece: row for row, piece in enumerate(self.pieces)}

    def means(self, texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """float32 [n, d]: the mean over each text's pieces, those that are no word counting as nothing."""
        rows = [[self._row[piece] for piece in text if piece in self._row] for text in texts]
        starts = np.cumsum([0, *(len(row) for row in rows)])
        flat = np.array([row for found in rows for row in found], dtype=np.int64)
        shares = np.repeat([1 / max(1, len(text)) for text in texts], np.diff(starts)).astype(np.float32)
        return sparse.csr_array((shares, flat, starts), shape=(len(texts), len(self.vectors))) @ self.vectors


class Surrogate(PieceValues):
    """What pieces and pairs of pieces do to the vector, learnt from the texts embedded so far for one target.

    Ridge regression of unit embeddings [d] on :meth:`features`, near texts counting most, in its dual form, the smaller
    one with many more features than texts. With ``words`` it is a Gaussian process whose mean is a multiple of what the
    words of a text say alone, by generalised least squares (Rasmussen and Williams 2006, section 2.7), and in whose
    kernel words that say nearly the same do nearly the same.
    """

    def __init__(self, words: WordsAlone | None = None) -> None:
        super().__init__()
        self.words = words
        self._alone = np.zeros((0, 0), dtype=np.float32)  # [d, d], from what words say alone to what they do

    def features(self, ids: tuple[int, ...]) -> Mapping[Feature, float]:
        """What a text is to this model; a subclass may know more or less of it."""
        return features(ids)

    def fit(self) -> None:
        """Learn from the nearest texts remembered."""
        kept = np.argsort(-np.array(self._cosines), kind="stable")[:_LEARNT]
        texts, cosines = [self._texts[i] for i in kept], np.array([self._cosines[i] for i in kept])
        vectors = np.stack([self._vectors[i] for i in kept]).astype(np.float64)
        rows = [self.features(text) for text in texts]
        self._column = {}
        for row in rows:
            for feature in row:
                self._column.setdefault(feature, len(self._column))  # type: ignore[arg-type]
        shares = self._matrix(rows)
        weights = np.exp(_SHARPNESS * (cosines - cosines.max())) + _LEAST
        mean = weights / weights.sum()
        kernel, wanted = (shares @ shares.T).toarray().astype(np.float64), vectors - mean @ vectors
        if self.words is not None:
            said = self.words.means(texts).astype(np.float64)
            kernel += _KIN * said @ said.T
            wanted = np.hstack([wanted, said - mean @ said])
        level = kernel @ mean
        kernel += mean @ level - level[:, None] - level  # of centred features
        kernel[np.diag_indices_from(kernel)] += _RIDGE / weights
        dual = linalg.solve(kernel, wanted, assume_a="pos")
        if self.words is not None:
            centred = wanted[:, vectors.shape[1] :]
            dual, of_words = np.hsplit(dual, [vectors.shape[1]])
            power = float((centred * of_words).sum())  # nothing where no text has a word
            slope = float((centred * dual).sum()) / power if power > 0 else 0.0
            dual -= slope * of_words
            self._alone = (_KIN * said.T @ dual + slope * np.eye(dual.shape[1])).astype(np.float32)
        self._effects = shares.T @ dual.astype(np.float32)  # [features, d]

    def of(self, pieces: Sequence[int]) -> np.ndarray:
        """float32 [n, d]: what each piece adds per share; nothing if it was never seen and is no word."""
        if self.words is None:
            return super().of(pieces)
        return super().of(pieces) + self.words.means([(piece,) for piece in pieces]) @ self._alone

    def of_words(self) -> np.ndarray:
        """float32 [n, d]: the same of all pieces that are a word; needs ``words``."""
        assert self.words is not None
        effects = self.words.vectors @ self._alone
        met = [(row, self._column[piece]) for row, piece in enumerate(self.words.pieces) if piece in self._column]
        if met:
            rows, columns = np.array(met).T
            effects[rows] += self._effects[columns]
        return effects

    def moved(
        self, texts: Sequence[tuple[int, ...]], parents: Sequence[tuple[int, ...]], known: np.ndarray
    ) -> np.ndarray:
        """Expected unit embeddings [n, d] of texts, each made from a parent whose embedding [n, d] is known."""
        row = {parent: number for number, parent in enumerate(dict.fromkeys(parents))}
        before = self._foreseen(list(row))[[row[parent] for parent in parents]]
        known = known / np.linalg.norm(known, axis=1, keepdims=True)
        expected = known + self._foreseen(texts) - before
        return expected / np.linalg.norm(expected, axis=1, keepdims=True)

    def _foreseen(self, texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[n, d], up to a constant."""
        foreseen = self._matrix([self.features(text) for text in texts]) @ self._effects
        return foreseen if self.words is None else foreseen + self.words.means(texts) @ self._alone

    def _matrix(self, rows: Sequence[Mapping[Feature, float]]) -> sparse.csr_array:
        """[n, features]: rows of features, those never met left out."""
        columns: Mapping[Feature, int] = self._column  # type: ignore[assignment]
        known = [[(columns[feature], value) for feature, value in row.items() if feature in columns] for row in rows]
        starts = np.cumsum([0, *(len(row) for row in known)])
        flat = [entry for row in known for entry in row]
        indices, values = (
            np.array([i for i, _ in flat], dtype=np.int64),
            np.array([v for _, v in flat], dtype=np.float32),
        )
        return sparse.csr_array((values, indices, starts), shape=(len(rows), len(columns)))
