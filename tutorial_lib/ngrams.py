"""A small n-gram language model, to measure how many bits real text needs.

    NgramModel      interpolated absolute discounting; exact, fast, and a proper distribution

It is a measuring instrument, not part of the attack; chapter 1 uses it through `information.cross_entropy`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .errors import TutorialError


class NgramModel:
    """An interpolated n-gram model with absolute discounting (Ney, Essen and Kneser 1994).

    p(w | h) = max(count(hw) - D, 0) / count(h) + D * kinds(h) / count(h) * p(w | h without its first token),
    down to the uniform distribution, so that every token has some probability and all of them sum to 1.
    Counts live in sorted arrays of n-grams packed into one integer each: two million tokens fit in seconds.
    """

    def __init__(self, token_ids: Sequence[Sequence[int]], vocabulary_size: int, order: int = 3) -> None:
        largest = int(math.log(2**63) / math.log(max(2, vocabulary_size)))
        if not 1 <= order <= largest:
            raise TutorialError(
                f"NgramModel was given order={order}; with {vocabulary_size} tokens it takes 1 to {largest}."
            )
        _check_ids(flat_ids(token_ids, "NgramModel"), vocabulary_size)
        self.vocabulary_size = vocabulary_size
        self.order = order
        self._levels = [self._count(token_ids, length) for length in range(1, order + 1)]

    def log2_probabilities(self, ids: Sequence[int]) -> np.ndarray:
        """log2 p of each token given those before it in the same text: [len(ids)] float64, below 0."""
        sequence = np.asarray(ids, dtype=np.int64)
        _check_ids(sequence, self.vocabulary_size)
        p = np.full(len(sequence), 1 / self.vocabulary_size)
        for length, (grams, counts, contexts, totals, kinds, discount) in enumerate(self._levels, start=1):
            if len(sequence) < length:
                break
            packed = self._pack(sequence, length)  # [len - length + 1], one per token that has a context
            context = packed // self.vocabulary_size
            count = _look_up(grams, counts, packed)
            total, kind = _look_up(contexts, totals, context), _look_up(contexts, kinds, context)
            lower = p[length - 1 :]
            seen = total > 0  # an unseen context says nothing: keep the shorter one's answer
            mixed = (np.maximum(count - discount, 0) + discount * kind * lower) / np.where(seen, total, 1)
            p[length - 1 :] = np.where(seen, mixed, lower)
        return np.log2(p)

    def _count(self, token_ids: Sequence[Sequence[int]], length: int) -> tuple:
        texts = [np.asarray(ids, dtype=np.int64) for ids in token_ids if len(ids) >= length]
        rows = [self._pack(text, length) for text in texts]
        packed = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        grams, counts = np.unique(packed, return_counts=True)
        contexts, start = np.unique(grams // self.vocabulary_size, return_index=True)
        totals = np.add.reduceat(counts, start) if len(counts) else counts
        kinds = np.diff(np.append(start, len(grams)))  # distinct tokens seen after each context
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once and twice else 0.5  # the usual leave-one-out estimate
        return grams, counts, contexts, totals, kinds, discount

    def _pack(self, sequence: np.ndarray, length: int) -> np.ndarray:
        """Every run of `length` tokens as one integer in base |V|: the context is the quotient by |V|."""
        size = len(sequence) - length + 1
        packed = np.zeros(size, dtype=np.int64)
        for offset in range(length):
            packed = packed * self.vocabulary_size + sequence[offset : offset + size]
        return packed


def flat_ids(token_ids: Sequence[Sequence[int]], caller: str) -> np.ndarray:
    """All ids in one int64 array; TutorialError (naming `caller`) when there are none."""
    rows = [np.asarray(ids, dtype=np.int64) for ids in token_ids if len(ids)]
    if not rows:
        raise TutorialError(f"{caller} was given no tokens; give at least one text with one token.")
    return np.concatenate(rows)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values where keys == wanted, else 0; keys sorted."""
    if not len(keys):
        return np.zeros(len(wanted))
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0).astype(np.float64)


def _check_ids(ids: np.ndarray, vocabulary_size: int) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= vocabulary_size):
        raise TutorialError(
            f"The token ids run from {ids.min()} to {ids.max()}, outside a vocabulary of {vocabulary_size}; "
            "give the size of the tokenizer they came from."
        )
