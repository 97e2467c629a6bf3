"""What a chapter runs on: device, number format, profile, seed and versions, chosen in one place and printed.

Chapters call `setup()` in their first cell of code; every page of the book begins with its table.
"""

from __future__ import annotations

import platform
import random
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from .errors import TutorialError

PROFILES = ("smoke", "cpu", "gpu", "paper")
_PACKAGES = ("tutorial-lib", "torch", "transformers", "sentence-transformers", "numpy")


@dataclass(frozen=True)
class Runtime:
    """The choices a chapter runs with; `print(runtime)` gives the table."""

    device: str  # "cpu", "cuda" or "mps"
    device_name: str  # what the machine calls it
    dtype: str  # "float32" or "bfloat16": the number format of the inverter and the corrector; vectors are float32
    why: str  # the reason for that format, one phrase
    profile: str  # which column of book/profiles.yml
    seed: int

    def __str__(self) -> str:
        rows = {
            "device": f"{self.device} ({self.device_name})",
            "dtype": f"{self.dtype} ({self.why})",
            "profile": self.profile,
            "seed": str(self.seed),
            "python": platform.python_version(),
        }
        rows.update({name: _version(name) for name in _PACKAGES})
        return "\n".join(f"{key:<22}{value}" for key, value in rows.items())


def setup(profile: str = "cpu", seed: int = 0) -> Runtime:
    """Choose the device, seed Python, numpy and torch, print the table and return the choices.

    profile: one of smoke, cpu, gpu, paper. Without a GPU each runs on the CPU, and a sentence
    says so.
    Raises TutorialError for an unknown profile.
    """
    if profile not in PROFILES:
        raise TutorialError(f"the profile '{profile}' does not exist; choose one of {', '.join(PROFILES)}.")
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    runtime = Runtime(*_device(), profile, seed)
    print(runtime)
    if profile in ("gpu", "paper") and runtime.device == "cpu":
        print(f"No GPU here: the profile '{profile}' runs on the CPU, correct but slow.")
    return runtime


def _device() -> tuple[str, str, str, str]:
    import torch

    from .modeling import fast_dtype

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if fast_dtype(torch.device("cuda")) == torch.bfloat16:
            return "cuda", name, "bfloat16", "this GPU computes it natively"
        return "cuda", name, "float32", "this GPU has no bfloat16, and float16 overflows in T5"
    if torch.backends.mps.is_available():
        return "mps", platform.machine(), "float32", "the exact choice on Apple's GPUs"
    if fast_dtype(torch.device("cpu")) == torch.bfloat16:
        return "cpu", platform.machine(), "bfloat16", "this processor multiplies it natively"
    return "cpu", platform.machine(), "float32", "this processor has no bfloat16 units"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
