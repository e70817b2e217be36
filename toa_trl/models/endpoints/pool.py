"""Which endpoint is asked, and how many requests it has at once. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from yarl import URL

from toa_trl.errors import Unavailable

FIRST_LIMIT = 32  # requests at once, before anything is known of a server


@dataclass(slots=True, eq=False)
class Endpoint:
    """What is known of one server."""

    url: URL
    limit: float  # requests at once, >= 1
    growing: bool = True  # nothing has been too much for it yet
    outstanding: int = 0
    asked: int = 0  # requests so far: of equals the one with the fewest is next
    cut_s: float = -1.0  # loop time of the last decrease: what was sent before it says nothing new
    rest_until_s: float = 0.0  # loop time; a 429 asks for it
    throttled: int = 0  # 429s in a row
    faults: int = 0  # in a row
    outages: int = 0  # since the last success
    out: str = ""  # why it is taken out

    @property
    def load(self) -> tuple[int, int]:
        """The least is asked next. What fails at once has few outstanding requests: its faults count as such."""
        return self.outstanding + self.faults, self.asked


class Pool:
    """Hands out endpoints: the one with the fewest outstanding requests, to who has waited longest.

    The concurrency of each adapts by additive increase and multiplicative decrease: it doubles each round until the first
    decrease, and afterwards grows by one per round, as long as it is used to the full.

    Args:
        place: what messages begin with.
        urls: of the endpoints.
        max_concurrency: requests in flight at most, over all of them.
        wait_s: how long a request waits while none is left.
    """

    def __init__(
        self, place: str, urls: Sequence[URL], max_concurrency: int, wait_s: float
    ) -> None:
        self._place, self._max_concurrency, self._wait_s = place, max_concurrency, wait_s
        self._first_limit = float(min(FIRST_LIMIT, max_concurrency))
        self.endpoints = [Endpoint(url, self._first_limit) for url in dict.fromkeys(urls)]
        self.outstanding = 0
        self._waiting: deque[asyncio.Future[Endpoint]] = deque()

    @property
    def away(self) -> str | None:
        """Why no request can be made now; None while an endpoint is left."""
        for endpoint in self.endpoints:
            if not endpoint.out:
                return None
        return "; ".join(endpoint.out for endpoint in self.endpoints)

    async def acquire(self) -> Endpoint:
        """An endpoint with room for a request; `release` it afterwards.

        Raises:
            Unavailable: none is left.
        """
        if not self._waiting and (endpoint := self._free()):
            return self._take(endpoint)
        future: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._dispatch()  # those before it may all have given up
        if self.away:
            self._nowhere([future])
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self.release(
                    future.result()
                )  # it was handed over in the moment of the cancellation
            raise

    def release(self, endpoint: Endpoint) -> None:
        """The request has ended."""
        endpoint.outstanding -= 1
        self.outstanding -= 1
        self._dispatch()

    def succeeded(self, endpoint: Endpoint) -> None:
        """It keeps up."""
        endpoint.faults = endpoint.throttled = endpoint.outages = 0
        if endpoint.outstanding >= int(endpoint.limit):
            step = 1.0 if endpoint.growing else 1.0 / endpoint.limit
            endpoint.limit = min(endpoint.limit + step, self._max_concurrency)

    def cut(self, endpoint: Endpoint, sent_s: float) -> bool:
        """A request that was sent at this loop time was too much; False where its round was cut already."""
        if sent_s < endpoint.cut_s:
            return False
        endpoint.limit = max(1.0, endpoint.limit / 2)
        endpoint.growing = False
        endpoint.cut_s = asyncio.get_running_loop().time()
        return True

    def rest(self, endpoint: Endpoint, pause_s: float) -> None:
        """Leave it alone for so long."""
        loop = asyncio.get_running_loop()
        endpoint.rest_until_s = max(endpoint.rest_until_s, loop.time() + pause_s)
        loop.call_at(endpoint.rest_until_s + 0.001, self._dispatch)

    def take_out(self, endpoint: Endpoint, reason: str) -> int:
        """Ask it no more; the number of endpoints that are left."""
        endpoint.out = reason
        endpoint.outages += 1
        left = sum(not other.out for other in self.endpoints)
        if not left:
            self._nowhere(list(self._waiting))
        return left

    def put_back(self, endpoint: Endpoint) -> None:
        """It is there again."""
        endpoint.out, endpoint.faults, endpoint.growing = "", 0, True
        endpoint.limit, endpoint.rest_until_s = self._first_limit, 0.0
        self._dispatch()

    def reset(self) -> None:
        """Forget what is tied to an event loop, and which endpoints were out."""
        self._waiting.clear()
        for endpoint in self.endpoints:
            endpoint.out, endpoint.rest_until_s, endpoint.cut_s = "", 0.0, -1.0

    def _free(self) -> Endpoint | None:
        if self.outstanding >= self._max_concurrency:
            return None
        now_s, best = asyncio.get_running_loop().time(), None
        for endpoint in self.endpoints:
            free = (
                endpoint.outstanding < int(endpoint.limit)
                and not endpoint.out
                and endpoint.rest_until_s <= now_s
            )
            if free and (best is None or endpoint.load < best.load):
                best = endpoint
        return best

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

    def _nowhere(self, waiting: Sequence[asyncio.Future[Endpoint]]) -> None:
        """No endpoint is left: those that wait hear of it, once they have waited long enough."""

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
