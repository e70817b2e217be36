"""One queue per in-process model: what many prompts ask for at once runs as one padded batch, in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Merges single requests into batches.

    A batch starts as soon as the model is free, with what waits by then: the oldest request and those nearest to it in
    length, so that padding is short and nothing starves.

    Args:
        run: computes a batch, given shortest first; called in the batcher's one thread.
        length: of a request, in tokens.
        max_size: requests in a batch at most.
    """

    def __init__(
        self, run: Callable[[list[Item]], list[Result]], *, length: Callable[[Item], int], max_size: int
    ) -> None:
        self._run = run
        self._length = length
        self._max_size = max_size
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._thread = ThreadPoolExecutor(1)
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """The result of one request. An exception of its batch is raised here too."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(0)  # whoever is ready to ask shall be in this batch
            # a request given up by its asker, or left over from an event loop that is closed, needs no answer
            self._waiting = [(item, future) for item, future in self._waiting if not future.done()]
            if not self._waiting:
                return
            oldest = self._length(self._waiting[0][0])
            nearest = sorted(self._waiting, key=lambda w: abs(self._length(w[0]) - oldest))  # the oldest stays first
            batch = sorted(nearest[: self._max_size], key=lambda w: self._length(w[0]))
            taken = {id(future) for _, future in batch}
            self._waiting = [w for w in self._waiting if id(w[1]) not in taken]
            items = [item for item, _ in batch]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, items)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
