"""setup(): the choices a chapter runs with, printed and reproducible."""

from __future__ import annotations

import random
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

from tutorial_lib.errors import TutorialError
from tutorial_lib.runtime import setup

torch = pytest.importorskip("torch")


def test_setup_prints_what_a_reader_compares(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    runtime = setup("gpu", seed=7)
    printed = capsys.readouterr().out
    assert (runtime.device, runtime.dtype, runtime.seed) == ("cpu", "float32", 7)
    for name in ("device", "dtype", "profile", "seed", "python", "torch", "transformers", "numpy"):
        assert f"\n{name} " in f"\n{printed}"
    assert version("torch") in printed  # the package's, without the +cu130 that torch.__version__ may add
    assert "No GPU here" in printed


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_number_format_is_the_one_that_the_networks_use(
    native: bool, dtype: str, monkeypatch: pytest.MonkeyPatch, tiny_inverter: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert setup("smoke").dtype == dtype
    with tiny_inverter.autocast():
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("capability", "dtype"), [((8, 0), "bfloat16"), ((7, 5), "float32")])
def test_the_number_format_follows_the_gpu(
    capability: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)  # would initialise the GPU that is not there
    assert setup("gpu").dtype == dtype


def test_the_seed_decides_every_source_of_randomness() -> None:
    draws = []
    for _ in range(2):
        setup("smoke", seed=3)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(TutorialError, match="'tiny' does not exist; choose one of smoke, cpu, gpu, paper"):
        setup("tiny")
