"""The corrector: what it sees, in which order, and what the ablations take away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tutorial_lib.corrector import Corrector, CorrectorConfig
from tutorial_lib.modeling import END, PAD

GUESS = torch.tensor([[4, 5, 6, END], [7, END, PAD, PAD]])


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 384, generator=generator), torch.randn(2, 384, generator=generator)


def test_its_tensors(tiny_corrector: Any) -> None:
    names = {name.split(".")[0] for name in tiny_corrector.state_dict()}
    assert names == {
        "backbone", "embedding_transform_1", "embedding_transform_2", "embedding_transform_3", "layernorm",
        "whiten_mean", "whiten_matrix", "vocabulary",
    }  # fmt: skip
    assert tiny_corrector.kind == "corrector"
    assert isinstance(tiny_corrector.config, CorrectorConfig)


def test_the_input_has_the_documented_length_and_order(tiny_corrector: Any, vectors: Any) -> None:
    """[END] MLP1(e) [END] MLP3(ê) [END] MLP2(e - ê) [END] words, then one LayerNorm: 4 + 3k + t positions."""
    model = tiny_corrector
    with torch.no_grad():
        model.whiten_mean.normal_()
        model.whiten_matrix.normal_()
        target, own = vectors
        got, mask = model.encoder_inputs(target, GUESS, own)
        k, t = model.config.num_pseudo_tokens, GUESS.shape[1]
        assert got.shape == (2, 4 + 3 * k + t, 32)
        e = (target - model.whiten_mean) @ model.whiten_matrix
        ê = (own - model.whiten_mean) @ model.whiten_matrix
        table = model.backbone.shared.weight
        for row in range(2):
            rows = [table[END]]
            rows += model.embedding_transform_1(e[row]).view(k, 32)
            rows += [table[END]]
            rows += model.embedding_transform_3(ê[row]).view(k, 32)
            rows += [table[END]]
            rows += model.embedding_transform_2(e[row] - ê[row]).view(k, 32)
            rows += [table[END]]
            rows += [table[token] for token in GUESS[row]]
            want = torch.nn.functional.layer_norm(
                torch.stack(list(rows)), (32,), model.layernorm.weight, model.layernorm.bias
            )
            assert torch.allclose(got[row], want, atol=1e-4)
        assert mask.tolist() == [[1] * (4 + 3 * k + 4), [1] * (4 + 3 * k + 2) + [0, 0]]


def test_padding_changes_nothing(tiny_corrector: Any, vectors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutorial_lib import modeling

    monkeypatch.setattr(modeling, "fast_dtype", lambda device: torch.float32)
    target, own = vectors
    short = tiny_corrector.propose(target[1:], GUESS[1:, :2], own[1:], max_tokens=6).ids
    padded = tiny_corrector.propose(target, GUESS, own, max_tokens=6).ids[1:]
    assert tiny_corrector.to_embedder_ids(short[0]) == tiny_corrector.to_embedder_ids(padded[0])
    labels = torch.tensor([[4, 5, END]])
    with torch.no_grad():
        a = tiny_corrector(target[1:], GUESS[1:, :2], own[1:], labels)
        b = tiny_corrector(target[1:], GUESS[1:], own[1:], labels)
    assert float(a) == pytest.approx(float(b), abs=1e-4)


@pytest.mark.parametrize(
    ("blind", "without_own", "without_target"),
    [("", False, False), ("slope", False, False), ("difference", False, False), ("feedback", True, False)],
)
@torch.no_grad()
def test_what_each_blindness_hides(
    make_tiny: Any, vectors: Any, blind: str, without_own: bool, without_target: bool
) -> None:
    model = make_tiny(Corrector, seed=1, blind=blind)
    target, own = vectors
    base = model.encoder_inputs(target, GUESS, own)[0]
    assert torch.equal(model.encoder_inputs(target, GUESS, own + 1)[0], base) == without_own
    assert torch.equal(model.encoder_inputs(target + 1, GUESS, own)[0], base) == without_target
    k = model.config.num_pseudo_tokens
    third = slice(3 + 2 * k, 3 + 3 * k)  # the pseudo-tokens of e - ê
    moved = model.encoder_inputs(target + 1, GUESS, own)[0]
    assert torch.equal(moved[:, third], base[:, third]) == (blind in ("difference", "feedback"))


@torch.no_grad()
def test_channels_can_be_withheld_row_by_row(make_tiny: Any, vectors: Any) -> None:
    """A row with its channels withheld is what a blind corrector sees; its neighbour sees everything."""
    model = make_tiny(Corrector, seed=1)
    blind = make_tiny(Corrector, seed=1, blind="feedback")
    target, own = vectors
    left = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    got = model.encoder_inputs(target, GUESS, own, left=left)[0]
    assert torch.equal(got[0], blind.encoder_inputs(target, GUESS, own)[0][0])
    assert torch.equal(got[1], model.encoder_inputs(target, GUESS, own)[0][1])


def test_every_channel_is_trained(tiny_corrector: Any, vectors: Any) -> None:
    target, own = vectors
    tiny_corrector(target, GUESS, own, torch.tensor([[4, 5, END], [6, END, PAD]])).backward()
    assert [name for name, parameter in tiny_corrector.named_parameters() if parameter.grad is None] == []


def test_the_sampled_loss_is_near_the_full_one(tiny_corrector: Any, vectors: Any) -> None:
    target, own = vectors
    labels = torch.tensor([[4, 5, END], [6, END, PAD]])
    with torch.no_grad():
        full = float(tiny_corrector(target, GUESS, own, labels))
        assert float(tiny_corrector(target, GUESS, own, labels, sampled=10_000)) == pytest.approx(
            full, abs=1e-6
        )


def test_candidates(tiny_corrector: Any, vectors: Any) -> None:
    target, own = vectors
    got = tiny_corrector.propose(target, GUESS, own, candidates=3, beams=3, max_tokens=4)
    assert got.ids.shape[:2] == (2, 3)
    assert got.ids.shape[2] <= 5
    assert (got.scores.diff(dim=1) <= 1e-6).all()
    assert (got.scores < 0).all()
    assert len(set(map(tuple, got.ids[0].tolist()))) == 3


@pytest.mark.parametrize("dimension", [128, 4096])
def test_any_dimension(make_tiny: Any, dimension: int) -> None:
    model = make_tiny(Corrector, dimension=dimension)
    x = model.check_vectors(np.random.default_rng(0).normal(size=(2, dimension)))
    assert model.propose(x, GUESS, x, max_tokens=2).ids.shape[0] == 2


def test_a_slope_moves_its_own_token_only(make_tiny: Any, vectors: Any) -> None:
    """LayerNorm(table(token) + slope_transform(slope / its root mean square over the text))."""
    model = make_tiny(Corrector, seed=1, slope_width=384)
    target, own = vectors
    slope = torch.zeros(2, 4, 384)
    slope[0, 1] = torch.randn(384, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        without = model.encoder_inputs(target, GUESS, own)[0]
        got = model.encoder_inputs(target, GUESS, own, slope)[0]
        place = got.shape[1] - GUESS.shape[1] + 1
        moved = (got != without).any(2)
        assert moved.nonzero().tolist() == [[0, place]]
        size = slope[0].square().mean().sqrt()
        word = model.backbone.shared.weight[GUESS[0, 1]] + model.slope_transform(slope[0, 1] / size)
        assert torch.allclose(got[0, place], model.layernorm(word), atol=1e-5)
        # the length of a slope says nothing, its direction everything
        assert torch.allclose(model.encoder_inputs(target, GUESS, own, 1e-6 * slope)[0], got, atol=1e-5)


@pytest.mark.parametrize(("blind", "reads"), [("", True), ("slope", False), ("difference", False), ("feedback", False)])
@torch.no_grad()
def test_slopes_are_withheld_with_the_difference(make_tiny: Any, vectors: Any, blind: str, reads: bool) -> None:
    model = make_tiny(Corrector, seed=1, slope_width=384, blind=blind)
    target, own = vectors
    slope = torch.randn(2, 4, 384, generator=torch.Generator().manual_seed(1))
    assert model.reads_slopes is reads
    same = torch.equal(model.encoder_inputs(target, GUESS, own, slope)[0], model.encoder_inputs(target, GUESS, own)[0])
    assert same is not reads


def test_weights_without_slopes_ignore_them(tiny_corrector: Any, vectors: Any) -> None:
    target, own = vectors
    with torch.no_grad():
        a = tiny_corrector.encoder_inputs(target, GUESS, own, torch.ones(2, 4, 384))[0]
        assert torch.equal(a, tiny_corrector.encoder_inputs(target, GUESS, own)[0])
    assert not tiny_corrector.reads_slopes


@pytest.fixture
def aligned(make_tiny: Any) -> Corrector:
    model: Corrector = make_tiny(Corrector, seed=1, aligned=True, slope_width=384)
    return model


@torch.no_grad()
def test_the_decoder_sees_each_place_of_the_guess_and_its_neighbours(aligned: Any) -> None:
    slope = torch.randn(2, 4, 384, generator=torch.Generator().manual_seed(1))
    got = aligned.decoder_inputs(GUESS, slope)
    assert got.shape == (2, 4, 32)
    words = aligned._words(GUESS, slope, None) * (GUESS != PAD)[:, :, None]
    zero = torch.zeros(32)
    for row in range(2):
        for place in range(4):
            before = words[row, place - 1] if place else zero
            after = words[row, place + 1] if place < 3 else zero
            want = aligned.align(torch.cat([before, words[row, place], after]))
            assert torch.allclose(got[row, place], want, atol=1e-5)


def test_an_aligned_guess_reaches_loss_and_writing(
    aligned: Any, vectors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything but the aligned place silenced, the corrector writes the guess again, beam by beam."""
    from tutorial_lib import modeling

    monkeypatch.setattr(modeling, "fast_dtype", lambda device: torch.float32)
    target, own = vectors
    with torch.no_grad():
        for name, value in aligned.named_parameters():
            if ".o.weight" in name or ".wo.weight" in name:  # no layer adds anything to the residual stream
                value.zero_()
        aligned.align.weight.zero_()
        aligned.align.weight[:, 32:64] = 10 * torch.eye(32)
        aligned.slope_transform.weight.zero_()
        aligned.backbone.shared.weight.copy_(torch.nn.functional.normalize(aligned.backbone.shared.weight) * 32**0.5)
    want = [[4, 5, 6], [7]]
    for options in ({}, {"beams": 3, "candidates": 3}, {"temperature": 1e-3}):
        ids = aligned.propose(target, GUESS, own, max_tokens=5, **options).ids
        table = aligned.vocabulary.tolist()
        got = [aligned.to_embedder_ids(ids[row, :1])[0] for row in range(2)]
        assert got == [[table[i] for i in row] for row in want]
    copied = float(aligned(target, GUESS, own, GUESS).detach())
    other = float(aligned(target, GUESS, own, GUESS.flip(0)).detach())
    assert copied < other


