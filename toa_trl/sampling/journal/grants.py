"""The decisions of an adaptive allocation, in a table that other journals do not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from toa_trl.sampling.journal.journal import PUT, Journal
from toa_trl.types import Grant

TABLE = """
CREATE TABLE IF NOT EXISTS grants (
    wave INTEGER PRIMARY KEY, round INTEGER NOT NULL, position INTEGER NOT NULL,
    plays INTEGER NOT NULL, gain REAL
)"""
THERE = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'grants')"
ENDED = "allocation_ended"  # key of the table run


def write_grants(journal: Journal, grants: Sequence[Grant], ended: bool = False) -> None:
    """Write decisions durably; `ended`: everything is granted.

    Raises:
        JournalError: they could not be written.
    """
    with journal.transaction() as db:
        db.execute(TABLE)
        db.executemany("INSERT INTO grants VALUES (?, ?, ?, ?, ?)", map(astuple, grants))
        if ended:
            db.execute(PUT, (ENDED, "true"))


def read_grants(journal: Journal) -> list[Grant]:
    """Return the decisions of a run in their order; none of a run without them."""
    if not journal.select(THERE)[0][0]:
        return []
    columns = "wave, round, position, plays, gain"
    return [Grant(*row) for row in journal.select(f"SELECT {columns} FROM grants ORDER BY wave")]


def granted_plays(journal: Journal) -> dict[str, int]:
    """Return the plays granted so far by prompt id; empty for a run without decisions."""
    if not journal.select(THERE)[0][0]:
        return {}
    return dict(
        journal.select(
            "SELECT id, max(plays) FROM grants JOIN prompts USING (position) GROUP BY position"
        )
    )


def allocation_ended(journal: Journal) -> bool:
    """Return whether everything is granted."""
    return bool(journal.select("SELECT count(*) FROM run WHERE key = ?", ENDED)[0][0])


def num_unfinished(journal: Journal) -> int:
    """Return the number of prompts whose budget is not spent."""
    scored, identity, num_prompts = journal.num_scored(), journal.identity, journal.num_prompts()
    if "allocation" not in identity:
        budget = int(identity.get("budget", 0))
        return num_prompts - sum(count >= budget for count in scored.values())
    if not allocation_ended(journal):
        return num_prompts  # each may get further plays
    granted = granted_plays(journal)
    return sum(scored.get(prompt_id, 0) < plays for prompt_id, plays in granted.items())
