"""Training on more than one process: what `accelerate launch` starts on GPUs, here as two processes on a CPU."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tutorial_lib import Inverter

WORDS = "congress peace war law people state union treaty nation army navy bank gold court judge debt tax".split()


def launch(tmp_path: Path, script: str, *words: str) -> str:
    """Train in two processes of ``script``, into the folder "run"; returns what both say."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch was built without torch.distributed")
    rng = np.random.default_rng(0)
    (tmp_path / "text").mkdir()
    for index in range(12):
        lines = "\n".join(" ".join(rng.choice(WORDS, 20)) for _ in range(4))
        (tmp_path / "text" / f"{index}.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "launched.py").write_text(script, encoding="utf-8")
    settings = "train inverter --records 0 --layers 1 --width 16 --num-pseudo-tokens 2 --batch-size 8 --whiten-on 32"
    command = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2".split()]
    command += [str(tmp_path / "launched.py"), *settings.split(), "--sampled", "4", *words]
    command += ["--corpus", f"files:{tmp_path}/text", "--output", str(tmp_path / "run")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


PLAIN = "import sys\nfrom tutorial_lib.cli import main\nsys.exit(main())\n"
# The second process's clock runs fifty times as fast as the first's.
UNEVEN = """
import os, time, types
from tutorial_lib import training
if os.environ["RANK"] == "1":
    training.time = types.SimpleNamespace(monotonic=lambda: 50 * time.monotonic())
""" + PLAIN


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert launch(tmp_path, PLAIN, "--max-steps", "10").count(f"{run}: ") == 1  # one process reports
    result = json.loads((run / "training.json").read_text())["result"]
    assert result["steps"] == 10
    assert result["sequences"] == 2 * 8 * 10  # each process draws its own batch
    with (run / "loss.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)  # one process writes
    assert row["sequences"] == "160"
    Inverter.from_pretrained(run)


@pytest.mark.slow
def test_two_processes_stop_together_by_the_clock_of_the_first(tmp_path: Path) -> None:
    launch(tmp_path, UNEVEN, "--max-minutes", "0.02")
    result = json.loads((tmp_path / "run" / "training.json").read_text())["result"]
    assert result["seconds"] >= 1.2
    assert result["steps"] >= 2  # a busy machine is slow


@pytest.mark.slow
def test_two_processes_estimate_together_and_one_of_them_says(tmp_path: Path) -> None:
    told = json.loads(launch(tmp_path, PLAIN, "--max-steps", "50", "--estimate", "--json"))
    assert told["sequences"] == 2 * 8 * 50
    assert not (tmp_path / "run").exists()
