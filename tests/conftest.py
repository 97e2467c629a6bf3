"""Fixtures shared by the tests: one real embedder, and models of random weights that build in milliseconds.

    embedder         all-MiniLM-L6-v2 from its package, loaded once per process; count queries as differences
    make_tiny        make_tiny(Inverter or Corrector, seed=0, **config) -> random model, 1 layer, 32 wide
    tiny_inverter    make_tiny(Inverter): new for each test, so a test may train it or save it
    tiny_corrector   make_tiny(Corrector): likewise
    test_texts       six texts of 4 to 8 word pieces, written in the tiny models' vocabulary
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a network

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

# a busy machine is slow, not wrong
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

TEXTS = (
    "the congress of the united states",
    "we will keep the peace of the world",
    "the people ask for a just law",
    "the war is over and the men are home",
    "a new law for the people",
    "peace and work for all the world",
)
MAX_TOKENS = 10


@pytest.fixture(scope="session")
def embedder() -> Any:
    import torch

    from tutorial_lib import Embedder

    torch.set_num_threads(1)
    return Embedder.from_pretrained("all-MiniLM-L6-v2", device="cpu")


@pytest.fixture(scope="session")
def test_texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def make_tiny(embedder: Any) -> Callable[..., Any]:
    import numpy as np
    import torch

    from tutorial_lib.modeling import build_vocabulary, small_backbone
    from tutorial_lib.training import special_ids

    counts = np.zeros(len(embedder.tokenizer), dtype=np.int64)
    for row in embedder.token_ids(TEXTS):
        np.add.at(counts, row, 1)
    vocabulary = build_vocabulary(counts, special_ids(embedder)[0])

    def make(cls: Any, seed: int = 0, **fields: Any) -> Any:
        torch.manual_seed(seed)
        settings = {
            "dimension": embedder.dimension,
            "num_pseudo_tokens": 2,
            "embedder_name": embedder.name,
            "max_tokens": MAX_TOKENS,
            "backbone": small_backbone(len(vocabulary), width=32, layers=1),
        }
        model = cls(cls.config_class(**(settings | fields)))
        model.vocabulary.copy_(torch.from_numpy(vocabulary))
        return model.eval()

    return make


@pytest.fixture
def tiny_inverter(make_tiny: Callable[..., Any]) -> Any:
    from tutorial_lib import Inverter

    return make_tiny(Inverter)


@pytest.fixture
def tiny_corrector(make_tiny: Callable[..., Any]) -> Any:
    from tutorial_lib import Corrector

    return make_tiny(Corrector, seed=1)
