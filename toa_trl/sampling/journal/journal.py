"""The journal of one run: reading and writing."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError, JournalError, ToaError
from toa_trl.sampling.identity import check_same_identity, differences
from toa_trl.sampling.journal.faults import journal_error
from toa_trl.sampling.journal.opening import connect, locked
from toa_trl.sampling.journal.table import (
    INSERT,
    INSERT_NEW,
    INSERT_PROMPT,
    PAGE_SIZE,
    SCHEMA,
    SELECT_PROMPT,
    VERSION,
    Row,
    add_columns,
    as_play,
    as_prompt,
    as_row,
    check_identity,
    check_tables,
    check_times,
    check_tree,
    columns_of,
    prompt_rows,
)
from toa_trl.types import AgentCounts, Counts, Play, Prompt, Rollout, Spending

ROWS_PER_COMMIT = 1000  # when copying
# total: a sum of integers may overflow
TOTAL_TOKENS = "CAST(total(prompt_tokens) AS INTEGER), CAST(total(completion_tokens) AS INTEGER)"
PUT = "INSERT OR REPLACE INTO run (key, value) VALUES (?, ?)"


class Journal:
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
            self._read.close()
            self._db.close()
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

    @property
    def extensions(self) -> list[dict[str, Any]]:
        """When the run was extended (unix times in `time_s`), and the `changes`."""
        return list(self._get("extensions") or ())

    @property
    def completed(self) -> bool:
        """Whether every budget was spent, and the data sets and the report were written."""
        return self._get("completed") is not None

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

    def plays(self, prompt_id: str) -> list[Play]:
        """Return the plays of one prompt, scored and failed, by index."""
        with self._errors():
            return [as_play(row) for row in self._rows(prompt_id)]

    def rollouts(self) -> Iterator[Rollout]:
        """Yield every prompt with its plays, in the order of the prompts file."""
        for prompt in self.prompts():
            plays = tuple(self.plays(prompt.id))
            with self._errors():
                check_tree(plays)
            yield Rollout(prompt, plays)

    def prompts(self) -> Iterator[Prompt]:
        """Yield every prompt, in the order of the prompts file."""
        for _, prompt_id, messages, metadata in self._prompts():
            with self._errors():
                prompt = as_prompt(prompt_id, messages, metadata)
            yield prompt

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all plays, in the order of the prompts."""
        for _, prompt_id, *_ in self._prompts():
            yield from self._rows(prompt_id)

    def _rows(self, prompt_id: str) -> list[Row]:
        sql = f"SELECT * FROM {self._plays} WHERE prompt_id = ? ORDER BY play"
        return [Row._make(row) for row in self.select(sql, prompt_id)]

    def _prompts(self) -> Iterator[tuple[int, str, str, str]]:
        # Row by row: an open cursor would keep SQLite from emptying the WAL.
        sql = f"{SELECT_PROMPT} WHERE position > ? ORDER BY position LIMIT 1"
        rows = self.select(sql, -1)
        while rows:
            yield rows[0]
            rows = self.select(sql, rows[0][0])

    def num_prompts(self) -> int:
        """Return the number of prompts of the run."""
        return int(self.select("SELECT count(*) FROM prompts")[0][0])

    def has_message_fields(self) -> bool:
        """Return whether a message of a prompt has more than a role and a content."""
        sql = (
            "SELECT EXISTS (SELECT 1 FROM prompts, json_each(messages) AS message, "
            "json_each(message.value) AS field WHERE field.key NOT IN ('role', 'content'))"
        )
        return bool(self.select(sql)[0][0])

    def num_scored(self) -> dict[str, int]:
        """Return the number of scored plays by prompt id, for prompts that have any play."""
        return dict(self.select("SELECT prompt_id, count(reward) FROM plays GROUP BY prompt_id"))

    def counts(self) -> Counts:
        """Return totals over the run."""
        (totals,) = self.select(
            "SELECT count(reward), count(*) - count(reward), "
            "coalesce(sum(reward IS NOT NULL AND finish_reason = 'length'), 0), "
            f"{TOTAL_TOKENS}, "
            f"total(flops), total(reward_flops), count(tokens_estimated) FROM {self._plays}"
        )
        return Counts(self.num_prompts(), *totals)

    def agent_counts(self) -> dict[str, AgentCounts]:
        """Return totals over the run, by name of the agent."""
        rows = self.select(
            "SELECT CAST(agent AS TEXT), count(reward), count(*) - count(reward), "
            f"{TOTAL_TOKENS}, "
            f"total(flops), count(tokens_estimated) FROM {self._plays} GROUP BY agent"
        )
        return {agent: AgentCounts(*totals) for agent, *totals in rows}

    def best_rewards(self) -> dict[str, float]:
        """Return the best raw reward by prompt id, for prompts with a scored play."""
        scored = "SELECT prompt_id, CAST(max(reward) AS REAL) FROM plays WHERE reward IS NOT NULL"
        return dict(self.select(f"{scored} GROUP BY prompt_id"))

    def failures(self, length: int) -> dict[str, int]:
        """Return the number of failed plays by the first `length` characters of the reason."""
        reason = (
            "SELECT CAST(substr(error, 1, ?) AS TEXT), count(*) FROM plays "
            "WHERE error IS NOT NULL GROUP BY 1"
        )
        return dict(self.select(reason, length))

    def num_written_since(self, unix_s: float) -> int:
        """Return the number of plays written at that unix time or later."""
        return int(self.select("SELECT count(*) FROM plays WHERE written_s >= ?", unix_s)[0][0])

    def times(self) -> tuple[float, float] | None:
        """Return the unix times of the first and the last play, or None if there is no play."""
        # Two queries: SQLite then takes both ends from the index instead of scanning it.
        first = self.select("SELECT min(written_s) FROM plays")[0][0]
        last = self.select("SELECT max(written_s) FROM plays")[0][0]
        if first is None:
            return None
        with self._errors():
            check_times((first, last))
        return (first, last)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the run's results; an empty mapping before the run has begun."""
        identity = self._get("identity") or {}
        with self._errors():
            check_identity(identity)
        return identity

    @property
    def reward_spending(self) -> Spending:
        """What calls of the reward model have cost, as far as it is written."""
        with self._errors():
            tokens, cost, *estimated = self._get("reward_spending") or (0, 0.0)
            return Spending(int(tokens), float(cost), *map(int, estimated))

    def set_reward_spending(self, spent: Spending) -> None:
        """Set what calls of the reward model have cost; it is written with the next plays."""
        self._spent = spent

    def _get(self, key: str) -> Any:
        with self._errors():
            rows = self.select("SELECT value FROM run WHERE key = ?", key)
            return json.loads(rows[0][0]) if rows else None

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
