"""What inverter and corrector share: token ids, vectors, loss and generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutorial_lib import modeling
from tutorial_lib.errors import VectorError
from tutorial_lib.inverter import Inverter, InverterConfig
from tutorial_lib.modeling import (
    END,
    PAD,
    START,
    T5_UNKNOWN,
    UNKNOWN,
    InversionConfig,
    _Draw,
    build_vocabulary,
    fast_dtype,
    small_backbone,
)

quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full precision, so that the same sum written in two ways gives the same number; and a fixed seed."""
    torch.manual_seed(0)
    monkeypatch.setattr(modeling, "fast_dtype", lambda device: torch.float32)


def t5_like(vocabulary: int, **special: int) -> Any:
    """A tiny model without a list of ids of its own, as published checkpoints are."""
    torch.manual_seed(0)
    backbone = small_backbone(vocabulary, width=32, layers=1) | special
    config = InverterConfig(
        dimension=16, num_pseudo_tokens=2, backbone=backbone, whiten=False, own_vocabulary=False
    )
    return Inverter(config).eval()


@pytest.fixture
def t5_model() -> Any:
    return t5_like(50, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)


# ---- vocabulary --------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 6), min_size=8, max_size=40), st.integers(1, 3))
def test_a_vocabulary_is_the_specials_then_the_frequent(counts: list[int], minimum: int) -> None:
    array, special = np.array(counts), [0, 3, 5, 1]
    vocabulary = build_vocabulary(array, special, minimum)
    assert vocabulary.dtype == np.int32
    assert vocabulary[:4].tolist() == special
    rest = vocabulary[4:]
    assert set(rest.tolist()) == {
        i for i, count in enumerate(counts) if count >= minimum and i not in special
    }
    assert (np.diff(array[rest]) <= 0).all()


def test_special_ids_have_fixed_places() -> None:
    assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)
    t5 = InversionConfig(backbone=small_backbone(30, 32, 1)).t5()
    assert (t5.pad_token_id, t5.decoder_start_token_id, t5.eos_token_id) == (PAD, START, END)


# ---- token ids ---------------------------------------------------------------------------------------------


@given(st.data())
@quick
def test_ids_survive_the_round_trip(tiny_inverter: Any, data: Any) -> None:
    known = tiny_inverter.vocabulary[4:].tolist()
    rows = data.draw(st.lists(st.lists(st.sampled_from(known), max_size=9), min_size=1, max_size=5))
    ids = tiny_inverter.to_model_ids(rows)
    assert ids.shape == (len(rows), max(map(len, rows)) + 1)
    assert tiny_inverter.to_embedder_ids(ids) == rows
    for row, source in zip(ids.tolist(), rows, strict=True):
        assert row[len(source)] == END
        assert row[len(source) + 1 :] == [PAD] * (len(row) - len(source) - 1)


@given(st.lists(st.lists(st.integers(4, 49), max_size=9), min_size=1, max_size=5))
@quick
def test_ids_of_a_t5_vocabulary_survive_too(t5_model: Any, rows: list[list[int]]) -> None:
    ids = t5_model.to_model_ids(rows)
    assert all(row[len(source)] == 1 for row, source in zip(ids.tolist(), rows, strict=True))
    assert t5_model.to_embedder_ids(ids) == rows


def test_words_outside_the_vocabulary_are_unknown(tiny_inverter: Any, t5_model: Any) -> None:
    known = int(tiny_inverter.vocabulary[5])
    for stranger in (1, 29_999, 250_000):  # 250,000: a multilingual embedder's vocabulary
        assert tiny_inverter.to_model_ids([[known, stranger]]).tolist() == [[5, UNKNOWN, END]]
    assert tiny_inverter.to_embedder_ids(torch.tensor([[5, UNKNOWN, END]])) == [[known]]
    assert t5_model.to_model_ids([[7, 99_999]]).tolist() == [[7, T5_UNKNOWN, 1]]


def test_rows_are_cut_to_a_length_and_closed(tiny_inverter: Any) -> None:
    ids = tiny_inverter.vocabulary[4:10].tolist()
    assert tiny_inverter.to_model_ids([ids, ids[:1]], length=4).tolist() == [
        [4, 5, 6, END],
        [4, END, PAD, PAD],
    ]
    assert tiny_inverter.to_model_ids([[]]).tolist() == [[END]]
    assert tiny_inverter.to_model_ids([]).shape == (0, 1)


def test_what_follows_the_end_is_not_read(tiny_inverter: Any) -> None:
    words = tiny_inverter.vocabulary
    got = tiny_inverter.to_embedder_ids(torch.tensor([[START, 4, 5, END, 6, END], [4, PAD, 5, 6, 6, 6]]))
    assert got == [words[[4, 5]].tolist(), words[[4, 5, 6, 6, 6]].tolist()]


