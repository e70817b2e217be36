"""Pages of plays by query: nothing but the rows of a page is read into memory.

A query has two steps. The keys of a page come from rollouts/ by DuckDB if the run is complete,
where ten million plays are sorted in a second, or else from the journal; then the rows of these
keys come from the journal, by its primary key.
"""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import duckdb
from pydantic import BaseModel, ConfigDict, Field

from toa_trl.errors import ConfigError, JournalError
from toa_trl.sampling.journal import Journal

LIMIT_S = 30.0  # of a query on a journal
EXCERPT = 160  # characters of a response in a table
SMALL = 200  # prompts whose plays the index of a journal finds fast
MAX_PROMPTS = 200_000
COLUMNS = {  # sort -> column
    "prompt": "prompt_id",
    "agent": "agent",
    "kind": "kind",
    "depth": "depth",
    "reward": "reward",
    "tokens": "completion_tokens",
    "finish": "finish_reason",
    "written": "written_s",
}
NULLABLE = ("reward", "tokens", "finish")
Sort = Literal["prompt", "agent", "kind", "depth", "reward", "tokens", "finish", "written"]


class Filters(BaseModel):
    """Which plays; what is not given is not asked for."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = ""  # an id, or words of the prompt
    agent: str = ""
    kind: str = ""
    depth: int | None = None
    finish: str = ""
    state: Literal["", "scored", "failed"] = ""
    error: str = ""  # words of the reason of a failed play
    min_reward: float | None = None
    max_reward: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None

    def clauses(self) -> tuple[list[str], list[Any]]:
        """Return conditions in SQL, without that on the prompt, and their values."""
        conditions = {
            "agent = ?": self.agent or None,
            "kind = ?": self.kind or None,
            "depth = ?": self.depth,
            "finish_reason = ?": self.finish or None,
            "reward >= ?": self.min_reward,
            "reward <= ?": self.max_reward,
            "completion_tokens >= ?": self.min_tokens,
            "completion_tokens <= ?": self.max_tokens,
            "instr(lower(error), lower(?)) > 0": self.error or None,
        }
        given = {sql: value for sql, value in conditions.items() if value is not None}
        states = {"scored": "reward IS NOT NULL", "failed": "reward IS NULL"}
        fixed = [states[self.state]] if self.state else []
        return [*given, *fixed], list(given.values())


class Query(Filters):
    """A page of plays."""

    sort: Sort = "prompt"
    descending: bool = False
    after: str = ""  # key of the last row of the page before
    limit: int = Field(default=50, ge=1, le=200)

    def following(self) -> tuple[str, list[Any]]:
        """Return the condition on rows after the page before, and its values.

        Raises:
            ConfigError: `after` is not a key.
        """
        try:
            value, prompt_id, play = json.loads(self.after)
            key = [str(prompt_id), int(play)]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"after: not the key of a row: {self.after!r}") from error
        column, same = COLUMNS[self.sort], "(prompt_id, play) > (?, ?)"
        if self.sort == "prompt" and self.descending:
            return "(prompt_id < ? OR (prompt_id = ? AND play > ?))", [key[0], *key]
        if self.sort == "prompt":
            return same, key
        if value is None:
            return f"({column} IS NULL AND {same})", key
        further = f"{column} {'<' if self.descending else '>'} ?"
        if self.sort in NULLABLE:
            further += f" OR {column} IS NULL"
        return f"({further} OR ({column} = ? AND {same}))", [value, value, *key]

    @property
    def order(self) -> str:
        """The order in SQL; rows without a value come last."""
        way = "DESC" if self.descending else "ASC"
        if self.sort == "prompt":
            return f"prompt_id {way}, play"
        nulls = " NULLS LAST" if self.sort in NULLABLE else ""
        return f"{COLUMNS[self.sort]} {way}{nulls}, prompt_id, play"


class Plays:
    """The plays of one run."""

    def __init__(self, journal: Journal, path: Path) -> None:
        self._journal = journal
        complete = journal.completed
        self._files = sorted(path.glob("rollouts/*.parquet")) if complete else []

    @property
    def in_files(self) -> bool:
        """Whether rollouts/ has all plays."""
        return bool(self._files)

    def page(self, query: Query) -> dict[str, Any]:
        """Return {plays, next}: rows, and the key after which the next page begins or None.

        Raises:
            ConfigError: see `Query.following`; or the query takes too long.
            JournalError: the journal cannot be read.
        """
        clauses, values = query.clauses()
        ids = self._prompt_ids(query.prompt)
        is_indexed = query.sort in ("prompt", "written") and not clauses
        from_journal = query.sort == "written" or is_indexed or len(ids or [0] * SMALL) < SMALL
        if query.after:
            sql, further = query.following()
            clauses, values = [*clauses, sql], [*values, *further]
        # one more row than shown tells whether there is a next page
        tail = f"ORDER BY {query.order} LIMIT {query.limit + 1}"
        keys = self._select(
            f"prompt_id, play, {COLUMNS[query.sort]}", clauses, values, ids, tail, from_journal
        )
        shown = keys[: query.limit]
        following = None
        if len(keys) > len(shown):
            prompt_id, play, value = shown[-1]
            following = json.dumps([value, prompt_id, play])
        return {"plays": self._rows(shown), "next": following}

    def count(self, filters: Filters) -> int:
        """Return the number of plays.

        Raises:
            ConfigError: the query takes too long.
            JournalError: the journal cannot be read.
        """
        clauses, values = filters.clauses()
        ids = self._prompt_ids(filters.prompt)
        from_journal = len(ids or [0] * SMALL) < SMALL
        return int(self._select("count(*)", clauses, values, ids, "", from_journal)[0][0])

    def select(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a statement on `{rows}`, in rollouts/ or else in the journal.

        Raises:
            ConfigError: the query takes too long.
            JournalError: the journal cannot be read.
        """
        read = self._from_files if self._files else self._from_journal
        return read(sql, values)

    def _select(
        self,
        columns: str,
        clauses: list[str],
        values: list[Any],
        ids: list[str] | None,
        tail: str,
        from_journal: bool,
    ) -> list[Any]:
        in_files = bool(self._files) and not from_journal
        if ids is not None:
            of_ids = "unnest(?)" if in_files else "value FROM json_each(?)"
            clauses = [*clauses, f"prompt_id IN (SELECT {of_ids})"]
            values = [*values, ids if in_files else json.dumps(ids)]
        where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
        sql = f"SELECT {columns} FROM {{rows}} {where} {tail}"
        read = self._from_files if in_files else self._from_journal
        return read(sql, values)

    def _from_files(self, sql: str, values: Sequence[Any]) -> list[Any]:
        return select_from_files(self._files, sql, values)

    def _from_journal(self, sql: str, values: Sequence[Any]) -> list[Any]:
        self._journal.interrupt_after(LIMIT_S)
        end = time.monotonic() + LIMIT_S
        try:
            return self._journal.select(sql.format(rows="plays"), *values)
        except JournalError as error:
            if time.monotonic() < end:
                raise
            raise ConfigError(
                f"this takes longer than {LIMIT_S:.0f} s in a run of this size that is not "
                "complete; filter by prompt, or sort by prompt or time"
            ) from error

    def _prompt_ids(self, words: str) -> list[str] | None:
        """Return the ids of the prompts with these words; None: of all prompts."""
        if not words:
            return None
        if self._journal.select("SELECT 1 FROM prompts WHERE id = ?", words):
            return [words]
        return [prompt_id for _, prompt_id, *_ in find_prompts(self._journal, words)]

    def _rows(self, keys: Sequence[tuple[str, int, Any]]) -> list[dict[str, Any]]:
        wanted = json.dumps([[prompt_id, play] for prompt_id, play, *_ in keys])
        names = (
            *("prompt_id", "play", "agent", "kind", "depth", "reward", "finish_reason"),
            *("prompt_tokens", "completion_tokens", "written_s", "text"),
        )
        rows = self._journal.select(
            "SELECT plays.prompt_id, plays.play, agent, kind, depth, reward, finish_reason, "
            "prompt_tokens, completion_tokens, written_s, "
            f"substr(coalesce(response, error), 1, {EXCERPT}) FROM json_each(?) AS wanted "
            "JOIN plays ON plays.prompt_id = json_extract(wanted.value, '$[0]') "
            "AND plays.play = json_extract(wanted.value, '$[1]')",
            wanted,
        )
        found = {(row[0], row[1]): dict(zip(names, row, strict=True)) for row in rows}
        # complete runs are not written any more, but a file may be older than its journal
        return [found[key[0], key[1]] for key in keys if (key[0], key[1]) in found]


