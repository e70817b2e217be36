"""Recover a damaged journal: copy everything readable into a new one, which the run resumes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError, JournalError
from toa_trl.sampling.journal.grants import SELECT_GRANT, as_grant, write_grants
from toa_trl.sampling.journal.journal import Journal
from toa_trl.sampling.journal.opening import locked, remove_journal
from toa_trl.sampling.journal.reading import as_play, as_prompt
from toa_trl.sampling.journal.table import (
    INSERT_PROMPT,
    PAGE_SIZE,
    SELECT_PROMPT,
    TYPES,
    VERSION,
    Row,
    check_tables,
    columns_of,
)
from toa_trl.types import Grant

MAX_MISSES = 100_000  # consecutive row numbers without a row: more than a damaged page can cost
MAX_ROWS = 1_000_000  # plays of one prompt: a damaged tree may contain a cycle
KEPT = ("identity", "extensions", "reward_spending")  # keys of the table run
READ_ALL = "PRAGMA writable_schema=ON"  # otherwise SQLite refuses a truncated file


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was recovered."""

    num_prompts: int
    num_plays: int
    num_hurt: int
    """Prompts known to have lost plays; if an index is damaged too, there may be more."""
    identity: bool
    """Whether the run's configuration was readable."""
    damaged: Path | None
    """Where the damaged file is kept; None if there was no damage and nothing was changed."""


def recover(run_dir: str | Path) -> Recovered:
    """Replace a run's damaged journal by a new one with everything readable.

    Raises:
        ConfigError: there is no journal, or another process has it open.
        JournalError: nothing can be read, or the new journal cannot be written.
    """
    path = Path(run_dir) / "journal.sqlite"
    if not path.is_file():
        raise ConfigError(f"{path}: there is no journal; name the folder of a run")
    lock, fresh = locked(path), path.with_name("journal.sqlite.recovered")
    try:
        remove_journal(fresh)  # left by a recovery that was killed
        try:
            with closing(sqlite3.connect(path)) as old:
                healthy = _check(old, path)
            damaged = _cut(path)
            new = Journal(fresh, create=True, lock=False)
            with closing(sqlite3.connect(path)) as old, closing(new):
                old.execute(READ_ALL)
                recovered = _Salvage(old).into(new)
            if healthy and not recovered.num_hurt:
                return recovered
            # The last process to close a journal removes its WAL.
            if Path(f"{path}-wal").exists():
                raise ConfigError(f"{path}: another process has it open; stop it and recover again")
            damaged = damaged or _keep(path)
            os.replace(fresh, path)
        finally:
            remove_journal(fresh)
    finally:
        lock.release()
    return replace(recovered, damaged=damaged)


