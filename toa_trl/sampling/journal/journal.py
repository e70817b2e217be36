"""The journal of one run: its file, and the writer that many prompts share."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError, JournalError, ToaError
from toa_trl.sampling.identity import check_same_identity, differences
from toa_trl.sampling.journal.faults import journal_error
from toa_trl.sampling.journal.opening import connect, locked
from toa_trl.sampling.journal.reading import JournalReader
from toa_trl.sampling.journal.table import (
    INSERT,
    INSERT_NEW,
    INSERT_PROMPT,
    PAGE_SIZE,
    SCHEMA,
    VERSION,
    Row,
    add_columns,
    check_tables,
    columns_of,
)
from toa_trl.types import Play, Prompt, Spending, as_dicts

ROWS_PER_COMMIT = 1000  # when copying
PUT = "INSERT OR REPLACE INTO run (key, value) VALUES (?, ?)"


class Journal(JournalReader):
    """The record of one run; it can be read while the thread of a `Writer` commits.

    Args:
        path: path of the SQLite file, or ":memory:".
        create: create the journal if it is missing, and check an existing one for damage;
            without it, a missing journal is an error.
        lock: whether this process writes the journal.

    Raises:
        ConfigError: the journal is missing, or another process writes it.
        JournalError: the file is not a journal, has another version, or is damaged.
    """

    def __init__(self, path: str | Path, *, create: bool = False, lock: bool = True) -> None:
        self.path = str(path)
        self.in_memory = self.path == ":memory:"
        if not create and not Path(self.path).is_file():
            raise ConfigError(f"{path}: there is no journal; name the folder of a run")
        self._lock = locked(self.path) if lock and not self.in_memory else None
        self._writing = threading.Lock()
        self._spent = self._written_spent = Spending()  # of the reward model, since it was set
        try:
            with self._errors():
                reading = not create and not lock
                self._db = self._read = connect(self.path, reading=reading)
                self._open(create)
                # A separate connection never waits for a commit, and never sees half of one.
                if not self.in_memory and not reading:
                    self._read = connect(self.path)
        except BaseException:
            self.close()
            raise
        # A connection of sqlite3 is part of a reference cycle: without this, one of a journal that
        # nobody closes would stay open, with SQLite's files beside it, until the next collection.
        weakref.finalize(self, _close, self._read, self._db).atexit = False

    def _open(self, create: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        num_tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and create and not num_tables:
            self._db.executescript(
                f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=WAL; BEGIN; {SCHEMA} COMMIT;"
            )
        elif version == 0 and not num_tables:  # killed while the file was made
            raise ConfigError(f"{self.path}: the run has not begun yet")
        elif version != VERSION:
            raise JournalError(
                f"{self.path}: not a journal of this version ({version} instead of {VERSION}); "
                "finish the run with the version of toa_trl that wrote it, or choose another "
                "output_dir"
            )
        else:
            check_tables(self._db)
            result = self._db.execute("PRAGMA quick_check(1)").fetchone()[0] if create else "ok"
            if result != "ok":
                raise sqlite3.DatabaseError(" ".join(result.split()))
            if create:
                add_columns(self._db)
        self._plays = f"(SELECT {columns_of(self._db)} FROM plays)"
        self._db.execute("PRAGMA synchronous=FULL")

    def close(self) -> None:
        """Close the file and release its lock; close a `Writer` first."""
        if hasattr(self, "_db"):
            _close(self._read, self._db)
        self.unlock()

    def unlock(self) -> None:
        """Release the lock, so that other processes can write."""
        if self._lock is not None:
            self._lock.release()

    def begin(self, identity: Mapping[str, Any], prompts: Iterable[Prompt]) -> bool:
        """Begin a run, or resume the one in this journal.

        Args:
            identity: everything that decides a result, as JSON values.
            prompts: prompts of the run; written once.

        Returns:
            Whether a run is resumed.

        Raises:
            ConfigError: the journal's run has another identity; the message shows the difference.
        """
        stored, prompts = self._get("identity"), list(prompts)
        if stored is not None:
            check_same_identity(self.path, stored, identity)
        if stored is not None and self.num_prompts() >= len(prompts):
            return True
        # A recovered journal may lack some prompts, or its identity.
        with self.transaction() as db:
            db.executemany(INSERT_PROMPT, prompt_rows(prompts))
            if stored is None:
                db.execute(PUT, ("identity", json.dumps(identity)))
        return stored is not None

    def extend(self, identity: Mapping[str, Any], prompts: Iterable[Prompt]) -> None:
        """Replace the identity of the run by that of a larger one, and add its further prompts.

        The run counts as incomplete from then on; `extensions` lists what changed.
        """
        changes = differences(self.identity, identity)
        extensions = [*self.extensions, {"time_s": time.time(), "changes": changes}]
        with self.transaction() as db:
            db.executemany(INSERT_PROMPT, prompt_rows(prompts))
            db.execute(PUT, ("identity", json.dumps(identity)))
            db.execute(PUT, ("extensions", json.dumps(extensions)))
            db.execute("DELETE FROM run WHERE key IN ('completed', 'allocation_ended')")

    def complete(self) -> None:
        """Record that the run is complete."""
        with self.transaction() as db:
            db.execute(PUT, ("completed", json.dumps({"time_s": time.time()})))

    def append(self, prompt_id: str, play: Play) -> None:
        """Write one play durably.

        Raises:
            JournalError: it could not be written (the disk is full, the play exists already).
        """
        self.append_all([(prompt_id, play)])

    def append_all(self, rows: Sequence[tuple[str, Play]]) -> None:
        """Write plays durably, given with the ids of their prompts: all of them or none.

        Raises:
            JournalError: one could not be written (the disk is full, the play exists already).
        """
        now, spent = time.time(), self._spent
        with self.transaction() as db:
            db.executemany(INSERT, [as_row(prompt_id, play, now) for prompt_id, play in rows])
            if spent is not self._written_spent:
                db.execute(PUT, ("reward_spending", json.dumps(astuple(spent))))
        self._written_spent = spent

    def copy(self, rows: Iterable[Row]) -> int:
        """Write the rows of another journal that are missing here; return how many."""
        rows, num_new = iter(rows), 0
        while chunk := list(islice(rows, ROWS_PER_COMMIT)):
            with self.transaction() as db:
                num_new += db.executemany(INSERT_NEW, chunk).rowcount
        return num_new

    def set_reward_spending(self, spent: Spending) -> None:
        """Set what calls of the reward model have cost; it is written with the next plays."""
        self._spent = spent

    def select(self, sql: str, *values: Any) -> list[Any]:
        """Return the rows that a statement reads."""
        with self._errors():
            return self._read.execute(sql, values).fetchall()

    def interrupt_after(self, limit_s: float) -> None:
        """Interrupt statements that read for longer than so many seconds from now."""
        end = time.monotonic() + limit_s
        self._read.set_progress_handler(lambda: time.monotonic() > end, 100_000)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction: committed durably at the end, or rolled back on an error."""
        with self._writing, self._errors():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ToaError:
            raise
        except (sqlite3.Error, ValueError, TypeError, RecursionError, OverflowError) as error:
            raise journal_error(self.path, error) from error


