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


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch was built without torch.distributed")
    rng = np.random.default_rng(0)
    (tmp_path / "text").mkdir()
    for index in range(12):
        lines = "\n".join(" ".join(rng.choice(WORDS, 20)) for _ in range(4))
        (tmp_path / "text" / f"{index}.txt").write_text(lines, encoding="utf-8")
    words = "-m torch.distributed.run --standalone --nproc-per-node 2 -m tutorial_lib.cli train inverter --records 0"
    words += " --layers 1 --width 16 --num-pseudo-tokens 2 --batch-size 8 --max-steps 10 --whiten-on 32 --sampled 4"
    command = [sys.executable, *words.split(), "--corpus", f"files:{tmp_path}/text", "--output", str(tmp_path / "run")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "run" / "training.json").read_text())["result"]
    assert result["steps"] == 10
    assert result["sequences"] == 2 * 8 * 10  # each process draws its own batch
    with (tmp_path / "run" / "loss.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)  # one process writes
    assert row["sequences"] == "160"
    Inverter.from_pretrained(tmp_path / "run")