def _check(old: sqlite3.Connection, path: Path) -> bool:
    """Return whether the file has no damage.

    Raises:
        JournalError: nothing can be read.
    """
    try:
        healthy = bool(old.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.Error:
        healthy = False
    try:
        old.execute(READ_ALL)
        (version,) = old.execute("PRAGMA user_version").fetchone()
        sound = True
        try:
            check_tables(old)
        except ValueError:
            sound = False
    except sqlite3.Error as error:
        raise JournalError(
            f"{path}: nothing could be read ({error}): the header of the file is damaged, or it is "
            "not a journal. Nothing was changed; start again in another output_dir"
        ) from error
    if version != VERSION or not sound:
        raise JournalError(
            f"{path}: nothing could be read: not a journal of this version ({version} instead of "
            f"{VERSION})"
        )
    return healthy


class _Salvage:
    """Looks rows up one by one by their number: a damaged page then loses only its own rows."""

    def __init__(self, old: sqlite3.Connection) -> None:
        self._old = old
        self._plays_of: dict[str, set[int]] = {}  # indices of the plays read, by prompt id

    def into(self, new: Journal) -> Recovered:
        """Copy everything readable into a new journal."""
        facts, prompts = list(self._facts()), list(self._prompts())
        with new.transaction() as db:
            db.executemany("INSERT INTO run (key, value) VALUES (?, ?)", facts)
            db.executemany(INSERT_PROMPT, prompts)
        # Without "allocation_ended": the next run decides whether everything is granted.
        if grants := list(self._grants()):
            write_grants(new, grants)
        num_plays = new.copy(self._plays())
        ids = {prompt_id for _, prompt_id, *_ in prompts} | self._plays_of.keys()
        return Recovered(
            num_prompts=len(prompts),
            num_plays=num_plays,
            num_hurt=sum(map(self._is_hurt, ids)),
            identity=any(key == "identity" for key, _ in facts),
            damaged=None,
        )

    def _facts(self) -> Iterator[tuple[str, str]]:
        for key in KEPT:
            rows, _ = self._read("SELECT value FROM run WHERE key = ?", key)
            rows = rows or self._read("SELECT value FROM run NOT INDEXED WHERE key = ?", key)[0]
            yield from ((key, value) for (value,) in rows[:1] if _sound(json.loads, value))

    def _prompts(self) -> Iterator[tuple[int, str, str, str]]:
        for row in self._lookups(f"{SELECT_PROMPT} WHERE position = ?"):
            if isinstance(row[1], str) and _sound(as_prompt, *row[1:]):
                yield row

    def _plays(self) -> Iterator[Row]:
        sql = f"SELECT {columns_of(self._old)} FROM plays WHERE rowid = ?"
        for row in map(Row._make, self._lookups(sql)):
            if all(map(isinstance, row, TYPES)) and _sound(as_play, row):
                self._plays_of.setdefault(row.prompt_id, set()).add(row.play)
                yield row

    def _grants(self) -> Iterator[Grant]:
        if self._read("SELECT 1 FROM sqlite_master WHERE name = 'grants'")[0]:
            for row in self._lookups(f"{SELECT_GRANT} WHERE wave = ?"):
                if _sound(as_grant, row):
                    yield as_grant(row)

    def _is_hurt(self, prompt_id: str) -> bool:
        """Return whether plays are missing, by the index or, if it is damaged, by their numbers."""
        read = self._plays_of.get(prompt_id, set())
        indexed, whole = self._read("SELECT play FROM plays WHERE prompt_id = ?", prompt_id)
        expected = (play for (play,) in indexed) if whole else range(max(read, default=-1) + 1)
        return not read.issuperset(expected)

    def _read(self, sql: str, *values: Any) -> tuple[list[Any], bool]:
        """Return the rows up to the first unreadable one, and whether these are all."""
        rows = list[Any]()
        try:
            rows.extend(islice(self._old.execute(sql, values), MAX_ROWS))
        except sqlite3.Error:
            return rows, False
        return rows, True

    def _lookups(self, sql: str) -> Iterator[Any]:
        """Yield the rows with the numbers 0, 1, 2, ..., as far as there are any."""
        misses = 0
        for number in count():
            rows, _ = self._read(sql, number)
            yield from rows
            misses = 0 if rows else misses + 1
            if misses > MAX_MISSES:
                return


def _sound(read: Any, *values: Any) -> bool:
    try:
        read(*values)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _cut(path: Path) -> Path | None:
    """Remove the partial page at the end of a truncated file, whose texts would end in zeros.

    Returns:
        Where the original file is kept, or None if there was no such page.
    """
    half = path.stat().st_size % PAGE_SIZE
    if not half:
        return None
    damaged = _free_name(path)
    shutil.copyfile(path, damaged)
    os.truncate(path, path.stat().st_size - half)
    return damaged


def _keep(path: Path) -> Path:
    """Give the damaged file a second name, and return that."""
    damaged = _free_name(path)
    try:
        os.link(path, damaged)  # not renamed: there is a journal.sqlite at any moment
    except OSError:  # the file system has no links
        shutil.copyfile(path, damaged)
    return damaged


def _free_name(path: Path) -> Path:
    free = path.with_name(f"{path.name}.damaged")
    numbers = count(1)
    while free.exists():
        free = path.with_name(f"{path.name}.damaged.{next(numbers)}")
    return free