# ---- vectors -----------------------------------------------------------------------------------------------


def test_whitening_is_an_affine_map(tiny_inverter: Any) -> None:
    d = tiny_inverter.config.dimension
    tiny_inverter.whiten_mean.copy_(torch.full((d,), 0.5))
    tiny_inverter.whiten_matrix.copy_(torch.diag(torch.arange(1.0, d + 1)))
    got = tiny_inverter.whitened(torch.ones(2, d, dtype=torch.float64))
    assert got.dtype == torch.float32
    assert torch.allclose(got[0], 0.5 * torch.arange(1.0, d + 1))


def test_without_whitening_vectors_pass(t5_model: Any) -> None:
    assert not any(name.startswith("whiten") for name, _ in t5_model.named_buffers())
    x = torch.randn(2, 16)
    assert torch.equal(t5_model.whitened(x), x)


@pytest.mark.parametrize(
    "make", [np.asarray, torch.as_tensor, lambda x: x.tolist(), lambda x: x.astype(np.float64)]
)
def test_vectors_of_any_kind_become_float32(tiny_inverter: Any, make: Any) -> None:
    x = np.random.default_rng(0).normal(size=(3, 384)).astype(np.float32)
    got = tiny_inverter.check_vectors(make(x))
    assert got.dtype == torch.float32
    assert np.array_equal(got.numpy(), x)
    assert tiny_inverter.check_vectors(np.zeros((0, 384))).shape == (0, 384)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((2, 383)), r"shape \(2, 383\).*made for all-MiniLM-L6-v2 and takes shape \[n, 384\]"),
        (np.ones(384), r"shape \(384,\)"),
        (np.ones((1, 2, 384)), r"shape \(1, 2, 384\)"),
        (np.array([[1.0] * 384, [np.nan] * 384]), "Vector 1 holds NaN or infinity; remove"),
        (np.array([[np.inf] + [1.0] * 383]), "Vector 0 holds NaN or infinity"),
        (np.full((1, 384), 1e300), "Vector 0 holds NaN or infinity"),  # more than float32 can hold
        (np.array([[1.0] * 384, [0.0] * 384]), "Vector 1 is all zeros, which no text embeds to"),
        ([["a"] * 384], "one array of numbers"),
        ([[1.0, 2.0], [1.0]], "one array of numbers"),
        (np.ones((1, 384), dtype=complex), "complex numbers"),
        (None, "one array of numbers|shape"),
    ],
)
def test_vectors_that_are_refused(tiny_inverter: Any, vectors: Any, message: str) -> None:
    with pytest.raises(VectorError, match=message):
        tiny_inverter.check_vectors(vectors)


# ---- loss --------------------------------------------------------------------------------------------------


def test_the_loss_is_the_backbones_own(tiny_inverter: Any) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 32)
    labels = torch.tensor([[4, 5, END, PAD], [6, END, PAD, PAD], [7, 8, 9, END]])
    with torch.no_grad():
        got = tiny_inverter.decode_loss(inputs, None, labels)
        want = tiny_inverter.backbone(
            inputs_embeds=inputs, labels=labels.masked_fill(labels == PAD, -100)
        ).loss
    assert float(got) == pytest.approx(float(want), abs=1e-5)


def test_the_sampled_softmax_estimates_the_full_one() -> None:
    """Drawn classes stand for the others, so the mean over draws comes close to the full softmax."""
    model = t5_like(3000)
    with torch.no_grad():
        model.backbone.shared.weight.mul_(0.5)
        inputs = torch.randn(16, 2, 32)
        labels = torch.randint(4, 3000, (16, 5))
        labels[:, -1] = END
        full = float(model.decode_loss(inputs, None, labels))
        draws = np.array([float(model.decode_loss(inputs, None, labels, 400, 100)) for _ in range(60)])
        nothing_left_out = float(model.decode_loss(inputs, None, labels, 2900, 100))
        raw = np.array([float(model.decode_loss(inputs, None, labels, 50, 100)) for _ in range(60)])
    assert nothing_left_out == pytest.approx(full, abs=1e-5)
    assert abs(draws.mean() - full) < 0.05 + 3 * draws.std() / np.sqrt(60)
    assert abs(raw.mean() - full) < 0.5  # few draws: noisier, still centred
    assert draws.std() < raw.std()


def test_the_sampled_softmax_when_the_batch_holds_every_word() -> None:
    """Nothing is left to draw, so the sampled softmax is the full one."""
    model = t5_like(20)
    labels = torch.arange(1, 20)[None]
    with torch.no_grad():
        inputs = torch.randn(1, 2, 32)
        full = model.decode_loss(inputs, None, labels)
        sampled = model.decode_loss(inputs, None, labels, sampled=2, frequent=17)
    assert float(sampled) == pytest.approx(float(full), abs=1e-5)


