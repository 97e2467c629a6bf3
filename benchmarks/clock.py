"""Wraps functions with timers, to see where a run's time goes without touching the code that runs.

clock = Clock()
clock.watch("embedder", embedder, "encode")     # from now on its time is counted under "embedder"
...
clock.seconds["embedder"], clock.calls["embedder"]
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from typing import Any

import torch


class Clock:
    """Seconds and calls per name; a watched function inside another of the same name is counted once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inside: set[str] = set()

    def watch(self, name: str, owner: Any, attribute: str) -> None:
        """Replace `owner.attribute` (an object's or a class's) by itself with a timer around it."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if name in self._inside:
                return function(*args, **kwargs)
            self._inside.add(name)
            began = now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += now() - began
                self.calls[name] += 1
                self._inside.remove(name)

        setattr(owner, attribute, timed)

    def reset(self) -> None:
        self.seconds.clear()
        self.calls.clear()


def now() -> float:
    """Seconds; waits for the GPU first, which otherwise still works while Python has moved on."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def hardware(threads: int) -> str:
    """One phrase for the head of every table."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "CPU"
    return f"{model}, {threads} threads"