def _close(*connections: sqlite3.Connection) -> None:
    for connection in connections:
        connection.close()


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


def as_row(prompt_id: str, play: Play, written_s: float) -> Row:
    """Return the row of a play; `written_s` is a unix time."""
    action, done = play.action, play.completion
    return Row(
        prompt_id=prompt_id,
        play=play.index,
        seed=play.seed,
        written_s=written_s,
        agent=action.agent,
        kind=action.kind,
        refs=json.dumps(action.refs),
        parent=action.parent,
        depth=action.depth,
        reward=play.reward,
        second_reward=play.second_reward,
        reward_flops=play.reward_flops,
        finish_reason=done.finish_reason if done else None,
        prompt_tokens=done.prompt_tokens if done else None,
        completion_tokens=done.completion_tokens if done else None,
        tokens_estimated=1 if done and done.tokens_estimated else None,
        flops=done.flops if done else None,
        error=play.error,
        response=done.text if done else None,
        reasoning=done.reasoning if done else None,
    )


def prompt_rows(prompts: Iterable[Prompt]) -> Iterator[tuple[int, str, str, str]]:
    """Yield the row of every prompt."""
    for position, prompt in enumerate(prompts):
        messages = json.dumps(as_dicts(prompt.messages), ensure_ascii=False)
        metadata = json.dumps(dict(prompt.metadata), default=str)
        yield position, prompt.id, messages, metadata
