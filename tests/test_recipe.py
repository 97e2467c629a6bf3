"""The recipe benchmark on models of a few thousand weights: what it runs, that it resumes, and what it decides."""

from __future__ import annotations

import copy
import csv
import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tutorial_lib import Corrector, TrainConfig

WORDS = "congress peace war law people state union treaty nation army navy bank gold court judge debt tax".split()


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "recipe.py"
    if not path.exists():
        pytest.skip("benchmarks are not part of this distribution")
    spec = importlib.util.spec_from_file_location("recipe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipe"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_setting_is_one_of_training(recipe: ModuleType) -> None:
    known = {field.name for field in fields(TrainConfig)}
    # of every other setting the call decides, and says so in the file, or it is the run's own
    call = "embedder corpus records max_tokens batch_size layers width num_pseudo_tokens whiten_on inverter".split()
    own = "kind output seed max_steps max_minutes segment_minutes checkpoint_minutes blind begin_from".split()
    assert known == {*recipe.BASE, *call, *own}
    for kind, settings in recipe.QUESTIONS.values():
        assert kind in ("inverter", "corrector")
        assert settings[0] is recipe.DEFAULT
        assert len({setting.name for setting in settings}) == len(settings)
        for setting in settings:
            assert set(setting.changes) <= known
            assert setting is recipe.DEFAULT or setting.changes or setting.alter


def test_a_run_fills_the_table_and_repeats_nothing(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedder: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(recipe.Embedder, "from_pretrained", lambda *_, **__: embedder)
    rng = np.random.default_rng(0)
    for index in range(40):
        lines = "\n".join(" ".join(rng.choice(WORDS, 20)) for _ in range(4))
        (tmp_path / f"{index}.txt").write_text(lines, encoding="utf-8")
    output = tmp_path / "recipe.csv"
    words = ["run", "--output", str(output), "--seeds", "0"]
    words += ["--questions", "token table", "embedding dropout", "decoder"]
    words += ["--sequences", "16", "--max-tokens", "6", "--batch-size", "8", "--layers", "1", "--width", "16"]
    words += ["--num-pseudo-tokens", "2", "--records", "0", "--whiten-on", "32", "--n", "3", "--rounds", "1"]
    words += ["--corpus", f"files:{tmp_path}/*.txt"]
    trained: list[str] = []
    real = recipe.train

    def train(config: TrainConfig, **options: Any) -> Path:
        trained.append(config.kind)
        return real(config, **options)

    monkeypatch.setattr(recipe, "train", train)
    assert recipe.main(words) == 0
    rows = recipe.rows_of(output)
    asked = [(row["question"], row["setting"]) for row in rows]
    assert asked == [("token table", "default"), ("token table", "random start"), ("token table", "frozen"),
                     ("embedding dropout", "default"), ("embedding dropout", "one in ten withheld"),
                     ("decoder", "default"), ("decoder", "parallel")]  # fmt: skip
    # the default inverter is trained once for two questions, and once more for the correctors to start from
    assert trained == ["inverter"] * 5 + ["corrector"] * 2
    for row in rows:
        assert 0 <= float(row["bleu"]) <= 100
        assert row["n"] == "3"
        assert 0 < float(row["nats"]) < 2 * np.log(40)  # about that of guessing blindly among so few pieces
    trained.clear()
    assert recipe.main(words) == 0
    assert not trained
    assert recipe.rows_of(output) == rows
    other = recipe.parse([*words, "--layers", "2"])  # another network answers another question
    assert recipe.shared(other) not in {row["settings"] for row in rows}
    capsys.readouterr()
    assert recipe.main(["table", "--output", str(output)]) == 0
    told = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["decision"] for row in told} == {"default", "one seed: nothing to decide"}
    assert recipe.main(["list"]) == 0
    assert "token table" in capsys.readouterr().out


def test_the_default_is_no_rival_of_itself(recipe: ModuleType) -> None:
    given = recipe.parse(["run", "--batch-size", "128", "--questions", "batch", "--seeds", "0"])
    asked = [setting.name for _, _, setting, _ in recipe.plan(given)]
    assert asked == ["default", "batch 64", "batch 256", "batch 512"]


def test_decisions_compare_seed_by_seed(recipe: ModuleType) -> None:
    assert recipe.decision([1.0, 1.1, 0.9]) == "take it"
    assert recipe.decision([-1.0, -1.1, -0.9]) == "worse: default stays"
    assert recipe.decision([1.0, -1.1, 0.9]) == "no difference seen"
    mean, low, high = recipe.interval([1.0, 2.0, 3.0])
    assert (mean, round(low, 2), round(high, 2)) == (2.0, -0.48, 4.48)


def test_the_page_shows_what_the_runs_found(recipe: ModuleType) -> None:
    """Every variant in the committed runs is a row of What we tried, with its numbers, and the page has no other."""
    root = Path(__file__).parents[1]
    files = sorted((root / "benchmarks").glob("recipe_*.csv"))
    page = (root / "book" / "what_we_tried.md").read_text(encoding="utf-8")
    section = page[page.index("## Training\n") : page.index("## Speed\n")]
    shown = {tuple(cell.strip() for cell in line.split("|")[2:7]) for line in section.splitlines()
             if line.startswith("| ") and not line.startswith("| question")}  # fmt: skip
    wanted = set()
    for row in [row for file in files for row in recipe.table(recipe.rows_of(file))]:
        if row["decision"] == "default":
            default = f"{row['nats']:.2f}"
            if row["seeds"] > 1:
                default += f" ({row['low']:.2f}–{row['high']:.2f}, {row['seeds']} seeds)"
            told = ("optimizer", "hypotheses", "batch", "reuse", "whitening")  # one run of a default answers several
            assert default in section or row["question"] not in told
            continue
        gain = f"{row['gain']:.2f}"
        if row["seeds"] > 1:
            gain += f" ({row['gain_low']:.2f} to {row['gain_high']:.2f})"
        numbers = (row["setting"], f"{row['nats']:.2f}", gain, f"{row['bleu']:.1f}", str(row["seeds"]))
        wanted.add(tuple(text.replace("-", "−") if text[-1:] in ")0123456789" else text for text in numbers))
    assert shown == wanted


def test_a_run_writes_one_file(recipe: ModuleType) -> None:
    with pytest.raises(SystemExit):
        recipe.parse(["run", "--output", "a.csv", "b.csv"])


def test_the_parallel_corrector_looks_at_no_label_and_at_every_place(recipe: ModuleType, make_tiny: Any) -> None:
    model = make_tiny(Corrector, seed=1, aligned=True)
    recipe.parallel(model)
    rng = torch.Generator().manual_seed(0)
    n, t = 2, 5
    target, near = (torch.randn(n, model.config.dimension, generator=rng) for _ in range(2))
    guess = torch.randint(4, 10, (n, t), generator=rng)
    guess[:, -1] = recipe.END

    def states(labels: torch.Tensor, guess: torch.Tensor = guess) -> torch.Tensor:
        inputs, mask = model.encoder_inputs(target, guess, near)
        return model.decoder_states(model.encode(inputs, mask), mask, labels, model.decoder_inputs(guess))

    with torch.no_grad():
        plain = states(guess)
        assert torch.equal(plain, states(guess.roll(1, 0)))
        other = guess.clone()
        other[:, 3] = 11
        moved = (states(guess, other) - plain).abs().amax((0, 2))
    assert (moved[:2] > 0).all()  # the first places see the last, which no causal decoder would
    ids = model.propose(target, guess, near, max_tokens=4).ids
    assert ids.shape == (n, 1, 5)
    assert ((ids == recipe.END).sum(2) == 1).all()


def test_dropout_withholds_some_vectors_and_only_in_training(recipe: ModuleType, tiny_inverter: Any) -> None:
    model = copy.deepcopy(tiny_inverter)
    recipe.drop_embedding(model)
    vectors = torch.randn(500, model.config.dimension)
    assert not (model.eval().whitened(vectors) == 0).all(1).any()
    assert 0.04 < (model.train().whitened(vectors) == 0).all(1).float().mean() < 0.2
