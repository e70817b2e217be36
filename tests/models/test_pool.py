"""The choice of an endpoint, its concurrency and the time of a request, without a server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from yarl import URL

from tests.helpers import asynchronous
from toa_trl.errors import Unavailable
from toa_trl.models.endpoints.pool import FIRST_LIMIT, Pool, SharedTimeout
from toa_trl.utils.aio import gather_or_cancel

TIMEOUT = "timeout, 0 cancellations"


def make(num_endpoints: int = 1, max_concurrency: int = 256, wait_s: float = 0.0) -> Pool:
    urls = [URL(f"http://host{number}") for number in range(num_endpoints)]
    return Pool("here", urls, max_concurrency, wait_s)


@asynchronous
async def test_a_round_of_429s_halves_the_limit_once() -> None:
    pool = make()
    endpoint = pool.endpoints[0]
    sent_s = asyncio.get_running_loop().time()
    await asyncio.sleep(0.002)
    assert pool.cut(endpoint, sent_s)
    for _ in range(5):  # sent in the same round
        assert not pool.cut(endpoint, sent_s)
    assert endpoint.limit == FIRST_LIMIT / 2
    await asyncio.sleep(0.002)
    assert pool.cut(endpoint, asyncio.get_running_loop().time())
    assert endpoint.limit == FIRST_LIMIT / 4


@asynchronous
async def test_the_limit_never_falls_below_one_request() -> None:
    endpoint = (pool := make()).endpoints[0]
    for _ in range(FIRST_LIMIT):
        endpoint.cut_s = -1.0
        assert pool.cut(endpoint, asyncio.get_running_loop().time())
    assert endpoint.limit == 1.0


@asynchronous
async def test_a_request_cancelled_when_it_fails_is_cancelled() -> None:
    pool = make(max_concurrency=1)
    endpoint = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.set_away(endpoint, "down")  # fails the waiting request
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.outstanding == 1


@asynchronous
async def test_a_request_cancelled_when_it_gets_its_slot_returns_the_slot() -> None:
    pool = make(max_concurrency=1)
    endpoint = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.release(endpoint)  # hands the slot to the waiting request
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.outstanding == endpoint.outstanding == 0
    assert await asyncio.wait_for(pool.acquire(), 10) is endpoint


@asynchronous
async def test_faults_count_as_load() -> None:
    pool = make(num_endpoints=2)
    failing, working = pool.endpoints
    failing.faults = 3
    chosen = [await pool.acquire() for _ in range(4)]
    assert chosen == [working, working, working, failing]


@asynchronous
async def test_of_equal_load_the_endpoint_with_fewer_requests_is_next() -> None:
    pool = make(num_endpoints=2)
    chosen = []
    for _ in range(4):
        endpoint = await pool.acquire()
        chosen.append(endpoint)
        pool.release(endpoint)
    first, second = pool.endpoints
    assert chosen == [first, second, first, second]


@asynchronous
async def test_a_success_resets_all_counters() -> None:
    pool = make()
    endpoint = await pool.acquire()
    endpoint.faults = endpoint.throttled = endpoint.outages = 3
    pool.succeeded(endpoint)
    assert (endpoint.faults, endpoint.throttled, endpoint.outages) == (0, 0, 0)
    assert endpoint.limit == FIRST_LIMIT  # it was not used up


@asynchronous
async def test_away_names_the_reasons_only_while_all_are_away() -> None:
    pool = make(num_endpoints=2)
    first, second = pool.endpoints
    assert pool.set_away(first, "first is down") == 1
    assert pool.away is None
    assert await pool.acquire() is second
    assert pool.set_away(second, "second is down") == 0
    assert pool.away == "first is down; second is down"
    with pytest.raises(Unavailable, match="here: no server answers: first is down"):
        await pool.acquire()
    pool.set_available(first)
    assert pool.away is None
    assert await pool.acquire() is first


@asynchronous
async def test_an_endpoint_that_is_back_starts_afresh() -> None:
    pool = make(num_endpoints=2)
    endpoint = pool.endpoints[0]
    assert pool.cut(endpoint, asyncio.get_running_loop().time())
    pool.rest(endpoint, 1000.0)
    endpoint.faults = 3
    pool.set_away(endpoint, "down")
    pool.set_available(endpoint)
    assert (endpoint.away, endpoint.faults) == ("", 0)
    assert (endpoint.limit, endpoint.growing) == (FIRST_LIMIT, True)
    assert await pool.acquire() is endpoint  # it does not rest


@pytest.mark.parametrize("which", ["of all endpoints", "of an endpoint"])
@asynchronous
async def test_a_request_above_a_limit_waits_for_a_slot(which: str) -> None:
    if which == "of all endpoints":
        pool = make(num_endpoints=2, max_concurrency=3)
    else:
        pool = make()
        pool.endpoints[0].limit = 3.9
    taken = [await asyncio.wait_for(pool.acquire(), 10) for _ in range(3)]
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    assert pool.outstanding == 3
    assert not waiting.done()
    pool.release(taken[0])
    await asyncio.wait_for(waiting, 10)
    assert pool.outstanding == 3


def test_a_reset_forgets_who_waits_in_an_event_loop_that_is_closed() -> None:
    pool = make(max_concurrency=1)

    async def run(leaves_one: bool) -> None:
        endpoint = await asyncio.wait_for(pool.acquire(), 10)
        if leaves_one:
            pool._waiting.append(asyncio.get_running_loop().create_future())
            pool.reset()
        pool.release(endpoint)

    for leaves_one in (True, False):
        asyncio.run(run(leaves_one))
        assert pool.outstanding == 0


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
