"""One writer for the plays of many prompts."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from toa_trl.sampling.journal.journal import Journal
from toa_trl.types import Play


class Writer:
    """Writes the plays of many prompts; those that arrive during a commit share the next one.

    Commits run in a separate thread, so that no fsync blocks the event loop. A journal in memory is
    written at once.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._thread = None if journal.in_memory else ThreadPoolExecutor(1, "journal")
        self._queue: list[tuple[tuple[str, Play], asyncio.Future[None]]] = []
        self._busy = False

    async def append(self, prompt_id: str, play: Play) -> None:
        """Write one play durably before returning. A cancelled call still writes it.

        Raises:
            JournalError: it could not be written (the disk is full, the play exists already).
        """
        if self._thread is None:
            self._journal.append(prompt_id, play)
            return
        loop = asyncio.get_running_loop()
        written = loop.create_future()
        self._queue.append(((prompt_id, play), written))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._commit)  # later: plays that are ready now share the commit
        await written

    async def aclose(self) -> None:
        """Write what is queued; the journal may be closed afterwards."""
        if self._thread is None:
            return
        thread, loop = self._thread, asyncio.get_running_loop()
        self._commit()
        self._thread = None
        try:
            # The thread's last task: every commit before it has ended and was reported.
            await loop.run_in_executor(thread, int)
        finally:
            thread.shutdown()

    def _commit(self) -> None:
        self._busy = bool(self._queue)
        if self._thread is None or not self._queue:
            return
        rows, waiting = zip(*self._queue, strict=True)
        self._queue = []
        commit = asyncio.get_running_loop().run_in_executor(self._thread, self._write, rows)
        # A callback instead of a task, which could be cancelled before the batch is reported.
        commit.add_done_callback(lambda commit: self._report(waiting, commit.result()))

    def _report(
        self, waiting: Sequence[asyncio.Future[None]], errors: Sequence[Exception | None]
    ) -> None:
        for written, error in zip(waiting, errors, strict=True):
            if written.done():  # its play was cancelled meanwhile
                continue
            if error is None:
                written.set_result(None)
            else:
                written.set_exception(error)
        # Later: the plays reported now may have successors by then.
        asyncio.get_running_loop().call_soon(self._commit)

    def _write(self, rows: Sequence[tuple[str, Play]]) -> list[Exception | None]:
        """Write rows in the thread, and return the error of every row or None."""
        try:
            self._journal.append_all(rows)
        except Exception as error:
            # A full disk concerns every row; any other error may concern one row alone.
            if len(rows) == 1 or isinstance(error.__cause__, sqlite3.OperationalError):
                return [error] * len(rows)
            errors = []
            for row in rows:
                errors += self._write([row])
            return errors
        return [None] * len(rows)
