"""The inverter: vector -> pseudo-tokens -> text."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tutorial_lib.inverter import Inverter, InverterConfig
from tutorial_lib.modeling import END, PAD


def test_its_tensors(tiny_inverter: Any) -> None:
    names = {name.split(".")[0] for name in tiny_inverter.state_dict()}
    assert names == {"backbone", "embedding_transform", "whiten_mean", "whiten_matrix", "vocabulary"}
    assert tiny_inverter.kind == "inverter"
    assert isinstance(tiny_inverter.config, InverterConfig)


def test_pseudo_tokens_are_the_documented_projection(tiny_inverter: Any) -> None:
    x = torch.randn(3, 384)
    state = tiny_inverter.state_dict()
    e = (x - state["whiten_mean"]) @ state["whiten_matrix"]
    hidden = functional.gelu(functional.linear(
        e, state["embedding_transform.0.weight"], state["embedding_transform.0.bias"]
    ))  # fmt: skip
    want = functional.linear(
        hidden, state["embedding_transform.3.weight"], state["embedding_transform.3.bias"]
    )
    got = tiny_inverter.encoder_inputs(x)
    assert got.shape == (3, 2, 32)
    assert torch.allclose(got, want.view(3, 2, 32), atol=1e-5)


def test_proposals_have_the_length_it_was_trained_for(tiny_inverter: Any) -> None:
    ids = tiny_inverter.propose(torch.randn(4, 384)).ids
    assert ids.shape[2] <= tiny_inverter.config.max_tokens + 1
    assert max(map(len, tiny_inverter.to_embedder_ids(ids[:, 0]))) <= tiny_inverter.config.max_tokens + 1
    assert tiny_inverter.propose(torch.randn(4, 384), max_tokens=2).ids.shape[2] <= 3


def test_it_learns_one_text_by_heart(tiny_inverter: Any, embedder: Any, test_texts: list[str]) -> None:
    texts = test_texts[4:]  # no word comes twice, so the plateau of "which the is this?" is spared
    vectors = torch.from_numpy(embedder.encode(texts))
    labels = tiny_inverter.to_model_ids(embedder.token_ids(texts))
    optimizer = torch.optim.Adam(tiny_inverter.parameters(), lr=1e-2)
    tiny_inverter.train()
    for _ in range(60):
        optimizer.zero_grad()
        loss = tiny_inverter(vectors, labels)
        loss.backward()
        optimizer.step()
    tiny_inverter.eval()
    got = tiny_inverter.propose(vectors, candidates=2)
    assert embedder.decode(tiny_inverter.to_embedder_ids(got.ids[:, 0])) == texts
    with torch.no_grad():  # a score is the mean log-probability of the pieces and the end mark
        for row in range(2):
            for rank in range(2):  # the second is far from certain, so a score near zero would not do
                ids = got.ids[row, rank][None]
                loss = float(tiny_inverter(vectors[row : row + 1], ids))
                assert float(got.scores[row, rank]) == pytest.approx(-loss, abs=0.01)
        assert float(got.scores[:, 1].max()) < -0.1


def test_what_texts_share_with_a_guess_is_read_once_and_changes_nothing(
    tiny_inverter: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny_inverter), "autocast", lambda _: contextlib.nullcontext())
    encoded = tiny_inverter.encode(tiny_inverter.encoder_inputs(torch.from_numpy(embedder.encode(["peace"]))))
    a, b, c, d = range(4, 8)
    guess = [a, b, c, d]
    # itself, another end, a drop, an insertion, another beginning, longer than the guess, nothing at all
    rows = [guess, [a, b, c, a], [a, c, d], [a, b, d, c, d], [d, b, c, a], [*guess, a, b], []]
    labels = torch.full((len(rows), 7), PAD)
    for row, ids in zip(labels, rows, strict=True):
        row[: len(ids) + 1] = torch.tensor([*ids, END])
    expected = tiny_inverter.likelihood(encoded, labels)
    for like in (labels[0], labels[0, :5], labels[6, :1], labels[5]):
        assert torch.allclose(tiny_inverter.likelihood(encoded, labels, like), expected, atol=1e-4)
    assert len(set(expected.tolist())) == len(rows)
    some = tiny_inverter.likelihood(encoded, labels[1:], labels[0], keep=3)
    kept = torch.isfinite(some)
    assert kept.sum() == 3 and torch.allclose(some[kept], expected[1:][kept], atol=1e-4)
    # those kept are those whose first other piece is likeliest beside the guess's own
    ends = [3, 1, 2, 0, 4, 0]  # where rows 1.. leave the guess
    first = labels[0].repeat(len(ends), 1)
    gains = []
    for row, end in enumerate(ends):
        ids = first[row, : end + 1].clone()
        pair = torch.stack([ids, ids])
        pair[1, end] = labels[row + 1, end]
        own, other = tiny_inverter.likelihood(encoded, pair).tolist()
        gains.append(other - own)
    assert set(torch.tensor(gains).topk(3).indices.tolist()) == set(kept.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("dimension", [128, 768, 4096])
def test_any_dimension(make_tiny: Any, dimension: int) -> None:
    model = make_tiny(Inverter, dimension=dimension)
    vectors = model.check_vectors(np.random.default_rng(0).normal(size=(2, dimension)))
    assert model.propose(vectors, max_tokens=2).ids.shape[0] == 2


def test_the_likelihood_of_many_texts_is_the_loss_of_each(
    tiny_inverter: Any, embedder: Any, test_texts: list[str]
) -> None:
    vectors = torch.from_numpy(embedder.encode(test_texts[:2]))
    labels = tiny_inverter.to_model_ids(embedder.token_ids(test_texts))  # of several lengths
    encoded = tiny_inverter.encode(tiny_inverter.encoder_inputs(vectors)).detach()
    for row in range(2):
        got = tiny_inverter.likelihood(encoded[row : row + 1], labels)
        assert got.shape == (len(labels),)
        for text in range(len(labels)):
            pieces = int((labels[text] != tiny_inverter.pad).sum())
            loss = float(tiny_inverter(vectors[row : row + 1], labels[text : text + 1]).detach())
            assert float(got[text]) == pytest.approx(-loss * pieces, rel=0.02)
    # Fewer columns, a smaller sum: never less likely than over the whole vocabulary.
    few, all_ = (tiny_inverter.likelihood(encoded[:1], labels[:1], frequent=frequent) for frequent in (5, 2048))
    assert float(few[0]) >= float(all_[0]) and float(few[0]) < 0
