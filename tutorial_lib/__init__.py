"""Do text embeddings give the text away? The machinery behind the book, one import away.

Names are imported when first used, so that ``import tutorial_lib`` and the command line's ``--help`` are quick.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

# Without ipywidgets tqdm's bars fall back to text, which is fine, and says so on every import, which is not.
warnings.filterwarnings("ignore", message="IProgress not found")

_HOME = {
    "Embedder": "embedder",
    "passages": "corpora",
    "documents": "corpora",
    "token_stream": "corpora",
    "Record": "records",
    "synthetic_records": "records",
    "held_out": "held_out",
    "held_out_records": "held_out",
    "Inverter": "inverter",
    "InverterConfig": "inverter",
    "Corrector": "corrector",
    "CorrectorConfig": "corrector",
    "invert": "search",
    "breed": "variants",
    "Inversion": "search",
    "Step": "search",
    "train": "training",
    "TrainConfig": "training",
    "evaluate": "metrics",
    "compare": "metrics",
    "bootstrap": "metrics",
    "Estimate": "metrics",
    "Scores": "metrics",
    "report": "claims",
    "setup": "runtime",
    "TutorialError": "errors",
}
_MODULES = ("audit", "errors", "figures", "information", "metrics", "privacy", "stores")

__all__ = sorted([*_HOME, *_MODULES])
__version__ = "0.1.0"

if TYPE_CHECKING:
    from tutorial_lib import audit, errors, figures, information, metrics, privacy, stores
    from tutorial_lib.claims import report
    from tutorial_lib.corpora import documents, passages, token_stream
    from tutorial_lib.corrector import Corrector, CorrectorConfig
    from tutorial_lib.embedder import Embedder
    from tutorial_lib.errors import TutorialError
    from tutorial_lib.held_out import held_out, held_out_records
    from tutorial_lib.inverter import Inverter, InverterConfig
    from tutorial_lib.metrics import Estimate, Scores, bootstrap, compare, evaluate
    from tutorial_lib.records import Record, synthetic_records
    from tutorial_lib.runtime import setup
    from tutorial_lib.search import Inversion, Step, invert
    from tutorial_lib.training import TrainConfig, train
    from tutorial_lib.variants import breed


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"tutorial_lib.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"tutorial_lib.{name}")
    raise AttributeError(f"module 'tutorial_lib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
