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
    [("", False, False), ("difference", False, False), ("feedback", True, False)],
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
    assert torch.equal(moved[:, third], base[:, third]) == bool(blind)


@torch.no_grad()
def test_channels_can_be_withheld_row_by_row(make_tiny: Any, vectors: Any) -> None:
    """A row with its channels withheld is what a blind corrector sees; its neighbour sees everything."""
    model = make_tiny(Corrector, seed=1)
    blind = make_tiny(Corrector, seed=1, blind="feedback")
    target, own = vectors
    left = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    got = model.encoder_inputs(target, GUESS, own, left)[0]
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
    assert len(set(map(tuple, got.ids[0].tolist()))) >= 2


@pytest.mark.parametrize("dimension", [128, 4096])
def test_any_dimension(make_tiny: Any, dimension: int) -> None:
    model = make_tiny(Corrector, dimension=dimension)
    x = model.check_vectors(np.random.default_rng(0).normal(size=(2, dimension)))
    assert model.propose(x, GUESS, x, max_tokens=2).ids.shape[0] == 2
