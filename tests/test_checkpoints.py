"""Weights: saved and loaded bit for bit, verified, and refused with a reason when something is wrong."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tutorial_lib import checkpoints, published
from tutorial_lib.checkpoints import resolve, save_finished, shipped, verify, write_sums
from tutorial_lib.corrector import Corrector
from tutorial_lib.errors import CheckpointError
from tutorial_lib.inverter import Inverter
from tutorial_lib.training import TrainConfig

BOTH = pytest.mark.parametrize("cls", [Inverter, Corrector])


@pytest.fixture
def saved(make_tiny: Any, tmp_path: Path) -> Path:
    model = make_tiny(Inverter)
    model.whiten_mean.normal_()
    model.whiten_matrix.normal_()
    model.save_pretrained(tmp_path / "model")
    write_sums(tmp_path / "model")
    return tmp_path / "model"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# ---- round trips -------------------------------------------------------------------------------------------


@BOTH
def test_what_is_saved_is_loaded_bit_for_bit(make_tiny: Any, tmp_path: Path, cls: Any) -> None:
    model = make_tiny(cls)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.whiten_mean, model.whiten_matrix):
            tensor.normal_()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.glob("*.bin"))
    again = cls.from_pretrained(tmp_path)
    assert not again.training
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    got, want = again.state_dict(), model.state_dict()
    assert got.keys() == want.keys()
    for key in want:
        assert got[key].dtype == want[key].dtype
        assert torch.equal(got[key], want[key]), key
    t5 = again.backbone
    assert t5.lm_head.weight is t5.shared.weight  # one table under all its names
    assert t5.encoder.embed_tokens.weight is t5.shared.weight
    assert t5.decoder.embed_tokens.weight is t5.shared.weight


def test_a_tied_table_is_stored_once(saved: Path) -> None:
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        tables = [key for key in file.keys() if "shared" in key or "lm_head" in key or "embed_tokens" in key]  # noqa: SIM118
    assert tables == ["backbone.shared.weight"]


def test_a_loaded_model_proposes_what_the_saved_one_did(make_tiny: Any, tmp_path: Path) -> None:
    model = make_tiny(Inverter)
    model.save_pretrained(tmp_path)
    x = torch.randn(3, 384)
    assert torch.equal(Inverter.from_pretrained(tmp_path).propose(x).ids, model.propose(x).ids)


def test_a_finished_run_is_kept_in_bfloat16_and_used_in_float32(make_tiny: Any, tmp_path: Path) -> None:
    model = make_tiny(Inverter)
    model.whiten_matrix.normal_()
    whitening = model.whiten_matrix.clone()
    want = {key: value.clone() for key, value in model.state_dict().items()}
    run = asdict(TrainConfig("inverter", "unused", max_steps=1))
    facts = {
        "settings": {key: value for key, value in run.items() if key != "output"},
        "result": {"sequences": 8, "steps": 1, "seconds": 1.0, "loss": 2.0},
        "provenance": {
            "embedder": {"name": "all-MiniLM-L6-v2"}, "parameters": 1, "vocabulary": 30, "data": {},
            "hardware": "a test", "torch": "2",
        },
    }  # fmt: skip
    save_finished(model, tmp_path / "done", facts)
    verify(tmp_path / "done")
    again = Inverter.from_pretrained(tmp_path / "done")
    assert torch.equal(again.whiten_matrix, whitening)  # all its digits
    for key, value in again.state_dict().items():
        assert value.dtype in (torch.float32, torch.int32)
        rounded = want[key].bfloat16().float() if key.startswith(("backbone", "embedding")) else want[key]
        assert torch.equal(value, rounded), key


# ---- names -------------------------------------------------------------------------------------------------


def test_a_name_is_a_folder_a_pair_or_shipped(
    make_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path)
    pair = tmp_path / "all-MiniLM-L6-v2"
    make_tiny(Inverter).save_pretrained(pair / "inverter")
    make_tiny(Corrector).save_pretrained(pair / "corrector")
    assert resolve(str(pair / "inverter"), "inverter") == pair / "inverter"
    assert resolve(str(pair), "corrector") == pair / "corrector"
    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        assert resolve(name, "inverter") == pair / "inverter"
        assert isinstance(Corrector.from_pretrained(name), Corrector)
    assert resolve("another", "inverter") is None
    assert shipped("inverter") == ["all-MiniLM-L6-v2"]
    with pytest.raises(
        CheckpointError, match=r"No inverter is shipped for 'another'.*all-MiniLM-L6-v2; or give"
    ):
        Inverter.from_pretrained("another")


def test_an_embedders_folder_of_a_shipped_name_is_not_taken_for_weights(
    make_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`git clone .../all-MiniLM-L6-v2` must not break `tutorial-lib invert "the cat"` beside it."""
    monkeypatch.chdir(tmp_path)
    clone = Path("all-MiniLM-L6-v2")
    clone.mkdir()
    (clone / "config.json").write_text('{"model_type": "bert"}')
    packaged = checkpoints.WEIGHTS / "all-MiniLM-L6-v2" / "inverter"
    assert resolve("all-MiniLM-L6-v2", "inverter") == packaged
    make_tiny(Inverter).save_pretrained(clone / "inverter")
    assert resolve("all-MiniLM-L6-v2", "inverter") == clone / "inverter"
    # weights of one's own in such a folder are taken, damaged ones too: the error names them
    for text in ('{"model_type": "tutorial_lib_inverter"}', '{"embedder_model_name": "gtr_base"}', "{"):
        (clone / "config.json").write_text(text)
        assert resolve("all-MiniLM-L6-v2", "inverter") == clone
    clone.rename("another")
    Path("another", "config.json").write_text('{"model_type": "bert"}')
    assert resolve("another", "inverter") == Path("another")  # nothing shipped to fall back on: its error is told


