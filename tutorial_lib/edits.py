"""Last local edits: small changes of a guess for the search to try beside the corrector's rewritings.

A corrector gets most words and then repeats itself; what is left is usually a word in the wrong place, a missing
one, or one of several near-synonyms. Three kinds of edit mend these: *moves* of one word piece, pieces *borrowed*
from the other good guesses, and, because an open embedder's weights are the attacker's too, pieces that the
*gradient* of the cosine points to (first-order substitution as in HotFlip, Ebrahimi et al. 2018). Explained in
chapter 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tutorial_lib.embedder import Embedder

#: A gradient is one forward and one backward pass, as much work as three embedded texts, and is counted so.
GRADIENT_QUERIES = 3
_TOP = 128  # substitutions kept per gradient, best first


@dataclass(frozen=True)
class Edits:
    """Proposals for one guess by kind, each as embedder ids, most promising or random first."""

    moves: list[list[int]]
    borrowed: list[list[int]]
    substituted: list[list[int]]
    inserted: list[list[int]]

    def mixed(self) -> Iterator[list[int]]:
        """All proposals, one kind after the other in turn."""
        queues: list[Iterator[list[int]]] = [
            iter(kind) for kind in (self.substituted, self.moves, self.inserted, self.borrowed)
        ]
        while queues:
            for queue in list(queues):
                row = next(queue, None)
                if row is None:
                    queues.remove(queue)
                else:
                    yield row


class LocalEdits:
    """Proposes edits; ``vocabulary`` int [V] lists the embedder ids that may be written."""

    def __init__(self, embedder: Embedder, vocabulary: np.ndarray) -> None:
        self.embedder = embedder
        self.vocabulary = torch.as_tensor(vocabulary.astype(np.int64), device=embedder.device)
        self._table = embedder.transformer.get_input_embeddings().weight.detach()[
            self.vocabulary
        ]  # [V, width]
        self._filler = embedder.tokenizer.mask_token_id
        #: Queries that :meth:`propose` spends on each guess.
        self.queries = GRADIENT_QUERIES * (1 if self._filler is None else 2)

    def propose(
        self,
        guesses: Sequence[list[int]],
        others: Sequence[Sequence[list[int]]],
        target: torch.Tensor,
        rngs: Sequence[np.random.Generator],
    ) -> list[Edits]:
        """Edits of n guesses (embedder ids), given other good guesses of each and target vectors [n, d].

        Spends one gradient on each guess, and one on the guess with a blank inserted at a random place.
        """
        gaps = [int(rng.integers(len(ids) + 1)) for ids, rng in zip(guesses, rngs, strict=True)]
        rows = [list(ids) for ids in guesses]
        if self._filler is not None:
            rows += [[*ids[:gap], self._filler, *ids[gap:]] for ids, gap in zip(guesses, gaps, strict=True)]
        self.embedder.queries += self.queries * len(guesses)
        gradients = self.embedder.gradients(rows, target.repeat(len(rows) // max(1, len(guesses)), 1))
        out = []
        for index, ids in enumerate(guesses):
            pieces = {piece for other in others[index] for piece in other} - set(ids)
            inserted = []
            if self._filler is not None:
                gap = gaps[index]
                column = gradients[len(guesses) + index][gap : gap + 1]
                inserted = [[*ids[:gap], piece, *ids[gap:]] for _, piece in self._best(column)]
            substituted = [
                [*ids[:place], piece, *ids[place + 1 :]]
                for place, piece in self._best(gradients[index], current=ids)
                if ids[place] != piece
            ]
            out.append(
                Edits(
                    moves=_shuffled(moves(ids), rngs[index]),
                    borrowed=_shuffled(borrowed(ids, sorted(pieces)), rngs[index]),
                    substituted=substituted,
                    inserted=inserted,
                )
            )
        return out

    def _best(self, gradient: torch.Tensor, current: list[int] | None = None) -> list[tuple[int, int]]:
        """(place, embedder id) pairs by the first-order change of the cosine, best first; gradient [t, width]."""
        gain = gradient @ self._table.T  # [t, V]
        if current is not None:
            weight = self.embedder.transformer.get_input_embeddings().weight.detach()
            gain = gain - (gradient * weight[torch.tensor(current, device=gradient.device)]).sum(
                1, keepdim=True
            )
        flat = gain.flatten().topk(min(_TOP, gain.numel())).indices.tolist()
        size = len(self.vocabulary)
        ids = self.vocabulary[torch.tensor([index % size for index in flat], device=gradient.device)].tolist()
        return [(index // size, piece) for index, piece in zip(flat, ids, strict=True)]


def moves(ids: Sequence[int]) -> list[list[int]]:
    """Every text that differs by moving one piece to another place."""
    found = {}
    for source in range(len(ids)):
        rest = [*ids[:source], *ids[source + 1 :]]
        for place in range(len(ids)):
            row = [*rest[:place], ids[source], *rest[place:]]
            found[tuple(row)] = row
    found.pop(tuple(ids), None)
    return list(found.values())


def borrowed(ids: Sequence[int], pieces: Iterable[int]) -> list[list[int]]:
    """Every text that differs by one of ``pieces`` replacing or joining the others, or by one piece dropped."""
    found = [[*ids[:place], *ids[place + 1 :]] for place in range(len(ids)) if len(ids) > 1]
    for piece in pieces:
        found += [[*ids[:place], piece, *ids[place + 1 :]] for place in range(len(ids))]
        found += [[*ids[:place], piece, *ids[place:]] for place in range(len(ids) + 1)]
    return found


def _shuffled(rows: list[list[int]], rng: np.random.Generator) -> list[list[int]]:
    return [rows[index] for index in rng.permutation(len(rows))]
