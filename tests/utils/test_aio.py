"""Coroutines that end at a signal, and several at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from toa_trl.utils.aio import gather_or_cancel, run_until_signal


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