def select_from_files(files: Iterable[Path], sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """Return the rows of a statement on `{rows}`, those of parquet files."""
    names = [glob.escape(str(file)) for file in files]
    with _database().cursor() as cursor:
        found = cursor.execute(sql.format(rows="read_parquet(?)"), [names, *values])
        rows: list[Any] = found.fetchall()
        return rows


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """Return the database of this process; each query takes a cursor, a connection of its own."""
    return duckdb.connect(config={"memory_limit": "1GB"})


def find_prompts(
    journal: Journal, words: str, after: int = -1, limit: int = MAX_PROMPTS
) -> list[tuple[int, str, str]]:
    """Return (position, id, messages as JSON) of the prompts with these words, in their order.

    Args:
        journal: of the run.
        words: looked for in ids and messages, without regard to the case of ASCII letters.
        after: position after which prompts are returned.
        limit: largest number of prompts.
    """
    in_json = json.dumps(words, ensure_ascii=False)[1:-1]
    sql = "SELECT position, id, messages FROM prompts WHERE position > ?"
    if not words:
        return journal.select(f"{sql} ORDER BY position LIMIT ?", after, limit)
    sql += " AND (instr(lower(id), lower(?)) > 0 OR instr(lower(messages), lower(?)) > 0)"
    return journal.select(f"{sql} ORDER BY position LIMIT ?", after, words, in_json, limit)
