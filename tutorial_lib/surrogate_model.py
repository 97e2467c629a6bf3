"""The surrogate's model: what texts do to the vector, learnt from the embedder's answers for one target.

A transformer's vector has the order of the pieces in it: what stands beside what moves it. :class:`Surrogate` learns
that by ridge regression of the vectors on the shares of pieces, of pairs of neighbours and of pairs with a gap, a
string kernel as in the Bayesian optimisation of texts (Moss et al. 2020, *BOSS*). With :class:`WordsAlone` it begins
with what each word says by itself, so that it has a view of words that no text so far had. It asks for no gradient and
needs no other network. Used by :mod:`tutorial_lib.surrogate`; explained in chapter 6; measured on the page *What we
tried*.
"""

from __future__ import annotations

import itertools
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
_DISTANCES = (1, 2, 3)  # of the pieces of a pair, which weighs less by their square
_BEGIN, _END = -1, -2  # beside the first piece and the last one
_KIN = 1.0  # weight in the kernel of what words say alone, beside 1 for pieces
_SHIFT, _BASE = 2, 1 << 21  # a feature is one number: distance, first piece and second piece, in this base

Feature = int | tuple[int, int, int]  # a piece, or two pieces and their distance


def features(ids: tuple[int, ...]) -> Mapping[Feature, float]:
    """What a text is to the surrogate: shares of its pieces, of its neighbours (ends included) and of other pairs."""
    _, keys, shares = _counted([ids], _DISTANCES)
    found: dict[Feature, float] = {}
    for key, share in zip(keys.tolist(), shares.tolist(), strict=True):
        distance, first, second = key // _BASE**2, key // _BASE % _BASE - _SHIFT, key % _BASE - _SHIFT
        feature = (first, second, distance) if distance else second
        found[feature] = found.get(feature, 0.0) + share
    return found


def _key(feature: Feature) -> int:
    first, second, distance = feature if isinstance(feature, tuple) else (-_SHIFT, feature, 0)
    return (distance * _BASE + first + _SHIFT) * _BASE + second + _SHIFT


def _counted(
    texts: Sequence[tuple[int, ...]], distances: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, number and share of every feature of texts, one entry for each time it occurs. All texts at once, because
    a round asks about thousands."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    inside = np.arange(lengths.max(initial=0)) < lengths[:, None]
    table = np.full((len(texts), inside.shape[1] + 2), _END + _SHIFT)
    table[:, 0] = _BEGIN + _SHIFT
    pieces = table[:, 1:-1]
    pieces[inside] = np.fromiter(itertools.chain.from_iterable(texts), dtype=np.int64) + _SHIFT
    rows, keys, shares = [], [], []
    for distance in (0, *distances):
        if distance == 0:
            first, second, kept = np.zeros_like(pieces), pieces, inside
        elif distance == 1:
            first, second, kept = table[:, :-1], table[:, 1:], np.arange(table.shape[1] - 1) <= lengths[:, None]
        else:
            first, second, kept = pieces[:, :-distance], pieces[:, distance:], inside[:, distance:]
        row = np.nonzero(kept)[0]
        rows.append(row)
        keys.append(((distance * _BASE + first) * _BASE + second)[kept])
        weight = _PAIRS**0.5 / distance if distance else 1.0
        shares.append(weight / np.maximum(1, lengths)[row])
    return np.concatenate(rows), np.concatenate(keys), np.concatenate(shares)


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
        self._row = np.full(max(self.pieces) + 2, -1)  # of each piece, the last entry for all beyond
        self._row[self.pieces] = np.arange(len(self.pieces))

    def means(self, texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """float32 [n, d]: the mean over each text's pieces, those that are no word counting as nothing."""
        rows, keys, shares = _counted(texts, ())
        words = self._row[np.minimum(keys - _SHIFT, len(self._row) - 1)]
        kept = words >= 0
        entries = (shares[kept].astype(np.float32), (rows[kept], words[kept]))
        return sparse.csr_array(entries, shape=(len(texts), len(self.vectors))) @ self.vectors


class Surrogate(PieceValues):
    """What pieces and pairs of pieces do to the vector, learnt from the texts embedded so far for one target.

    Ridge regression of unit embeddings [d] on :func:`features` (of :attr:`distances`), near texts counting most, in its
    dual form, the smaller one with many more features than texts. With ``words`` it is a Gaussian process whose mean is
    a multiple of what the words of a text say alone, by generalised least squares (Rasmussen and Williams 2006, section
    2.7), and in whose kernel words that say nearly the same do nearly the same.
    """

    distances: tuple[int, ...] = _DISTANCES  #: of the pieces of the pairs it knows; none: it knows pieces only

    def __init__(self, words: WordsAlone | None = None) -> None:
        super().__init__()
        self.words = words
        self._keys = np.zeros(0, dtype=np.int64)  # of the features met, ascending
        self._alone = np.zeros((0, 0), dtype=np.float32)  # [d, d], from what words say alone to what they do

    def fit(self) -> None:
        """Learn from the nearest texts remembered."""
        kept = np.argsort(-np.array(self._cosines), kind="stable")[:_LEARNT]
        texts, cosines = [self._texts[i] for i in kept], np.array([self._cosines[i] for i in kept])
        vectors = np.stack([self._vectors[i] for i in kept]).astype(np.float64)
        self._keys = np.unique(_counted(texts, self.distances)[1])
        shares = self._matrix(texts)
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

    def of(self, pieces: Sequence[Feature]) -> np.ndarray:
        """float32 [n, d]: what each piece, or pair, adds per share; nothing if it was never seen and is no word."""
        effects = np.zeros((len(pieces), self._vectors[0].shape[0]), dtype=np.float32)
        columns, met = self._find(np.array([_key(piece) for piece in pieces], dtype=np.int64))
        effects[met] = self._effects[columns]
        if self.words is not None:
            alone = self.words.means([() if isinstance(piece, tuple) else (piece,) for piece in pieces])
            effects += alone @ self._alone
        return effects

    def words_towards(self, target: np.ndarray, count: int) -> list[int]:
        """The ``count`` pieces that are words and lead farthest towards a target [d]; needs ``words``."""
        assert self.words is not None
        nearer = self.words.vectors @ (self._alone @ target)
        columns, met = self._find(np.array([_key(piece) for piece in self.words.pieces], dtype=np.int64))
        nearer[met] += self._effects[columns] @ target
        return [self.words.pieces[row] for row in np.argsort(-nearer, kind="stable")[:count]]

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
        foreseen = self._matrix(texts) @ self._effects
        return foreseen if self.words is None else foreseen + self.words.means(texts) @ self._alone

    def _matrix(self, texts: Sequence[tuple[int, ...]]) -> sparse.csr_array:
        """float32 [n, features]: shares of features, those never met left out."""
        rows, keys, shares = _counted(texts, self.distances)
        columns, met = self._find(keys)
        entries = (shares[met].astype(np.float32), (rows[met], columns))
        return sparse.csr_array(entries, shape=(len(texts), len(self._keys)))

    def _find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns of those features that were met, and which they are."""
        columns = np.searchsorted(self._keys, keys)
        met = np.flatnonzero(np.append(self._keys, -1)[columns] == keys)
        return columns[met], met
