"""One queue per reward model or in-process model.

What many prompts ask for at once becomes one batch.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from toa_trl.errors import Unavailable
from toa_trl.utils.config import PositiveInt, validate

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Merges single requests into batches.

    A batch starts as soon as there is room for one, with what waits by then: the oldest request and
    those nearest to it in length, so that padding is short and nothing starves.

    Args:
        run: computes a batch, given shortest first; a coroutine function, or a function, which gets
            a thread of its own.
        length: of a request, in tokens.
        max_size: requests in a batch at most.
        max_tokens: of a batch at most, padding included; a longer request runs alone. None: no
            limit.
        num_running: batches that run at once.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Result]] | Callable[[list[Item]], Awaitable[list[Result]]],
        *,
        length: Callable[[Item], int],
        max_size: int,
        max_tokens: int | None = None,
        num_running: int = 1,
    ) -> None:
        self._run: Callable[[list[Item]], Any] = run
        self._thread = None if inspect.iscoroutinefunction(run) else ThreadPoolExecutor(1)
        self._length = length
        # a size of 0 would never take a request, and callers would wait forever
        self._max_size: int = validate(PositiveInt, max_size, "max_batch_size")
        self._max_tokens: int | None = validate(PositiveInt | None, max_tokens, "max_batch_tokens")
        self._num_running = num_running
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._workers: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Result:
        """The result of one request.

        Where its batch fails, it is run again by itself, and what that raises is raised here.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._workers = {worker for worker in self._workers if not worker.done()}
        if len(self._workers) < self._num_running:
            self._workers.add(asyncio.create_task(self._work()))
        return await future

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(0)  # whoever is ready to ask shall be in this batch
            # a request given up by its asker, or left over from an event loop that is closed, needs
            # no answer
            self._waiting = [(item, future) for item, future in self._waiting if not future.done()]
            if not self._waiting:
                return
            await self._compute(self._take())

    async def _compute(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        items = [item for item, _ in batch]
        try:
            if self._thread is None:
                results = await self._run(items)
            else:
                results = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._run, items
                )
        except Exception as error:
            if len(batch) > 1 and not isinstance(
                error, Unavailable
            ):  # one bad request shall cost no other
                await asyncio.gather(*(self._compute([each]) for each in batch))
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        oldest = self._length(self._waiting[0][0])
        nearest = sorted(
            self._waiting, key=lambda w: abs(self._length(w[0]) - oldest)
        )  # the oldest stays first
        size, longest = 0, 0
        for item, _ in nearest[: self._max_size]:
            longest = max(longest, self._length(item))
            if size and self._max_tokens is not None and longest * (size + 1) > self._max_tokens:
                break
            size += 1
        taken = {id(future) for _, future in nearest[:size]}
        self._waiting = [w for w in self._waiting if id(w[1]) not in taken]
        return sorted(nearest[:size], key=lambda w: self._length(w[0]))