def test_every_channel_of_an_aligned_corrector_is_trained(aligned: Any, vectors: Any) -> None:
    target, own = vectors
    slope = torch.randn(2, 4, 384)
    aligned(target, GUESS, own, torch.tensor([[4, 5, END], [6, END, PAD]]), slope).backward()
    assert [name for name, parameter in aligned.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_aligned_vectors_are_added_up(aligned: Any, vectors: Any) -> None:
    target, own = vectors
    got, mask = aligned.encoder_inputs(target, GUESS, own)
    assert mask is None
    e, ê = aligned.whitened(target), aligned.whitened(own)
    want = aligned.embedding_transform_1(e) + aligned.embedding_transform_2(e - ê) + aligned.embedding_transform_3(ê)
    assert torch.allclose(got, want.view(2, aligned.config.num_pseudo_tokens, 32), atol=1e-5)
    blind = aligned.encoder_inputs(target, GUESS, own, left=torch.zeros(2, 3))[0]
    assert torch.equal(blind, aligned.encoder_inputs(target, GUESS, own + 1, left=torch.zeros(2, 3))[0])


@pytest.mark.parametrize("name", ["aligned", "tiny_corrector"])
@torch.no_grad()
def test_next_pieces_are_what_the_loss_is_made_of(name: str, request: Any, vectors: Any) -> None:
    """In both layouts: the loss of the guess itself is the mean of what its own pieces are given, place by place."""
    model, (target, own) = request.getfixturevalue(name).eval(), vectors
    got = model.next_pieces(target, GUESS, own)
    assert got.shape == (*GUESS.shape, model.backbone.config.vocab_size)
    assert torch.allclose(got.exp().sum(2), torch.ones(GUESS.shape), atol=1e-4)
    each = got.gather(2, GUESS[:, :, None])[:, :, 0][GUESS != PAD]
    assert float(-each.mean()) == pytest.approx(float(model(target, GUESS, own, GUESS)), rel=0.02)
