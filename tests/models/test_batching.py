"""The queue in front of an in-process model."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

from tests.helpers import wait
from toa_trl.errors import ConfigError
from toa_trl.models.batching import Batcher


def make(max_size: int = 4) -> tuple[Batcher[str, str], list[list[str]]]:
    batches: list[list[str]] = []

    def run(items: list[str]) -> list[str]:
        batches.append(items)
        if "bad" in items:
            raise RuntimeError("bad batch")
        return [item.upper() for item in items]

    return Batcher(run, length=len, max_size=max_size), batches


def test_each_gets_its_own_answer_and_batches_are_sorted_and_bounded() -> None:
    batcher, batches = make()
    rng = random.Random(0)
    items = [f"{i:03}" + "x" * rng.randrange(30) for i in range(50)]

    async def ask() -> list[str]:
        return await asyncio.gather(*map(batcher.submit, items))

    assert wait(ask()) == [item.upper() for item in items]
    assert sorted(item for batch in batches for item in batch) == sorted(items)
    assert all(len(batch) <= 4 for batch in batches)
    assert len(batches) == 13
    assert all(batch == sorted(batch, key=len) for batch in batches)
    # the oldest that waits is in the next batch: nothing starves
    left = list(items)
    for batch in batches:
        assert left[0] in batch
        left = [item for item in left if item not in batch]


def test_what_is_asked_at_once_runs_at_once() -> None:
    batcher, batches = make(max_size=100)

    async def ask() -> list[str]:
        return await asyncio.gather(*(batcher.submit(str(i)) for i in range(20)))

    wait(ask())
    assert len(batches) == 1


def test_what_arrives_while_the_model_is_busy_goes_into_one_batch() -> None:
    started, go_on = threading.Event(), threading.Event()
    batches: list[list[str]] = []

    def run(items: list[str]) -> list[str]:
        batches.append(items)
        started.set()
        assert go_on.wait(30)
        return items

    batcher: Batcher[str, str] = Batcher(run, length=len, max_size=100)

    async def ask() -> None:
        first = asyncio.create_task(batcher.submit("first"))
        await asyncio.to_thread(started.wait, 30)
        others = [asyncio.create_task(batcher.submit(str(i))) for i in range(5)]
        await asyncio.sleep(0)
        go_on.set()
        assert await first == "first"
        assert await asyncio.gather(*others) == [str(i) for i in range(5)]

    wait(ask())
    assert [len(batch) for batch in batches] == [1, 5]


def test_a_batch_that_fails_fails_its_own_requests_only() -> None:
    batcher, _ = make(max_size=1)

    async def ask() -> list[str | BaseException]:
        return await asyncio.gather(*map(batcher.submit, ("a", "bad", "c")), return_exceptions=True)

    first, bad, last = wait(ask())
    assert (first, last) == ("A", "C")
    assert isinstance(bad, RuntimeError)


class Wrong(list):  # type: ignore[type-arg]
    """A request whose length cannot be measured."""

    def __len__(self) -> int:
        raise KeyError("length")


ERRORS = [ValueError("no"), StopIteration("end"), MemoryError("full"), SystemExit(3)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("in_thread", [True, False])
def test_whatever_the_model_raises_reaches_the_callers(
    error: BaseException, in_thread: bool
) -> None:
    def run(items: list[str]) -> list[str]:
        if "bad" in items:
            raise error
        return items

    async def run_async(items: list[str]) -> list[str]:
        return run(items)

    batcher: Batcher[str, str] = Batcher(run if in_thread else run_async, length=len, max_size=1)

    async def ask(item: str) -> object:
        try:
            return await batcher.submit(item)
        except BaseException as raised:
            return type(raised)

    async def all_of_them() -> list[object]:
        return await asyncio.gather(*map(ask, ("bad", "a", "bad", "b")))

    first, a, bad, b = wait(all_of_them())
    assert (a, b) == ("a", "b")
    assert first == bad == (RuntimeError if isinstance(error, StopIteration) else type(error))


def test_a_number_of_results_that_is_wrong_reaches_the_callers() -> None:
    batcher: Batcher[str, str] = Batcher(lambda items: items[1:], length=len, max_size=4)

    async def ask() -> list[str | BaseException]:
        return await asyncio.gather(*map(batcher.submit, ("a", "b")), return_exceptions=True)

    assert [str(error) for error in wait(ask())] == ["0 results for 1 requests"] * 2


def test_a_length_that_cannot_be_measured_is_the_error_of_its_own_caller() -> None:
    batcher: Batcher[list[int], list[int]] = Batcher(lambda items: items, length=len, max_size=1)

    async def ask() -> list[Any]:
        asked = map(batcher.submit, ([1], Wrong(), [2]))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, wrong, last = wait(ask())
    assert (first, last) == ([1], [2])
    assert isinstance(wrong, KeyError)


def test_a_model_that_cancels_itself_does_not_stop_the_queue() -> None:
    async def run(items: list[str]) -> list[str]:
        if "bad" in items:
            raise asyncio.CancelledError
        return items

    batcher: Batcher[str, str] = Batcher(run, length=len, max_size=1)

    async def ask() -> list[str | BaseException]:
        return await asyncio.gather(*map(batcher.submit, ("bad", "a")), return_exceptions=True)

    bad, a = wait(ask())
    assert isinstance(bad, asyncio.CancelledError)
    assert a == "a"


def test_requests_that_were_given_up_are_not_computed() -> None:
    batcher, batches = make()

    async def ask() -> str:
        given_up = asyncio.create_task(batcher.submit("given up"))
        await asyncio.sleep(0)
        given_up.cancel()
        return await batcher.submit("kept")

    assert wait(ask()) == "KEPT"
    assert batches == [["kept"]]


def test_serves_one_event_loop_after_another() -> None:
    batcher, _ = make()
    assert wait(batcher.submit("a")) == "A"

    async def left_behind() -> None:
        asyncio.create_task(batcher.submit("b"))  # noqa: RUF006
        await asyncio.sleep(0)

    wait(left_behind())
    assert wait(batcher.submit("c")) == "C"


def test_requests_of_a_closed_event_loop_do_not_keep_the_next_one_waiting() -> None:
    batcher, _ = make(max_size=1)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # its tasks are destroyed while they wait
    left = [loop.create_task(batcher.submit(text)) for text in "ab"]
    loop.run_until_complete(asyncio.sleep(0))
    assert not any(task.done() for task in left)
    loop.close()
    assert wait(asyncio.wait_for(batcher.submit("c"), 10)) == "C"


def test_a_worker_that_is_cancelled_before_it_begins_is_replaced() -> None:
    batcher, _ = make()

    async def ask() -> list[Any]:
        earlier = asyncio.all_tasks()
        given_up = asyncio.create_task(batcher.submit("a"))
        await asyncio.sleep(0)  # the worker exists, and has not run yet
        for task in asyncio.all_tasks() - earlier:
            task.cancel()
        during = asyncio.create_task(batcher.submit("b"))
        results = await asyncio.gather(given_up, during, return_exceptions=True)
        return [*results, await batcher.submit("c")]

    first, *others = wait(asyncio.wait_for(ask(), 10))
    assert isinstance(first, asyncio.CancelledError)
    assert others == ["B", "C"]


@pytest.mark.parametrize("limit", ["max_size", "max_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "x", True])
def test_limits_below_one_are_refused(limit: str, value: object) -> None:
    options = {"max_size": 4, limit: value}
    with pytest.raises(ConfigError, match=r"max_batch_.*must be"):
        Batcher(list, length=len, **options)  # type: ignore[arg-type]


def test_a_batch_has_at_most_max_tokens_with_its_padding() -> None:
    batches: list[list[str]] = []

    def run(items: list[str]) -> list[str]:
        batches.append(items)
        return items

    batcher: Batcher[str, str] = Batcher(run, length=len, max_size=100, max_tokens=12)
    items = ["aaaa", "bbb", "cccc", "dddd", "e" * 20]

    async def ask() -> list[str]:
        return await asyncio.gather(*map(batcher.submit, items))

    assert wait(ask()) == items
    assert [sorted(batch) for batch in batches] == [["aaaa", "cccc", "dddd"], ["bbb"], ["e" * 20]]


def test_requests_without_length_are_served_in_their_order() -> None:
    batches: list[list[int]] = []

    async def run(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    batcher: Batcher[int, int] = Batcher(run, max_size=2)

    async def ask() -> list[int]:
        return await asyncio.gather(*map(batcher.submit, (3, 1, 2)))

    assert wait(ask()) == [3, 1, 2]
    assert batches == [[3, 1], [2]]


def test_the_workers_of_an_event_loop_that_was_stopped_are_not_waited_for() -> None:
    async def run(items: list[int]) -> list[int]:
        if items == [0]:
            await asyncio.Event().wait()
        return items

    batcher: Batcher[int, int] = Batcher(run, max_size=1)
    loop = asyncio.new_event_loop()
    stuck = loop.create_task(batcher.submit(0))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert wait(batcher.submit(1)) == 1  # in another event loop, while the first one has work left
    stuck.cancel()
    loop.run_until_complete(asyncio.gather(stuck, return_exceptions=True))
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
    loop.close()


def test_a_worker_that_fails_is_not_started_again_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batcher: Batcher[str, str] = Batcher(lambda items: items, max_size=1)
    num_failures = 0

    def take() -> Any:
        nonlocal num_failures
        num_failures += 1
        raise ZeroDivisionError

    async def main() -> str:
        monkeypatch.setattr(batcher, "_take", take)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        lost = asyncio.create_task(batcher.submit("lost"))
        await asyncio.sleep(0.05)
        monkeypatch.undo()
        answer = await batcher.submit("next")
        await lost
        return answer

    assert wait(main()) == "next"
    assert num_failures == 1
