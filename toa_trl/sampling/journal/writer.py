"""One writer for the plays of many prompts."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from toa_trl.sampling.journal.journal import Journal
from toa_trl.types import Play


class Writer:
    """Writes the plays of many prompts: those that arrive while a commit is under way share the next one.

    The commits run in a thread of their own, so that no fsync holds up the event loop. A journal in memory is written
    at once.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._thread = None if journal.in_memory else ThreadPoolExecutor(1, "journal")
        self._queue: list[tuple[tuple[str, Play], asyncio.Future[None]]] = []
        self._busy = False

    async def append(self, prompt_id: str, play: Play) -> None:
        """Write one play for good: when this returns, it is. Where it is cancelled, the play is written all the same.

        Raises:
            JournalError: it could not be written (a full disk, a play that is there already).
        """
        if self._thread is None:
            self._journal.append(prompt_id, play)
            return
        loop = asyncio.get_running_loop()
        told = loop.create_future()
        self._queue.append(((prompt_id, play), told))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._commit)  # soon: whoever else is ready comes along
        await told

    async def aclose(self) -> None:
        """Write what is queued; the journal may be closed then."""
        if self._thread is None:
            return
        thread, loop = self._thread, asyncio.get_running_loop()
        self._commit()
        self._thread = None
        try:
            await loop.run_in_executor(
                thread, int
            )  # the thread's last task: every commit before it is done and told
        finally:
            thread.shutdown()

    def _commit(self) -> None:
        self._busy = bool(self._queue)
        if self._thread is not None and self._queue:
            batch, self._queue = self._queue, []
            done = asyncio.get_running_loop().run_in_executor(
                self._thread, self._write, [row for row, _ in batch]
            )
            # callbacks instead of a task: nothing that is cancelled may keep a batch from being told
            done.add_done_callback(
                lambda done: self._tell([told for _, told in batch], done.result())
            )

    def _tell(
        self, waiting: Sequence[asyncio.Future[None]], errors: Sequence[Exception | None]
    ) -> None:
        for told, error in zip(waiting, errors, strict=True):
            if told.done():  # its play was cancelled meanwhile
                continue
            if error is None:
                told.set_result(None)
            else:
                told.set_exception(error)
        asyncio.get_running_loop().call_soon(
            self._commit
        )  # soon: those told now may have their next play by then

    def _write(self, rows: Sequence[tuple[str, Play]]) -> list[Exception | None]:
        """In the thread: what became of each row."""
        try:
            self._journal.append_all(rows)
        except Exception as error:
            if len(rows) == 1 or isinstance(
                error.__cause__, sqlite3.OperationalError
            ):  # a full disk is everybody's
                return [error] * len(rows)
            return [
                found for row in rows for found in self._write([row])
            ]  # one bad row shall cost no other
        return [None] * len(rows)
