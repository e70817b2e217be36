"""Coroutines that end at a signal or in time, and several at once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from toa_trl.utils.aio import SharedTimeout, gather_or_cancel, run_until_signal

TIMEOUT = "timeout, 0 cancellations"


async def until_cancelled(events: list[str]) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)  # a graceful end may itself wait
        events.append("ended")


async def signalled(number: int, events: list[str]) -> None:
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), number)
    await until_cancelled(events)


def test_results_come_in_the_order_of_the_coroutines() -> None:
    async def wait(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    assert asyncio.run(gather_or_cancel([wait(0.02), wait(0.0)])) == [0.02, 0.0]


def test_the_first_error_cancels_the_others_and_is_raised_by_itself() -> None:
    events: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise KeyError("the first")

    with pytest.raises(KeyError, match="the first"):
        asyncio.run(gather_or_cancel([until_cancelled(events), fail()]))
    assert events == ["ended"]


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Handle SIGINT as Python does; a background job starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_coroutine_gracefully(number: signal.Signals) -> None:
    events: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_until_signal(signalled(number, events))
    assert events == ["ended"]


def test_a_coroutine_runs_where_a_loop_is_running() -> None:
    async def notebook() -> int:
        async def seven() -> int:
            return 7

        return run_until_signal(seven())

    assert asyncio.run(notebook()) == 7


def test_an_interrupt_where_a_loop_is_running_ends_the_coroutine() -> None:
    events: list[str] = []

    async def notebook() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as a notebook's kernel has it
        run_until_signal(signalled(signal.SIGINT, events))

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(notebook())
    assert events == ["ended"]


async def limited(timeout: SharedTimeout, seconds: float, after_s: float = 0.0) -> str:
    """Sleep under a timeout, and then without one."""
    await asyncio.sleep(after_s)
    try:
        with timeout:
            await asyncio.sleep(seconds)
        await asyncio.sleep(0.05)
    except TimeoutError:
        task = asyncio.current_task()
        return f"timeout, {task.cancelling() if task else None} cancellations"
    return "ended"


def test_one_timer_ends_each_of_many_operations_at_its_own_time() -> None:
    async def run() -> list[str]:
        loop, timeout, timers = asyncio.get_running_loop(), SharedTimeout(0.1), Counter[str]()
        call_at = loop.call_at

        def counted(when: float, call: Any, *rest: Any, **more: Any) -> asyncio.TimerHandle:
            timers[getattr(call, "__name__", "")] += 1
            return call_at(when, call, *rest, **more)

        loop.call_at = counted  # type: ignore[method-assign, assignment]
        began_s = loop.time()
        assert set(await gather_or_cancel(limited(timeout, 5.0) for _ in range(50))) == {TIMEOUT}
        assert timers["_expire"] < 10, "a stalled machine may need a second one"
        assert loop.time() - began_s >= 0.1
        return await gather_or_cancel(
            limited(timeout, seconds, 0.02 * n) for n, seconds in enumerate((5.0, 0.0, 5.0))
        )

    assert asyncio.run(run()) == [TIMEOUT, "ended", TIMEOUT]


def test_a_cancellation_is_no_timeout() -> None:
    async def run(cancel_at_s: float) -> str:
        loop = asyncio.get_running_loop()
        timeout = SharedTimeout(0.02)
        task = asyncio.create_task(limited(timeout, 5.0))
        await asyncio.sleep(0)
        if cancel_at_s:
            loop.call_later(0.0, time.sleep, 0.03)  # both are due at once
        loop.call_later(cancel_at_s, task.cancel)
        return await task

    for cancel_at_s in (0.0, 0.02):
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(run(cancel_at_s))


def test_a_timeout_serves_one_event_loop_after_another() -> None:
    timeout = SharedTimeout(0.05)
    for _ in range(2):  # the first loop closes with its timer set
        assert asyncio.run(limited(timeout, 0.0)) == "ended"
    assert asyncio.run(limited(timeout, 5.0)) == TIMEOUT
