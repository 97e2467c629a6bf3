"""Texts searched for side by side: one on each core.

The networks of a search are small and their batches short, so that a second core hardly helps with one text; two texts
on two cores take half the time (measured, for surrogates, on the page *What we tried*). And what is computed on one
core does not depend on how many there are. Used by :func:`tutorial_lib.surrogate.surrogate_search` for whole searches,
and by :func:`tutorial_lib.breed` and local edits for what a round computes of each text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

Row = TypeVar("Row")
Result = TypeVar("Result")
Shared = TypeVar("Shared")


def each(
    search: Callable[[Row], Iterable[Result]], rows: Sequence[Row], device: torch.device, *, progress: bool | None
) -> list[list[Result]]:
    """All that ``search`` yields for every row, in the order of the rows.

    As many rows at a time as :func:`cores` says. ``search`` must be safe to call from several threads, and yield often:
    where one call raises, or the user interrupts, the others stop at their next item.
    """
    stopped = threading.Event()

    def run(row: Row) -> list[Result]:
        found = []
        for item in search(row):
            found.append(item)
            if stopped.is_set():
                break
        return found

    with cores(device) as spread:
        try:
            return list(tqdm(spread(run, rows), desc="Searching", unit="text", total=len(rows), disable=not progress))
        except BaseException:
            stopped.set()
            raise


@contextmanager
def cores(device: torch.device) -> Iterator[Callable[..., Iterator[Any]]]:
    """What to use in the place of ``map`` for work on a CPU: the rows are shared by its cores.

    As many at a time as PyTorch has threads (``torch.set_num_threads``, ``OMP_NUM_THREADS``), each on one of them; on
    another device, which they would have to share, one row after the other. Not to be used within itself.
    """
    if device.type != "cpu":
        yield map
        return
    with (
        _one_core_each() as threads,
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Limits:
    """What the process computed with before its first search; others may begin and end while that one runs."""

    lock = threading.Lock()
    searches = 0
    threads: int
    blas: threadpool_limits


@contextmanager
def _one_core_each() -> Iterator[int]:
    """Limit the process's BLAS to one thread; yields how many PyTorch had."""
    with _Limits.lock:
        if not _Limits.searches:
            _Limits.threads, _Limits.blas = torch.get_num_threads(), threadpool_limits(1, user_api="blas")
        _Limits.searches += 1
        threads = _Limits.threads
    try:
        yield threads
    finally:
        with _Limits.lock:
            _Limits.searches -= 1
            if not _Limits.searches:
                _Limits.blas.restore_original_limits()
            torch.set_num_threads(threads)  # a thread's own setting becomes that of all threads started later


def one_at_a_time(shared: Shared) -> Shared:
    """The same object, whose methods only one thread at a time can call.

    For an embedder: a call that truncates sets its tokenizer to truncate, which a call in another thread would then do
    too, without a word. Nor need anybody's own ``embed`` expect two callers.
    """
    return cast(Shared, _Locked(shared))


class _Locked:
    def __init__(self, shared: object) -> None:
        self._shared, self._lock = shared, threading.RLock()

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            found = getattr(self._shared, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                return found(*args, **options)

        return call
