"""Beam search over word pieces, at the price that a search with thousands of candidates can pay.

What it keeps is what ``transformers``' ``generate(num_beams=...)`` keeps: the ``beams`` likeliest beginnings at each
place, and of the texts that ended the ``beams`` with the highest log-probability per piece, end mark included. What
differs is the work. The first place is read once for all beams of a row, texts that are done leave the batch, and no
array as wide as the vocabulary is kept or touched more often than it must be: in networks as small as ours those
arrays are most of the price. Explained in chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, EncoderDecoderCache

NEVER = -1e9  # the score of a beam that is not there
_STATES = 128  # whose logits are held at once: some megabytes, which a processor's cache holds


@dataclass
class _Decoder:
    """One place after the other: the decoder of a T5 with what it has read so far, for m rows."""

    t5: Any
    encoded: Tensor  # [m, s, width]
    mask: Tensor | None  # [m, s]
    aligned: Tensor | None  # [m, t, width], added to the decoder's inputs place by place

    def __post_init__(self) -> None:
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.place = 0

    def read(self, last: Tensor) -> Tensor:
        """Model ids [m] of the pieces at this place -> decoder states [m, width], and on to the next place."""
        words = self.t5.get_input_embeddings()(last)[:, None]
        if self.aligned is not None:
            words = words + self.aligned[:, self.place : self.place + 1].to(words.dtype)
        states = self.t5.decoder(
            inputs_embeds=words, encoder_hidden_states=self.encoded, encoder_attention_mask=self.mask,
            past_key_values=self.cache, use_cache=True,
        ).last_hidden_state[:, 0]  # fmt: skip
        self.place += 1
        t5 = self.t5.config
        return states * t5.d_model**-0.5 if t5.tie_word_embeddings else states

    def take(self, rows: Tensor, *, same: bool = False) -> None:
        """Go on with ``rows`` [m'] of the m; ``same``: each takes the place of one with the same vector."""
        self.cache.self_attention_cache.batch_select_indices(rows)
        if not same:
            self.cache.cross_attention_cache.batch_select_indices(rows)
            self.encoded = self.encoded[rows]
            self.mask = None if self.mask is None else self.mask[rows]
            self.aligned = None if self.aligned is None else self.aligned[rows]


def beam_search(
    t5: Any,
    encoded: Tensor,
    mask: Tensor | None,
    *,
    beams: int,
    length: int,
    aligned: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``beams`` texts of up to ``length`` pieces that a T5 finds likeliest for each row.

    encoded: encoder states [n, s, width].  mask: [n, s], or None.  aligned: [n, t, width], t > length, or None.
    Returns model ids int64 [n, beams, length + 1], end marks included and padded, the likeliest first, and their
    log-probabilities per piece float32 [n, beams]. After the last piece allowed nothing but the end mark may follow,
    which then costs nothing. Deterministic; a row does not depend on the rows beside it.
    """
    n, device, config = len(encoded), encoded.device, t5.config
    end, weight = config.eos_token_id, t5.lm_head.weight
    if torch.is_autocast_enabled(device.type):  # cast once, not at every place
        weight = weight.to(torch.get_autocast_dtype(device.type))
    done = torch.full((n, beams, length + 1), config.pad_token_id, device=device)
    done_scores = torch.full((n, beams), NEVER, device=device)
    decoder = _Decoder(t5, encoded, mask, aligned)
    left = torch.arange(n, device=device)  # rows that are not finished
    ids = torch.zeros(n, 1, 0, dtype=torch.long, device=device)  # [n, b, place]: one beam at first
    scores = torch.zeros(n, 1, device=device)
    last = torch.full((n,), config.decoder_start_token_id, device=device)
    for place in range(length + 1):
        if place == length:
            top, beam = scores, torch.arange(scores.shape[1], device=device).expand_as(scores)
            piece = torch.full_like(beam, end)
        else:
            near, index = _likeliest(decoder.read(last), weight, 2 * beams)  # [n b, k]: no beam can give more
            near = near.unflatten(0, scores.shape) + scores[:, :, None]  # [n, b, k]
            top, order = near.flatten(1).topk(min(2 * beams, near[0].numel()))
            beam, piece = order // near.shape[2], index.view(len(near), -1).gather(1, order)
        ids = torch.cat([ids.gather(1, beam[:, :, None].expand(-1, -1, place)), piece[:, :, None]], 2)
        ended = piece == end
        # Of what ended, only the likeliest count: the second half of the list is there so that enough go on.
        new = (top / (place + 1)).masked_fill(~ended, NEVER)[:, :beams]
        both = torch.cat([done_scores[left], new], 1)
        best, order = both.topk(beams)
        padded = functional.pad(ids[:, :beams], (0, length - place), value=config.pad_token_id)
        texts = torch.cat([done[left], padded], 1)
        done[left], done_scores[left] = texts.gather(1, order[:, :, None].expand(-1, -1, length + 1)), best
        if place == length:
            break
        scores, order = top.masked_fill(ended, NEVER).topk(min(beams, top.shape[1]))
        ids = ids.gather(1, order[:, :, None].expand(-1, -1, place + 1))
        beam = beam.gather(1, order)
        # A row is finished when all its beams are texts, and what goes on is no better than the least of them.
        goes_on = scores[:, 0] / (place + 1) > best[:, -1]
        if not goes_on.any():
            break
        before = near.shape[1]  # beams that were read at this place
        rows = (torch.arange(len(left), device=device)[:, None] * before + beam)[goes_on].flatten()
        decoder.take(rows, same=before == beams and bool(goes_on.all()))
        left, ids, scores = left[goes_on], ids[goes_on], scores[goes_on]
        last = ids[:, :, -1].flatten()
    return done, done_scores


def _likeliest(states: Tensor, weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` likeliest pieces after each of m decoder states: log-probabilities float32 and ids, [m, count]."""
    found = []
    for part in states.split(_STATES):
        logits = functional.linear(part, weight).float()  # [m, V]
        near, index = logits.topk(min(count, len(weight)))
        most = near[:, :1]
        found.append((near - most - logits.sub_(most).exp_().sum(1, keepdim=True).log(), index))
    return torch.cat([near for near, _ in found]), torch.cat([index for _, index in found])
