"""Our beam search against the one of transformers, text by text and score by score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from tutorial_lib import Inverter
from tutorial_lib.beam import beam_search

ROWS, LENGTH = 5, 7


def lively(make_tiny: Any, seed: int) -> Any:
    """A random T5 whose texts end at many lengths."""
    t5 = make_tiny(Inverter, seed=seed).backbone
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in t5.parameters():
            if value.ndim == 2:
                value.copy_(torch.randn(value.shape, generator=rng) * 0.5)
        t5.shared.weight[t5.config.eos_token_id] *= 2  # a long vector is now very likely, now very unlikely
    return t5.eval()


def by_transformers(
    t5: Any, encoded: torch.Tensor, mask: torch.Tensor | None, beams: int, length: int, aligned: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    found = t5.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
        attention_mask=torch.ones(encoded.shape[:2]) if mask is None else mask,
        num_beams=beams, num_return_sequences=beams, do_sample=False, length_penalty=1.0,
        max_new_tokens=length + 1, forced_eos_token_id=t5.config.eos_token_id,
        return_dict_in_generate=True, output_scores=True, **({} if aligned is None else {"aligned": aligned}),
    )  # fmt: skip
    ids = found.sequences[:, 1:].reshape(len(encoded), beams, -1)
    return ids, found.sequences_scores.reshape(len(encoded), beams)


def texts_of(ids: torch.Tensor, end: int) -> list[list[tuple[int, ...]]]:
    """Pieces before the end mark, which must be there."""
    return [[tuple(text[: text.index(end)]) for text in row] for row in ids.tolist()]


@pytest.mark.parametrize("beams", [2, 3, 8])
@pytest.mark.parametrize("shown", ["nothing", "mask", "aligned"])
def test_the_same_texts_and_scores_as_generate(make_tiny: Any, beams: int, shown: str) -> None:
    lengths = set()
    for seed in range(4):
        t5 = lively(make_tiny, seed)
        rng = torch.Generator().manual_seed(100 + seed)
        encoded = torch.randn(ROWS, 3, t5.config.d_model, generator=rng)
        mask = torch.tensor([[1, 1, 1]] * 3 + [[1, 1, 0]] * 2) if shown == "mask" else None
        aligned = None
        if shown == "aligned":
            aligned = 3 * torch.randn(ROWS, LENGTH + 1, t5.config.d_model, generator=rng)
        with torch.inference_mode():
            ids, scores = beam_search(t5, encoded, mask, beams=beams, length=LENGTH, aligned=aligned)
            wanted, wanted_scores = by_transformers(t5, encoded, mask, beams, LENGTH, aligned)
        assert ids.shape == (ROWS, beams, LENGTH + 1)
        assert torch.allclose(scores, wanted_scores, atol=1e-4)
        end = t5.config.eos_token_id
        for found, expected, score in zip(texts_of(ids, end), texts_of(wanted, end), scores, strict=True):
            # Random networks repeat themselves, and some texts are equally likely: their order, and which of them
            # is the last that is kept, is chance.
            clear = int((score > score[-1] + 1e-3).sum())
            assert set(found[:clear]) == set(expected[:clear])
            assert len(set(found)) == beams
        lengths |= {len(text) for row in texts_of(ids, end) for text in row}
    assert min(lengths) < LENGTH == max(lengths)  # some end by themselves, some are cut


def test_a_row_does_not_depend_on_its_neighbours(make_tiny: Any) -> None:
    t5 = lively(make_tiny, 7)
    encoded = torch.randn(6, 3, t5.config.d_model, generator=torch.Generator().manual_seed(8))
    with torch.inference_mode():
        together, scores = beam_search(t5, encoded, None, beams=4, length=LENGTH)
        for row in range(6):
            alone, score = beam_search(t5, encoded[row : row + 1], None, beams=4, length=LENGTH)
            assert torch.equal(alone[0], together[row])
            assert torch.allclose(score[0], scores[row], atol=1e-4)


def test_more_beams_than_there_are_texts(make_tiny: Any) -> None:
    """Of one piece there are no more texts than pieces; the places that are left over stay empty."""
    t5 = lively(make_tiny, 3)
    vocabulary = t5.config.vocab_size
    encoded = torch.randn(2, 3, t5.config.d_model)
    with torch.inference_mode():
        ids, scores = beam_search(t5, encoded, None, beams=vocabulary + 5, length=1)
    assert ids.shape == (2, vocabulary + 5, 2)
    for texts, found in zip(ids.tolist(), scores, strict=True):
        real = [tuple(text) for text, score in zip(texts, found.tolist(), strict=True) if score > -1e8]
        assert len(set(real)) == len(real) == vocabulary  # the empty text among them
        assert (found.diff() <= 0).all()