def test_a_hub_name_is_fetched_verified_and_loaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, revision: str | None = None) -> Path:
        asked.append((name, revision))
        return saved

    monkeypatch.setattr(published, "download", download)
    assert isinstance(Inverter.from_pretrained("owner/pair", revision="v1"), Inverter)
    assert asked == [("owner/pair", "v1")]
    damage(saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="truncated or was altered"):
        Inverter.from_pretrained("owner/pair")


# ---- bad weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_altered_files_are_refused(saved: Path, name: str) -> None:
    Inverter.from_pretrained(saved)
    damage(saved / name)
    with pytest.raises(
        CheckpointError, match=rf"{name} is truncated or was altered.*fetch the weights again"
    ):
        Inverter.from_pretrained(saved)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_weights_are_refused(saved: Path, size: int) -> None:
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[:size])
    with pytest.raises(CheckpointError, match="truncated or was altered"):
        Inverter.from_pretrained(saved)
    (saved / "SHA256SUMS").unlink()  # and without sums the file itself gives it away
    with pytest.raises(CheckpointError, match=r"The inverter in .* cannot be read.*fetch the weights again"):
        Inverter.from_pretrained(saved)


def test_a_listed_file_that_is_missing(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors, which SHA256SUMS lists"):
        Inverter.from_pretrained(saved)


def test_a_config_that_is_not_json(saved: Path) -> None:
    (saved / "SHA256SUMS").unlink()
    (saved / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json is not readable JSON"):
        Inverter.from_pretrained(saved)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        Inverter.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        Inverter.from_pretrained("./no/such/folder")


def test_the_other_kind_of_model_is_refused(make_tiny: Any, tmp_path: Path) -> None:
    """transformers would fill what is missing with random numbers and say so in a warning only."""
    make_tiny(Inverter).save_pretrained(tmp_path / "a")
    make_tiny(Corrector).save_pretrained(tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"holds no corrector: it lacks \d+ of its tensors"):
        Corrector.from_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"holds no inverter: it lacks \d+ of its tensors"):
        Inverter.from_pretrained(tmp_path / "b")


def test_pickles_are_not_read_as_our_weights(saved: Path) -> None:
    (saved / "SHA256SUMS").unlink()
    (saved / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Inverter.from_pretrained(saved)
