"""The tables of a journal, and the conversion between plays and rows."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple, get_args, get_type_hints

from toa_trl.types import Action, Completion, Kind, Play, Prompt, as_dicts

VERSION = 3
TABLES = {"run", "prompts", "plays"}
MAX_S = 1e11  # unix times beyond are invalid
PAGE_SIZE = 8192  # bytes; responses of some thousand characters fit
# Plays are stored in the order written, so that a commit touches few pages: clustered by prompt, a
# play cost four times as much. Long texts come last, so that SQLite reads numbers without them.
SCHEMA = f"""
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE prompts (
    position INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL,
    messages TEXT NOT NULL, metadata TEXT NOT NULL
);
CREATE TABLE plays (
    prompt_id TEXT NOT NULL, play INTEGER NOT NULL, seed INTEGER NOT NULL, written_s REAL NOT NULL,
    agent TEXT NOT NULL, kind TEXT NOT NULL, refs TEXT NOT NULL,
    parent INTEGER, depth INTEGER NOT NULL,
    reward REAL, second_reward REAL, reward_flops REAL, finish_reason TEXT,
    prompt_tokens INTEGER, completion_tokens INTEGER, tokens_estimated INTEGER, flops REAL,
    error TEXT, response TEXT, reasoning TEXT,
    PRIMARY KEY (prompt_id, play)
);
CREATE INDEX plays_written ON plays (written_s);
PRAGMA user_version = {VERSION};
"""


class Row(NamedTuple):
    """One play as a row; every statement takes the names of its columns from here."""

    prompt_id: str
    play: int
    seed: int
    written_s: float  # unix time
    agent: str
    kind: str
    refs: str  # JSON
    parent: int | None
    depth: int
    reward: float | None
    second_reward: float | None
    reward_flops: float | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    tokens_estimated: int | None  # 1, or null: counted, or written before this was recorded
    flops: float | None
    error: str | None
    response: str | None
    reasoning: str | None


TYPES = tuple(get_type_hints(Row).values())
KINDS = get_args(Kind)
COLUMNS = ", ".join(Row._fields)
INSERT = f"INSERT INTO plays ({COLUMNS}) VALUES ({', '.join('?' * len(Row._fields))})"
INSERT_NEW = f"{INSERT} ON CONFLICT (prompt_id, play) DO NOTHING"
INSERT_PROMPT = (
    "INSERT INTO prompts (position, id, messages, metadata) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (position) DO NOTHING"
)
SELECT_PROMPT = "SELECT position, id, messages, metadata FROM prompts"


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


def as_play(row: Row) -> Play:
    """Return the play of a row.

    Raises:
        ValueError: a value has another type or is out of range: this package did not write it.
    """
    refs = json.loads(row.refs) if all(map(isinstance, row, TYPES)) else None
    if not isinstance(refs, list) or any(type(ref) is not int for ref in refs):
        raise ValueError(f"play {row.play!r} has a value of the wrong type")
    finite = row.reward is None or math.isfinite(row.reward)
    if row.play < 0 or row.depth < 0 or row.kind not in KINDS or not finite:
        raise ValueError(f"play {row.play} has a value that is out of range")
    action = Action(row.agent, row.kind, tuple(refs), row.parent, row.depth)  # type: ignore[arg-type]
    done = None
    if row.response is not None:  # then the other columns of the completion are not null either
        done = Completion(
            row.response,
            row.finish_reason,  # type: ignore[arg-type]
            row.prompt_tokens,  # type: ignore[arg-type]
            row.completion_tokens,  # type: ignore[arg-type]
            row.flops,
            row.reasoning,
            tokens_estimated=bool(row.tokens_estimated),
        )
    return Play(
        row.play, action, done, row.reward, row.error, row.seed, row.reward_flops, row.second_reward
    )


def as_prompt(prompt_id: Any, messages: str, metadata: str) -> Prompt:
    """Return the prompt of a row.

    Raises:
        TypeError: a value has another type.
        ValueError: there is no message.
    """
    columns = json.loads(metadata)
    if not isinstance(prompt_id, str) or not isinstance(columns, Mapping):
        raise TypeError(f"the prompt {prompt_id!r} has a value of the wrong type")
    prompt = Prompt(prompt_id, json.loads(messages), dict(columns))
    if not prompt.messages:
        raise ValueError(f"the prompt {prompt_id!r} has no message")
    return prompt


def check_tree(plays: Sequence[Play]) -> None:
    """Check that no plays of a prompt see each other in a circle; lost plays may be missing.

    Raises:
        ValueError: some do.
    """
    seen_by = {}
    for play in plays:
        action = play.action
        seen_by[play.index] = (*action.refs, *(() if action.parent is None else (action.parent,)))
    if all(max(seen, default=-1) < index for index, seen in seen_by.items()):
        return  # the rule; else a play was asked for again after a stop
    try:
        TopologicalSorter(seen_by).prepare()
    except CycleError as error:
        raise ValueError(f"play {error.args[1][0]} sees itself, directly or not") from error


def columns_of(db: sqlite3.Connection) -> str:
    """Return COLUMNS for a statement that reads plays; those that the journal lacks are null."""
    there = {name for _, name, *_ in db.execute("PRAGMA table_info(plays)")}
    return ", ".join(f if f in there else f"NULL AS {f}" for f in Row._fields)


def add_columns(db: sqlite3.Connection) -> None:
    """Add the column that a journal of an earlier version lacks."""
    if columns_of(db) != COLUMNS:
        db.execute("ALTER TABLE plays ADD COLUMN tokens_estimated INTEGER")


def check_identity(identity: Any) -> None:
    """Check the types of a run's identity, as far as it is given.

    Raises:
        ValueError: a value has another type.
    """
    kinds = {"budget": int, "agents": dict, "prompts": dict, "allocation": dict}
    sound = isinstance(identity, dict) and all(
        isinstance(identity.get(key, kind()), kind) for key, kind in kinds.items()
    )
    if not sound:
        raise ValueError("the configuration of the run has a value of the wrong type")


def check_times(times_s: tuple[Any, Any]) -> None:
    """Check that values are unix times.

    Raises:
        ValueError: one is not.
    """
    if not all(isinstance(time_s, float) and 0 <= time_s < MAX_S for time_s in times_s):
        raise ValueError("the time of a play is not a unix time")


def prompt_rows(prompts: Iterable[Prompt]) -> Iterator[tuple[int, str, str, str]]:
    """Yield the row of every prompt."""
    for position, prompt in enumerate(prompts):
        messages = json.dumps(as_dicts(prompt.messages), ensure_ascii=False)
        metadata = json.dumps(dict(prompt.metadata), default=str)
        yield position, prompt.id, messages, metadata


def check_tables(db: sqlite3.Connection) -> None:
    """Check that a database has the tables of a journal, and nothing that computes its rows.

    Raises:
        ValueError: a table is missing, or there is a view, a trigger or a virtual table, whose
            rows could be without end.
    """
    rows = db.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_master").fetchall()
    tables = {
        name
        for kind, name, sql in rows
        if kind == "table" and not sql.upper().startswith("CREATE VIRTUAL")
    }
    if any(kind not in ("table", "index") for kind, *_ in rows) or not tables >= TABLES:
        raise ValueError("the tables are not those of a journal")
