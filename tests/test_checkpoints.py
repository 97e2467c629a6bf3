"""Weights: saved and loaded bit for bit, verified, and refused with a reason when something is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tutorial_lib import checkpoints, published, training
from tutorial_lib.cards import write_whole
from tutorial_lib.checkpoints import resolve, save_finished, shipped, verify, write_sums
from tutorial_lib.corrector import Corrector
from tutorial_lib.errors import CheckpointError, TutorialError
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


def test_a_file_that_others_read_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while training.json is written must leave the last one, not half of one."""
    write_whole(tmp_path / "training.json", "old")

    def torn(path: Path, text: str, **_: Any) -> None:
        path.write_bytes(text[:2].encode())
        raise KeyboardInterrupt

    model = SimpleNamespace(named_buffers=list, to=lambda dtype: None, save_pretrained=lambda folder, **_: None)
    monkeypatch.setattr(Path, "write_text", torn)
    with pytest.raises(KeyboardInterrupt):
        save_finished(model, tmp_path, {"new": 1})  # type: ignore[arg-type]
    assert (tmp_path / "training.json").read_text() == "old"


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


def test_sums_that_are_not_text(saved: Path) -> None:
    (saved / "SHA256SUMS").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"SHA256SUMS is damaged; fetch the weights again"):
        Inverter.from_pretrained(saved)


@pytest.mark.parametrize("saved_by_another", [torch.zeros(3), {"model": {}}, {"config": {}, "state_dict": {}}])
def test_another_tools_checkpoint_is_no_run_to_go_on_with(tmp_path: Path, saved_by_another: Any) -> None:
    torch.save(saved_by_another, tmp_path / "checkpoint.pt")
    run = object.__new__(training._Run)
    run.config = TrainConfig("inverter", "elsewhere")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is not a checkpoint of this library"):
        run.load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("rows", [b"epoch,loss\n1,2.5\n", b"step,loss\n1,2.5\n", b"step\nfirst\n", b"a\n\xff\n"])
def test_another_tools_loss_curve_stays_as_it_is(tmp_path: Path, rows: bytes) -> None:
    (tmp_path / "loss.csv").write_bytes(rows)
    with (
        pytest.raises(TutorialError, match=r"loss\.csv is not a loss curve of this library"),
        training._Curve(tmp_path / "loss.csv", 100, True),
    ):
        pass
    assert (tmp_path / "loss.csv").read_bytes() == rows


def test_a_config_that_is_not_json(saved: Path) -> None:
    (saved / "SHA256SUMS").unlink()
    (saved / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json is not readable JSON"):
        Inverter.from_pretrained(saved)


@pytest.mark.parametrize("name", ["pair/x.py", "parquet:rows.parquet"])
def test_weights_name_no_program(saved: Path, name: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"embedder_name": name}))
    write_sums(saved)
    with pytest.raises(CheckpointError, match="a program or a table"):
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
