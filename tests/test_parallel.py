"""Texts searched for side by side: the same results in the same order, whatever the number of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from tutorial_lib import parallel

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def threads(request: Any) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_rows(threads: int) -> None:
    assert parallel.each(range, [3, 0, 2], CPU, progress=False) == [[0, 1, 2], [], [0, 1]]
    assert parallel.each(range, [], CPU, progress=False) == []


def test_as_many_at_a_time_as_there_are_threads_each_on_one_core(threads: int) -> None:
    together = threading.Barrier(threads)  # passes only when so many wait at once

    def search(row: int) -> Iterator[Any]:
        together.wait(timeout=60)
        yield torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(3, user_api="blas"):
        for ((of_torch, of_blas),) in parallel.each(search, range(2 * threads), CPU, progress=False):
            assert of_torch == 1 and set(of_blas) == {1}
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {3}
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads  # threads started later are as before, too


def test_another_device_is_not_shared() -> None:
    def search(row: int) -> Iterator[threading.Thread]:
        yield threading.current_thread()

    found = parallel.each(search, range(3), torch.device("meta"), progress=False)
    assert found == [[threading.main_thread()]] * 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_when_one_fails_the_others_stop(error: type[BaseException]) -> None:
    begun, items = threading.Barrier(2), []

    def search(row: int) -> Iterator[int]:
        if row < 2:
            begun.wait(timeout=60)
        if row == 0:
            raise error("no answer")
        for item in range(10**9):
            items.append(row)
            yield item
            threading.Event().wait(0.01)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(error, match="no answer"):
            parallel.each(search, range(9), CPU, progress=False)  # would not come back
        assert torch.get_num_threads() == 2 and set(items) <= {1, 2, 3}
    finally:
        torch.set_num_threads(before)


def test_one_thread_at_a_time_calls_a_shared_object() -> None:
    class Counter:
        size, inside, most = 7, 0, 0

        def count(self, wait: threading.Event) -> int:
            self.inside += 1
            self.most = max(self.most, self.inside)
            wait.wait(0.005)
            self.inside -= 1
            return self.size

    counter = Counter()
    shared = parallel.one_at_a_time(counter)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(shared.count, [threading.Event()] * 12)) == {7}
    assert counter.most == 1 and shared.size == 7
    with pytest.raises(AttributeError, match="colour"):
        shared.colour  # type: ignore[attr-defined]  # noqa: B018


def test_threads_share_a_tokenizer(embedder: Any, test_texts: list[str]) -> None:
    """It is set to truncate by a call that does; another thread's texts would lose their ends (one in six here)."""

    class Calls:
        def cut(self) -> list[list[int]]:
            return embedder.tokenizer(test_texts, truncation=True, max_length=4)["input_ids"]

        def whole(self) -> list[list[int]]:
            return embedder.token_ids(test_texts)

    shared, expected = parallel.one_at_a_time(Calls()), [Calls().whole(), Calls().cut()]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda turn: (shared.whole, shared.cut)[turn % 2](), range(4000))
        assert all(ids == expected[turn % 2] for turn, ids in enumerate(found))


def test_an_embedder_is_counted_by_all_threads(embedder: Any, test_texts: list[str]) -> None:
    shared, spent = parallel.one_at_a_time(embedder), embedder.queries
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda turn: shared.encode(test_texts[:1]), range(40)))
    assert embedder.queries == shared.queries == spent + 40


def test_searches_that_overlap_leave_the_process_as_it_was() -> None:
    """The second begins while the first has limited everything, and ends after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        first, second = parallel.cores(CPU), parallel.cores(CPU)
        with threadpool_limits(2, user_api="blas"):
            first.__enter__()
            spread = second.__enter__()
            assert len({*spread(lambda row: torch.get_num_threads(), range(3))}) == 1
            first.__exit__(None, None, None)
            assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
            second.__exit__(None, None, None)
            assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {2}
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_not_begun_is_not_done_after_an_error(error: type[BaseException]) -> None:
    before, done = torch.get_num_threads(), []

    def stopped() -> None:
        with parallel.cores(CPU) as spread:
            spread(lambda row: done.append(row) or time.sleep(0.2), range(50))
            raise error

    torch.set_num_threads(1)
    try:
        with pytest.raises(error):
            stopped()
    finally:
        torch.set_num_threads(before)
    assert len(done) < 10