def test_gradients_reach_every_parameter(tiny_inverter: Any) -> None:
    labels = torch.tensor([[4, 5, END, PAD], [6, 7, 8, END]])
    tiny_inverter(torch.randn(2, 384), labels).backward()
    without = [name for name, parameter in tiny_inverter.named_parameters() if parameter.grad is None]
    assert without == []


# ---- generation --------------------------------------------------------------------------------------------


def greedy(model: Any, inputs: torch.Tensor, length: int) -> list[int]:
    """Argmax decoding written out: the whole prefix every time, no cache."""
    t5 = model.backbone
    ids = [int(t5.config.decoder_start_token_id)]
    for _ in range(length):
        logits = t5(inputs_embeds=inputs, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == model.end:
            return ids[1:]
    return [*ids[1:], model.end]  # a text that was not finished is cut and closed


@pytest.mark.parametrize("which", ["own", "t5"])
@torch.inference_mode()
def test_greedy_is_argmax_token_for_token(make_tiny: Any, t5_model: Any, which: str) -> None:
    model = make_tiny(Inverter, seed=1) if which == "own" else t5_model
    for name, value in model.named_parameters():  # as initialised it would repeat its input
        if value.ndim == 2 and (".layer." in name or "transform" in name) and "relative" not in name:
            value.mul_(4)
    vectors = torch.randn(5, model.config.dimension, generator=torch.Generator().manual_seed(3))
    got = model.propose(vectors, max_tokens=6).ids
    assert got.shape[:2] == (5, 1)
    assert len(got.unique()) > 3
    inputs = model.encoder_inputs(vectors)
    for row in range(5):
        want = greedy(model, inputs[row : row + 1], 6)
        assert got[row, 0].tolist()[: len(want)] == want
        assert all(token == model.pad for token in got[row, 0].tolist()[len(want) :])


def test_beams_come_best_first(tiny_inverter: Any) -> None:
    got = tiny_inverter.propose(torch.randn(3, 384), candidates=4, beams=6, max_tokens=5)
    assert got.ids.shape[:2] == (3, 4)
    assert got.scores.shape == (3, 4)
    assert (got.scores.diff(dim=1) <= 1e-6).all()
    assert (got.scores < 0).all()  # log-probabilities per token
    for row in got.ids.tolist():
        assert len({tuple(ids) for ids in row}) == 4
        for ids in row:  # padded after the first end mark
            assert set(ids[ids.index(END) + 1 :]) <= {PAD}
    one = tiny_inverter.propose(torch.randn(3, 384), candidates=4, max_tokens=5)  # beams follow the candidates
    assert one.ids.shape[:2] == (3, 4)


def test_sampling_is_various_and_repeatable(tiny_inverter: Any) -> None:
    x = torch.randn(1, 384)
    torch.manual_seed(5)
    first = tiny_inverter.propose(x, candidates=8, temperature=1.0, max_tokens=5).ids
    torch.manual_seed(5)
    assert torch.equal(tiny_inverter.propose(x, candidates=8, temperature=1.0, max_tokens=5).ids, first)
    assert len({tuple(row) for row in first[0].tolist()}) > 2


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_draws_follow_the_softmax_of_the_likeliest(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    logits = torch.cat([logits, torch.full((60,), -3.0)])  # sixty at a twentieth each: not all of them are drawn from
    kept = _Draw(temperature)(torch.zeros(20_000, 1), logits.repeat(20_000, 1))
    assert (kept == 0).sum(1).eq(1).all() and torch.isinf(kept).sum(1).eq(63).all()
    shares = torch.bincount(kept.argmax(1), minlength=64) / 20_000
    expected = (logits.topk(50).values / temperature).softmax(0)
    assert torch.allclose(shares[:4], expected[:4], atol=0.015)
    assert int((shares > 0).sum()) <= 50


def test_one_row_decodes_as_in_a_batch(tiny_inverter: Any) -> None:
    x = torch.randn(4, 384)
    together = tiny_inverter.to_embedder_ids(tiny_inverter.propose(x).ids[:, 0])
    alone = [tiny_inverter.to_embedder_ids(tiny_inverter.propose(row[None]).ids[:, 0])[0] for row in x]
    assert together == alone


def test_number_format_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert fast_dtype(torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert fast_dtype(torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert fast_dtype(torch.device("cuda")) == torch.float32  # a T4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert fast_dtype(torch.device("cuda")) == torch.bfloat16
    assert fast_dtype(torch.device("mps")) == torch.float32
