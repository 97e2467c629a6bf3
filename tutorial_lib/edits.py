"""Last local edits: every text one small change away from a good guess, the likeliest first.

A corrector gets most words and then repeats itself; what is left is usually a run of words in the wrong place, a
missing article, or one of several near-synonyms. Edits mend these: runs of pieces change places, pieces are dropped,
replaced or inserted. There are hundreds for one guess, and embedding them all would be wasteful, so they are tried in
the order of their likelihood p(x | e) under the inverter: a guess repaired is a sentence again, and the inverter knows
sentences. Only the networks are asked for that; the embedder is still a black box. Explained in chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tutorial_lib import parallel
from tutorial_lib.corrector import Corrector
from tutorial_lib.embedder import Embedder
from tutorial_lib.inverter import Inverter

LIKELY = 24  # pieces tried at each place: the corrector's likeliest ...
NEAR = 8  # ... and the nearest to the one that stands there, its inflections and synonyms
_ORDERS = 1000  # new orders of one guess; up to 17 pieces, that is all of them
READ = 500  # edits that are read to the end: those whose first changed piece is likeliest at its place


class LocalEdits:
    """Lists edits of guesses, best first, with the networks that made the guesses."""

    def __init__(self, embedder: Embedder, inverter: Inverter, corrector: Corrector) -> None:
        self.embedder, self.inverter, self.corrector = embedder, inverter, corrector
        table = functional.normalize(corrector.backbone.get_input_embeddings().weight.detach().float(), dim=1)
        self._table = table  # [V, width]
        self._special = torch.tensor(corrector.special, device=table.device)

    @torch.inference_mode()
    def propose(
        self,
        guesses: Sequence[list[int]],
        embeddings: Tensor,
        target: Tensor,
        rngs: Sequence[np.random.Generator],
    ) -> list[list[str]]:
        """Edits of n guesses (embedder ids), given their embeddings and the targets, [n, d] each: texts, best first.

        No query is spent. ``rngs`` choose which orders to try of a guess that has very many.
        """
        ids = self.corrector.to_model_ids(guesses)  # [n, t]
        likely = self.corrector.next_pieces(target, ids, embeddings)  # [n, t, V]
        writable = likely.shape[2] - len(self._special)
        likely[:, :, self._special] = -torch.inf
        likely = likely.topk(min(LIKELY, writable), dim=2).indices
        with self.inverter.autocast():
            encoded = self.inverter.encode(self.inverter.encoder_inputs(target))

        @torch.inference_mode()  # which is said of one thread alone
        def edits(row: int) -> list[str]:
            guess = guesses[row]
            there = ids[row, : len(guess)]
            near = self._table[there] @ self._table.T  # [t, V]
            near[:, self._special] = -torch.inf
            near = near.topk(min(NEAR, writable), dim=1).indices
            at = self.corrector.to_embedder_ids(likely[row, : len(guess) + 1])
            beside = self.corrector.to_embedder_ids(near)
            found = reordered(guess, rngs[row])
            # ``at`` has one place more, the end, where nothing stands to be replaced
            found += changed(guess, at, [[*a, *b] for a, b in zip(at, beside, strict=False)])
            labels = self.inverter.to_model_ids([guess, *found])
            scores = self.inverter.likelihood(encoded[row : row + 1], labels[1:], labels[0], keep=READ)
            order = scores.argsort(descending=True, stable=True)[:READ].tolist()
            return list(dict.fromkeys(self.embedder.decode([found[index] for index in order])))

        with parallel.cores(self.inverter.device) as spread:
            return list(spread(edits, range(len(guesses))))


def reordered(ids: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
    """Texts in which two neighbouring runs of pieces, or two pieces, have changed places; at most ``_ORDERS``."""
    ids, n = list(ids), len(ids)
    found: dict[tuple[int, ...], None] = {}
    for i in range(n):
        for j in range(i + 1, n):
            for k in range(j + 1, n + 1):
                found[(*ids[:i], *ids[j:k], *ids[i:j], *ids[k:])] = None
            found[(*ids[:i], ids[j], *ids[i + 1 : j], ids[i], *ids[j + 1 :])] = None
    found.pop(tuple(ids), None)
    rows = [list(row) for row in found]
    if len(rows) > _ORDERS:
        rows = [rows[index] for index in rng.choice(len(rows), _ORDERS, replace=False)]
    return rows


def changed(
    ids: Sequence[int], inserted: Sequence[Sequence[int]], replaced: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Texts in which one piece is dropped, inserted before place p (from ``inserted[p]``, the last of them for the
    end), or replaced at place p (from ``replaced[p]``)."""
    ids = list(ids)
    found: dict[tuple[int, ...], None] = {}
    for place in range(len(ids)):
        if len(ids) > 1:
            found[(*ids[:place], *ids[place + 1 :])] = None
        for piece in replaced[place]:
            found[(*ids[:place], piece, *ids[place + 1 :])] = None
    for place, pieces in enumerate(inserted):
        for piece in pieces:
            found[(*ids[:place], piece, *ids[place:])] = None
    found.pop(tuple(ids), None)
    return [list(row) for row in found]
