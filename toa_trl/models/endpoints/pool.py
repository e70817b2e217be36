"""Which endpoint takes a request, how many run at once, and for how long. Independent of HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from yarl import URL

from toa_trl.errors import Unavailable

FIRST_LIMIT = 32  # initial concurrency of an endpoint


@dataclass(slots=True, eq=False)
class Endpoint:
    """State of one server."""

    url: URL
    limit: float  # maximum number of requests at the same time, >= 1
    growing: bool = True  # the limit has not been decreased yet
    outstanding: int = 0  # requests in flight
    asked: int = 0  # requests so far; breaks ties of the load
    cut_s: float = -1.0  # loop time of the last decrease
    rest_until_s: float = 0.0  # loop time before which no request is sent, after a 429
    throttled: int = 0  # consecutive 429s
    faults: int = 0  # consecutive
    outages: int = 0  # since the last success
    away: str = ""  # why the endpoint is unavailable; empty while it is available

    @property
    def load(self) -> tuple[int, int]:
        """Sort key: the least is next. Faults count, because fast failures leave few in flight."""
        return self.outstanding + self.faults, self.asked


class Pool:
    """Hand out the endpoint with the fewest outstanding requests, first come, first served.

    The concurrency of an endpoint adapts by additive increase and multiplicative decrease: it
    doubles each round until the first decrease, then grows by one per round while it is used up.

    Args:
        place: prefix of messages.
        urls: URLs of the endpoints.
        max_concurrency: maximum number of requests in flight, over all endpoints.
        wait_s: how long a request waits while all endpoints are away.
    """

    def __init__(
        self, place: str, urls: Sequence[URL], max_concurrency: int, wait_s: float
    ) -> None:
        self._place, self._max_concurrency, self._wait_s = place, max_concurrency, wait_s
        self._first_limit = float(min(FIRST_LIMIT, max_concurrency))
        self.endpoints = [Endpoint(url, self._first_limit) for url in dict.fromkeys(urls)]
        self.outstanding = 0
        self.away: str | None = None
        """Why no request can be sent now; None while an endpoint is available."""
        self._waiting: deque[asyncio.Future[Endpoint]] = deque()

    async def acquire(self) -> Endpoint:
        """Wait for an endpoint with room for a request; `release` it afterwards.

        Raises:
            Unavailable: all endpoints are away.
        """
        if not self._waiting and (endpoint := self._free()):
            return self._take(endpoint)
        future: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._dispatch()  # all earlier waiters may have been cancelled
        if self.away:
            self._fail_waiting([future])
        try:
            return await future
        except asyncio.CancelledError:
            handed_over = future.done() and not future.cancelled() and not future.exception()
            if handed_over:  # after the cancellation, before this task ran
                self.release(future.result())
            raise

    def release(self, endpoint: Endpoint) -> None:
        """Return the slot of a request that has ended."""
        endpoint.outstanding -= 1
        self.outstanding -= 1
        self._dispatch()

    def succeeded(self, endpoint: Endpoint) -> None:
        """Record a success: reset the counters, and raise the limit where it is used up."""
        endpoint.faults = endpoint.throttled = endpoint.outages = 0
        if endpoint.outstanding >= int(endpoint.limit):
            step = 1.0 if endpoint.growing else 1.0 / endpoint.limit
            endpoint.limit = min(endpoint.limit + step, self._max_concurrency)

    def cut(self, endpoint: Endpoint, sent_s: float) -> bool:
        """Halve the limit, once per round.

        Args:
            endpoint: the endpoint that was overloaded.
            sent_s: loop time at which the refused request was sent.

        Returns:
            False where the request was sent before the last decrease: nothing changes.
        """
        if sent_s < endpoint.cut_s:
            return False
        endpoint.limit = max(1.0, endpoint.limit / 2)
        endpoint.growing = False
        endpoint.cut_s = asyncio.get_running_loop().time()
        return True

    def rest(self, endpoint: Endpoint, pause_s: float) -> None:
        """Send no request for `pause_s` seconds."""
        loop = asyncio.get_running_loop()
        endpoint.rest_until_s = max(endpoint.rest_until_s, loop.time() + pause_s)
        loop.call_at(endpoint.rest_until_s + 0.001, self._dispatch)

    def set_away(self, endpoint: Endpoint, reason: str) -> int:
        """Mark an endpoint as unavailable, and return the number of available ones."""
        endpoint.away = reason
        endpoint.outages += 1
        num_available = sum(not other.away for other in self.endpoints)
        if not num_available:
            self.away = "; ".join(other.away for other in self.endpoints)
            self._fail_waiting(list(self._waiting))
        return num_available

    def set_available(self, endpoint: Endpoint) -> None:
        """Mark an endpoint as available again."""
        self.away = None
        endpoint.away, endpoint.faults, endpoint.growing = "", 0, True
        endpoint.limit, endpoint.rest_until_s = self._first_limit, 0.0
        self._dispatch()

    def reset(self) -> None:
        """Forget everything tied to an event loop, and which endpoints were away."""
        self._waiting.clear()
        self.away = None
        for endpoint in self.endpoints:
            endpoint.away, endpoint.rest_until_s, endpoint.cut_s = "", 0.0, -1.0

    def _free(self) -> Endpoint | None:
        if self.outstanding >= self._max_concurrency:
            return None
        now_s = asyncio.get_running_loop().time()
        free = [
            endpoint
            for endpoint in self.endpoints
            if endpoint.outstanding < int(endpoint.limit)
            and not endpoint.away
            and endpoint.rest_until_s <= now_s
        ]
        return min(free, key=lambda endpoint: endpoint.load, default=None)

    def _take(self, endpoint: Endpoint) -> Endpoint:
        endpoint.outstanding += 1
        endpoint.asked += 1
        self.outstanding += 1
        return endpoint

    def _dispatch(self) -> None:
        while self._waiting and (endpoint := self._free()):
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(self._take(endpoint))

    def _fail_waiting(self, waiting: Sequence[asyncio.Future[Endpoint]]) -> None:
        """Fail these requests after `wait_s` seconds, unless an endpoint is available by then."""

        def give_up() -> None:
            if self.away:
                for future in waiting:
                    if not future.done():
                        future.set_exception(
                            Unavailable(f"{self._place}: no server answers: {self.away}")
                        )
                self._waiting = deque(future for future in self._waiting if not future.done())

        if self._wait_s:
            asyncio.get_running_loop().call_later(self._wait_s, give_up)
        else:
            give_up()


class SharedTimeout:
    """Limit the time of many operations, one at a time in each task, with one timer.

    `with timeout:` does what `async with asyncio.timeout(timeout_s):` does, without the timer of
    its own that would cost a client of many requests 4 % of its CPU.

    Args:
        timeout_s: time that each operation may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Loop time of the deadline and earlier cancellations, by task; the oldest comes first.
        self._running: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._expired: dict[asyncio.Task[Any], int] = {}

    def __enter__(self) -> None:
        """Start the time of the current task's operation."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        if loop is not self._loop:  # an earlier run's, with its timer
            self._loop, self._timer, self._running, self._expired = loop, None, {}, {}
        self._running[task] = (loop.time() + self._timeout_s, task.cancelling())
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._expire)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the operation.

        Raises:
            TimeoutError: it was cancelled because its time was over, and for no other reason.
        """
        task = asyncio.current_task()
        assert task is not None
        if self._running.pop(task, None) is None:
            num_before = self._expired.pop(task)
            if task.uncancel() <= num_before and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _expire(self) -> None:
        """Cancel the operations whose time is over, and wait for the next one."""
        loop, self._timer = asyncio.get_running_loop(), None
        while self._running:
            task, (until_s, num_before) = next(iter(self._running.items()))
            if until_s > loop.time():
                self._timer = loop.call_at(until_s, self._expire)
                return
            del self._running[task]
            self._expired[task] = num_before
            task.cancel()
