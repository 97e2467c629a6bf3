"""benchmarks/search.py: the plain loop that ours is timed against does the same thing, and its figures are right."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tutorial_lib import Corrector, Inverter, invert
from tutorial_lib.modeling import VectorToText

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    if not BENCHMARKS.exists():
        pytest.skip("benchmarks are not part of this distribution")
    spec = importlib.util.spec_from_file_location("search_benchmark", BENCHMARKS / "search.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))  # it imports its clock from beside it
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full precision, so that two ways to compute one thing agree to the last text."""
    monkeypatch.setattr(VectorToText, "autocast", lambda _: contextlib.nullcontext())


def test_one_greedy_round_is_the_same_in_both(
    benchmark: ModuleType, exact: None, embedder: Any, test_texts: list[str]
) -> None:
    inverter, corrector = (cls.from_pretrained("all-MiniLM-L6-v2") for cls in (Inverter, Corrector))
    vectors = embedder.encode(test_texts)
    first = invert(vectors, embedder, inverter, steps=0, beam_width=1)
    ours = invert(vectors, embedder, inverter, corrector, steps=1, beam_width=1)
    target = torch.from_numpy(vectors)
    texts, cosines, queries = benchmark.plain_loop(target, embedder, inverter, corrector, 1, 1, batch=3)
    assert queries == 2 * len(test_texts)
    better = cosines > first.cosines + 1e-6
    assert better.any() and not better.all()  # both cases below are met
    for text, guess, found, corrected in zip(texts, first.texts, ours.texts, better, strict=True):
        assert found == (text if corrected else guess)  # the plain loop takes the correction, ours the nearer of both
    assert np.allclose(np.maximum(cosines, first.cosines), ours.cosines, atol=1e-5)


def test_the_plain_loop_embeds_every_candidate_of_every_round(
    benchmark: ModuleType, exact: None, embedder: Any, make_tiny: Any, test_texts: list[str]
) -> None:
    inverter, corrector = make_tiny(Inverter), make_tiny(Corrector, seed=1, aligned=True)
    target = torch.from_numpy(embedder.encode(test_texts[:2]))
    embedder.reset_queries()
    _, cosines, queries = benchmark.plain_loop(target, embedder, inverter, corrector, 3, 2, batch=2)
    # the guess, its two corrections, then two of each of two
    assert queries == embedder.queries == 2 * (1 + 2 + 4 + 4)
    assert cosines.shape == (2,)


def test_too_slow_is_an_exit_status(
    benchmark: ModuleType, embedder: Any, make_tiny: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], test_texts: list[str],
) -> None:  # fmt: skip
    inverter, corrector = make_tiny(Inverter), make_tiny(Corrector, seed=1, aligned=True)
    monkeypatch.setattr(benchmark.Embedder, "from_pretrained", lambda *_, **__: embedder)
    monkeypatch.setattr(benchmark.Inverter, "from_pretrained", lambda *_, **__: inverter)
    monkeypatch.setattr(benchmark.Corrector, "from_pretrained", lambda *_, **__: corrector)
    monkeypatch.setattr(benchmark, "passages", lambda *_, **__: test_texts)
    words = ["search.py", "--n", str(len(test_texts)), "--steps", "2", "--beam", "2", "--at-least", "1e9", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    assert benchmark.main() == 1
    said = json.loads(capsys.readouterr().out)
    assert said["times_faster"] == pytest.approx(said["plain"]["seconds"] / said["ours"]["seconds"])
    assert said["plain"]["queries_per_text"] == 1 + 2 + 4
    assert 0 <= said["same_text"] <= said["n"]
