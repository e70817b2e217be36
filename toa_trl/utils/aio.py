"""Helpers for asyncio: several coroutines, threads, signals."""

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


async def gather_or_cancel(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results; the first error cancels the others and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class LoopThread:
    """An event loop in a thread of its own, for synchronous code that calls coroutines repeatedly.

    Connections and queues belong to a loop, so that all calls need the same one.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine; an interrupt cancels it."""
        running = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return running.result()
        finally:
            running.cancel()  # without effect on one that has ended

    def close(self) -> None:
        """End the thread; nothing can be run any more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def run_until_signal(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; SIGINT and SIGTERM cancel it.

    Where this thread already has an event loop (a notebook), it runs in a thread of its own.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM, after the coroutine has ended gracefully.
    """

    async def main() -> T:
        task = asyncio.current_task()
        if task is not None and threading.current_thread() is threading.main_thread():
            # asyncio.run handles SIGINT itself; a background job may have SIGINT ignored
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await coroutine

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        try:
            return asyncio.run(main())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    return _run_in_thread(coroutine)


def _run_in_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T] | None]] = []

    async def main() -> T:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await coroutine

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(asyncio.run, main())
        try:
            return result.result()
        except KeyboardInterrupt:
            for loop, task in running:
                if task is not None:
                    loop.call_soon_threadsafe(task.cancel)
            raise
