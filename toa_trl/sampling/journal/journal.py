"""The journal of one run."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from toa_trl.errors import ConfigError, JournalError
from toa_trl.sampling.identity import check_same_identity
from toa_trl.sampling.journal.table import (
    INSERT,
    INSERT_NEW,
    INSERT_PROMPT,
    PAGE_SIZE,
    SCHEMA,
    SELECT,
    SELECT_PROMPT,
    VERSION,
    Row,
    as_play,
    as_row,
)
from toa_trl.types import AgentCounts, Counts, Play, Prompt, Rollout, as_dicts

ROWS_PER_COMMIT = 1000  # of a copy


class Journal:
    """The record of one run. Its reads may go on while a `Writer`'s thread commits.

    Args:
        path: of the SQLite file, or ":memory:".
        create: begin a new journal where there is none, and look through one that is there for damage; without it, its
            absence is an error.
        lock: this process is the one that writes.

    Raises:
        ConfigError: there is no journal, or another process writes it.
        JournalError: the file is not a journal, one of another version, or a damaged one.
    """

    def __init__(self, path: str | Path, *, create: bool = False, lock: bool = True) -> None:
        self.path = str(path)
        self.in_memory = self.path == ":memory:"
        if not create and not Path(self.path).is_file():
            raise ConfigError(f"{path}: there is no journal; is this the folder of a run?")
        self._lock = locked(self.path) if lock and not self.in_memory else None
        self._writing = threading.Lock()
        try:
            with self._errors():
                self._db = self._read = self._connect()
                self._open(create)
                if (
                    not self.in_memory
                ):  # a connection of its own never waits for a commit, and sees none half done
                    self._read = self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)

    def _open(self, create: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if (
            version == 0
            and create
            and not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        ):
            self._db.executescript(
                f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=WAL; BEGIN; {SCHEMA} COMMIT;"
            )
        elif version == 0 and not Path(self.path).stat().st_size:
            raise ConfigError(f"{self.path}: the run has not begun yet")
        elif version != VERSION:
            raise JournalError(
                f"{self.path}: not a journal of this version ({version} instead of {VERSION}); finish the run with the "
                "version of toa_trl that wrote it, or choose another output_dir"
            )
        elif create and (found := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(" ".join(found.split()))
        self._db.execute("PRAGMA synchronous=FULL")

    def close(self) -> None:
        """Close the file, and let others write it. A `Writer` is closed before."""
        if hasattr(self, "_db"):
            self._read.close()
            self._db.close()
        self.unlock()

    def unlock(self) -> None:
        """Nothing more will be written: let others write."""
        if self._lock is not None:
            self._lock.release()

    def begin(self, identity: Mapping[str, Any], prompts: Iterable[Prompt]) -> bool:
        """Begin a run, or go on with the one that is here.

        Args:
            identity: everything that decides a result, as JSON values.
            prompts: of the run; written once.

        Returns:
            Whether there was a run here already.

        Raises:
            ConfigError: the run here has another identity; the message shows the difference.
        """
        stored, prompts = self._get("identity"), list(prompts)
        if stored is not None:
            check_same_identity(self.path, stored, identity)
        if stored is not None and self.num_prompts() >= len(prompts):
            return True
        rows = (
            (
                position,
                p.id,
                json.dumps(as_dicts(p.messages), ensure_ascii=False),
                json.dumps(dict(p.metadata), default=str),
            )
            for position, p in enumerate(prompts)
        )
        with (
            self.transaction() as db
        ):  # a recovered journal may lack some prompts, or know no identity
            db.executemany(INSERT_PROMPT, rows)
            if stored is None:
                db.execute(
                    "INSERT INTO run (key, value) VALUES ('identity', ?)", (json.dumps(identity),)
                )
        return stored is not None

    def append(self, prompt_id: str, play: Play) -> None:
        """Write one play for good.

        Raises:
            JournalError: it could not be written (a full disk, a play that is there already).
        """
        self.append_all([(prompt_id, play)])

    def append_all(self, rows: Sequence[tuple[str, Play]]) -> None:
        """Write plays, given with the ids of their prompts, for good: all of them, or none.

        Raises:
            JournalError: one could not be written (a full disk, a play that is there already).
        """
        now = time.time()
        with self.transaction() as db:
            db.executemany(INSERT, [as_row(prompt_id, play, now) for prompt_id, play in rows])

    def merge(self, path: str | Path) -> int:
        """Copy the plays of another journal of the same prompts (a shard's), as far as they are not here already.

        Returns:
            How many were new.

        Raises:
            ConfigError: there is no journal.
            JournalError: the other cannot be read, or this one cannot be written.
        """
        with closing(Journal(path, lock=False)) as other:
            return self.copy(
                chain.from_iterable(other._rows(prompt_id) for _, prompt_id, *_ in other._prompts())
            )

    def copy(self, rows: Iterable[Row]) -> int:
        """Write rows of another journal, as far as they are not here already; returns how many were new."""
        rows, num_new = iter(rows), 0
        while chunk := list(islice(rows, ROWS_PER_COMMIT)):
            with self.transaction() as db:
                num_new += db.executemany(INSERT_NEW, chunk).rowcount
        return num_new

    def plays(self, prompt_id: str) -> list[Play]:
        """The plays of one prompt, scored and failed, by index."""
        with self._errors():
            return [as_play(row) for row in self._rows(prompt_id)]

    def rollouts(self) -> Iterator[Rollout]:
        """Every prompt with its plays, one at a time, in the order of the prompts file."""
        for _, prompt_id, messages, metadata in self._prompts():
            with self._errors():
                prompt = Prompt(prompt_id, json.loads(messages), json.loads(metadata))
            yield Rollout(prompt, tuple(self.plays(prompt_id)))

    def _rows(self, prompt_id: str) -> list[Row]:
        return [Row._make(row) for row in self._all(f"{SELECT} ORDER BY play", prompt_id)]

    def _prompts(self) -> Iterator[tuple[int, str, str, str]]:
        position = -1  # row by row: a cursor that stays open would keep the WAL from being emptied
        while rows := self._all(
            f"{SELECT_PROMPT} WHERE position > ? ORDER BY position LIMIT 1", position
        ):
            yield rows[0]
            position = rows[0][0]

    def num_prompts(self) -> int:
        """Prompts of the run."""
        return int(self._all("SELECT count(*) FROM prompts")[0][0])

    def num_scored(self) -> dict[str, int]:
        """Scored plays of every prompt that has any."""
        return dict(self._all("SELECT prompt_id, count(reward) FROM plays GROUP BY prompt_id"))

    def counts(self) -> Counts:
        """Totals over the run."""
        (totals,) = self._all(
            "SELECT count(reward), count(*) - count(reward), "
            "coalesce(sum(reward IS NOT NULL AND finish_reason = 'length'), 0), coalesce(sum(prompt_tokens), 0), "
            "coalesce(sum(completion_tokens), 0), total(flops), total(reward_flops) FROM plays"
        )
        return Counts(self.num_prompts(), *totals)

    def agent_counts(self) -> dict[str, AgentCounts]:
        """Totals over the run, by the name of the agent."""
        rows = self._all(
            "SELECT agent, count(reward), count(*) - count(reward), coalesce(sum(prompt_tokens), 0), "
            "coalesce(sum(completion_tokens), 0), total(flops) FROM plays GROUP BY agent"
        )
        return {agent: AgentCounts(*totals) for agent, *totals in rows}

    def best_rewards(self) -> dict[str, float]:
        """The best raw reward of every prompt with a scored play."""
        return dict(
            self._all(
                "SELECT prompt_id, max(reward) FROM plays WHERE reward IS NOT NULL GROUP BY prompt_id"
            )
        )

    def failures(self, length: int) -> dict[str, int]:
        """How often plays failed, by the first `length` characters of the reason."""
        reason = (
            "SELECT substr(error, 1, ?), count(*) FROM plays WHERE error IS NOT NULL GROUP BY 1"
        )
        return dict(self._all(reason, length))

    def num_written_since(self, unix_s: float) -> int:
        """Plays written at that time or later."""
        return int(self._all("SELECT count(*) FROM plays WHERE written_s >= ?", unix_s)[0][0])

    def times(self) -> tuple[float, float] | None:
        """When the first and the last play were written, as unix times; None where there is none."""
        first, last = (
            self._all(f"SELECT {end}(written_s) FROM plays")[0][0] for end in ("min", "max")
        )
        return None if first is None else (first, last)

    @property
    def identity(self) -> dict[str, Any]:
        """What the run was begun with."""
        return self._get("identity") or {}

    def _get(self, key: str) -> Any:
        with self._errors():
            rows = self._all("SELECT value FROM run WHERE key = ?", key)
            return json.loads(rows[0][0]) if rows else None

    def _all(self, sql: str, *values: Any) -> list[Any]:
        with self._errors():
            return self._read.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """What is done with the connection is written for good at the end, or not at all."""
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
        except (sqlite3.Error, json.JSONDecodeError, UnicodeEncodeError, OverflowError) as error:
            # SQLite's own errors have a code; an OperationalError without one is a text that is no UTF-8
            operational = isinstance(error, sqlite3.OperationalError) and hasattr(
                error, "sqlite_errorcode"
            )
            damaged = not operational and isinstance(
                error, sqlite3.OperationalError | json.JSONDecodeError
            )
            remedy = ""  # a play that is there already, or one that no file can hold
            if operational:
                remedy = (
                    ". What was written is safe; once the cause is gone (disk space, permissions), the same command "
                    "goes on."
                )
            elif damaged or type(error) is sqlite3.DatabaseError:
                remedy = (
                    f". The file is damaged or not a journal; `python -m toa_trl recover {Path(self.path).parent}` "
                    "saves what is readable."
                )
            raise JournalError(f"{self.path}: {error}{remedy}") from error


def locked(path: str | Path) -> FileLock:
    """The lock of who writes a journal, taken.

    Raises:
        ConfigError: another process has it.
    """
    lock = FileLock(
        f"{path}.lock", timeout=1
    )  # `status` holds it for a moment, to see whether anybody does
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"{path}: another process is writing this run; wait for it, or end it"
        ) from error
    return lock
