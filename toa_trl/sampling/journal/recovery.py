"""A damaged journal: everything that can still be read goes into a fresh one, and the run goes on from there."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, get_type_hints

from toa_trl.errors import ConfigError, JournalError
from toa_trl.sampling.journal.journal import Journal, locked
from toa_trl.sampling.journal.table import (
    COLUMNS,
    INSERT_PROMPT,
    PAGE_SIZE,
    SELECT_PROMPT,
    VERSION,
    Row,
    as_play,
)
from toa_trl.types import Prompt

MAX_MISSES = (
    100_000  # numbers in a row without a row; more than one damaged page of the tree can cost
)
MAX_ROWS = 1_000_000  # plays of one prompt: a damaged tree may lead around in a circle
READ_ALL = "PRAGMA writable_schema=ON"  # else SQLite reads nothing of a file that was cut short
TYPES = tuple(get_type_hints(Row).values())


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found."""

    num_prompts: int
    num_plays: int
    num_hurt: (
        int  # prompts known to have lost plays; where an index is damaged as well there may be more
    )
    identity: bool  # whether the run's configuration was there
    damaged: (
        Path | None
    )  # where the damaged file is kept; None where there is no damage, and nothing was changed


def recover(run_dir: str | Path) -> Recovered:
    """Put a fresh journal of everything readable in the place of a run's damaged one.

    Raises:
        ConfigError: there is no journal, or another process has it open.
        JournalError: nothing can be read, or the fresh journal cannot be written.
    """
    path = Path(run_dir) / "journal.sqlite"
    if not path.is_file():
        raise ConfigError(f"{path}: there is no journal; is this the folder of a run?")
    lock, fresh = locked(path), path.with_name("journal.sqlite.recovered")
    try:
        _remove(fresh)  # of a recovery that was killed
        try:
            with closing(sqlite3.connect(path)) as old:
                healthy = _check(old, path)
            damaged = _cut(path)
            with (
                closing(sqlite3.connect(path)) as old,
                closing(Journal(fresh, create=True, lock=False)) as new,
            ):
                old.execute(READ_ALL)
                found = _Salvage(old).into(new)
            if healthy and not found.num_hurt:
                return found
            if Path(f"{path}-wal").exists():  # whoever closes a journal last empties and removes it
                raise ConfigError(f"{path}: another process has it open; end it, and recover again")
            damaged = damaged or _keep(path)
            os.replace(fresh, path)
        finally:
            _remove(fresh)
    finally:
        lock.release()
    return Recovered(found.num_prompts, found.num_plays, found.num_hurt, found.identity, damaged)


def _check(old: sqlite3.Connection, path: Path) -> bool:
    """Whether it is whole."""
    try:
        healthy = bool(old.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.Error:
        healthy = False
    try:
        old.execute(READ_ALL)
        (version,) = old.execute("PRAGMA user_version").fetchone()
        tables = {
            name for (name,) in old.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
    except sqlite3.Error as error:
        raise JournalError(
            f"{path}: nothing could be read ({error}): the beginning of the file, which says where everything is, is "
            "damaged, or it is not a journal. Nothing was changed; begin again in another output_dir"
        ) from error
    if version != VERSION or not {"run", "prompts", "plays"} <= tables:
        raise JournalError(
            f"{path}: nothing could be read: not a journal of this version ({version} instead of {VERSION})"
        )
    return healthy


class _Salvage:
    """Rows are looked up one by one, by their number in the file: a damaged page then costs only what is on it."""

    def __init__(self, old: sqlite3.Connection) -> None:
        self._old = old
        self._plays_of: dict[str, set[int]] = {}  # what was read, by prompt

    def into(self, new: Journal) -> Recovered:
        identity, prompts = self._identity(), list(self._prompts())
        with new.transaction() as db:
            db.executemany("INSERT INTO run (key, value) VALUES ('identity', ?)", identity)
            db.executemany(INSERT_PROMPT, prompts)
        num_plays = new.copy(self._plays())
        ids = {prompt_id for _, prompt_id, *_ in prompts} | self._plays_of.keys()
        return Recovered(
            len(prompts), num_plays, sum(map(self._is_hurt, ids)), bool(identity), None
        )

    def _identity(self) -> list[tuple[str]]:
        rows, _ = self._read("SELECT value FROM run WHERE key = 'identity'")
        rows = rows or self._read("SELECT value FROM run NOT INDEXED WHERE key = 'identity'")[0]
        return [row for row in rows if _sound(json.loads, *row)]

    def _prompts(self) -> Iterator[tuple[int, str, str, str]]:
        for position, prompt_id, messages, metadata in self._lookups(
            f"{SELECT_PROMPT} WHERE position = ?"
        ):
            if isinstance(prompt_id, str) and _sound(_prompt, prompt_id, messages, metadata):
                yield position, prompt_id, messages, metadata

    def _plays(self) -> Iterator[Row]:
        for row in map(Row._make, self._lookups(f"SELECT {COLUMNS} FROM plays WHERE rowid = ?")):
            if all(map(isinstance, row, TYPES)) and _sound(as_play, row):
                self._plays_of.setdefault(row.prompt_id, set()).add(row.play)
                yield row

    def _is_hurt(self, prompt_id: str) -> bool:
        """Whether plays are missing: by the index, which knows all of them, or where that is damaged, by their numbers."""
        read = self._plays_of.get(prompt_id, set())
        indexed, whole = self._read("SELECT play FROM plays WHERE prompt_id = ?", prompt_id)
        known = {play for (play,) in indexed} if whole else range(max(read, default=-1) + 1)
        return not read.issuperset(known)

    def _read(self, sql: str, *values: Any) -> tuple[list[Any], bool]:
        """The rows up to the first that cannot be read, and whether these are all."""
        rows = list[Any]()
        try:
            rows.extend(islice(self._old.execute(sql, values), MAX_ROWS))
        except sqlite3.Error:
            return rows, False
        return rows, True

    def _lookups(self, sql: str) -> Iterator[Any]:
        """The rows with the numbers 0, 1, 2, ..., as far as there are any."""
        misses = 0
        for number in count():
            rows, _ = self._read(sql, number)
            yield from rows
            misses = 0 if rows else misses + 1
            if misses > MAX_MISSES:
                return


def _prompt(prompt_id: str, messages: str, metadata: str) -> Prompt:
    return Prompt(prompt_id, json.loads(messages), dict(json.loads(metadata)))


def _sound(read: Any, *values: Any) -> bool:
    try:
        read(*values)
    except (TypeError, ValueError):
        return False
    return True


def _cut(path: Path) -> Path | None:
    """Remove the half page at the end of a file that was cut short, whose texts would end in zeros.

    Returns:
        Where the file is kept as it was, if there was such a page.
    """
    half = path.stat().st_size % PAGE_SIZE
    if not half:
        return None
    damaged = _free_name(path)
    shutil.copyfile(path, damaged)
    os.truncate(path, path.stat().st_size - half)
    return damaged


def _keep(path: Path) -> Path:
    """Give the damaged file another name, too."""
    damaged = _free_name(path)
    try:
        os.link(path, damaged)  # and not renamed: killed at any moment, there is a journal.sqlite
    except OSError:  # a file system without links
        shutil.copyfile(path, damaged)
    return damaged


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.damaged{f'.{n}' if n else ''}") for n in count())
    return next(name for name in names if not name.exists())


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
