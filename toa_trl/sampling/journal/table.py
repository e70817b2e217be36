"""The tables of a journal, and the conversion between plays and rows."""

from __future__ import annotations

import json
from typing import NamedTuple

from toa_trl.types import Action, Completion, Play

VERSION = 3
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
    prompt_tokens INTEGER, completion_tokens INTEGER, flops REAL,
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
    flops: float | None
    error: str | None
    response: str | None
    reasoning: str | None


COLUMNS = ", ".join(Row._fields)
INSERT = f"INSERT INTO plays ({COLUMNS}) VALUES ({', '.join('?' * len(Row._fields))})"
INSERT_NEW = f"{INSERT} ON CONFLICT (prompt_id, play) DO NOTHING"
INSERT_PROMPT = (
    "INSERT INTO prompts (position, id, messages, metadata) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (position) DO NOTHING"
)
SELECT = f"SELECT {COLUMNS} FROM plays WHERE prompt_id = ?"
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
        flops=done.flops if done else None,
        error=play.error,
        response=done.text if done else None,
        reasoning=done.reasoning if done else None,
    )


def as_play(row: Row) -> Play:
    """Return the play of a row."""
    action = Action(row.agent, row.kind, tuple(json.loads(row.refs)), row.parent, row.depth)  # type: ignore[arg-type]
    done = None
    if row.response is not None:  # then the other columns of the completion are not null either
        done = Completion(
            row.response,
            row.finish_reason,  # type: ignore[arg-type]
            row.prompt_tokens,  # type: ignore[arg-type]
            row.completion_tokens,  # type: ignore[arg-type]
            row.flops,
            row.reasoning,
        )
    return Play(
        row.play, action, done, row.reward, row.error, row.seed, row.reward_flops, row.second_reward
    )
