"""The tables of a journal, and the statements that name their columns."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple, get_type_hints

VERSION = 3
TABLES = {"run", "prompts", "plays"}
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
COLUMNS = ", ".join(Row._fields)
INSERT = f"INSERT INTO plays ({COLUMNS}) VALUES ({', '.join('?' * len(Row._fields))})"
INSERT_NEW = f"{INSERT} ON CONFLICT (prompt_id, play) DO NOTHING"
INSERT_PROMPT = (
    "INSERT INTO prompts (position, id, messages, metadata) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (position) DO NOTHING"
)
SELECT_PROMPT = "SELECT position, id, messages, metadata FROM prompts"


def columns_of(db: sqlite3.Connection) -> str:
    """Return COLUMNS for a statement that reads plays; those that the journal lacks are null."""
    there = {name for _, name, *_ in db.execute("PRAGMA table_info(plays)")}
    return ", ".join(f if f in there else f"NULL AS {f}" for f in Row._fields)


def add_columns(db: sqlite3.Connection) -> None:
    """Add the column that a journal of an earlier version lacks."""
    if columns_of(db) != COLUMNS:
        db.execute("ALTER TABLE plays ADD COLUMN tokens_estimated INTEGER")


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
