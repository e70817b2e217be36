"""The decisions of an adaptive allocation, in a table that other journals do not have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from toa_trl.sampling.budget import PlaysPerPrompt, is_adaptive
from toa_trl.sampling.journal.faults import journal_error
from toa_trl.sampling.journal.journal import PUT, Journal
from toa_trl.types import Grant

TABLE = """
CREATE TABLE IF NOT EXISTS grants (
    wave INTEGER PRIMARY KEY, round INTEGER NOT NULL, position INTEGER NOT NULL,
    plays INTEGER NOT NULL, gain REAL
)"""
THERE = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'grants')"
SELECT_GRANT = "SELECT wave, round, position, plays, gain FROM grants"
INSERT = "INSERT INTO grants VALUES (?, ?, ?, ?, ?)"
ENDED = "allocation_ended"  # key of the table run


def as_grant(row: Sequence[Any]) -> Grant:
    """Return the decision of a row.

    Raises:
        ValueError: a value has another type or is out of range: this package did not write it.
    """
    number, number_of_round, position, plays, gain = row
    numbers = (number, number_of_round, position, plays)
    sound = all(isinstance(value, int) and 0 <= value < 2**31 for value in numbers)
    if not sound or not (gain is None or (isinstance(gain, float) and not math.isnan(gain))):
        raise ValueError(f"the decision {number!r} has a value that is invalid")
    return Grant(number, number_of_round, position, plays, gain)


def write_grants(journal: Journal, grants: Sequence[Grant], ended: bool = False) -> None:
    """Write decisions durably; `ended`: everything is granted.

    Raises:
        JournalError: they could not be written.
    """
    with journal.transaction() as db:
        db.execute(TABLE)
        db.executemany(INSERT, grants)
        if ended:
            db.execute(PUT, (ENDED, "true"))


def read_grants(journal: Journal) -> list[Grant]:
    """Return the decisions of a run in their order; none of a run without them."""
    return list(iterate_grants(journal))


def iterate_grants(journal: Journal) -> Iterator[Grant]:
    """Yield the decisions of a run in their order, without holding all of them.

    Raises:
        JournalError: one has a value that is invalid.
    """
    if not journal.select(THERE)[0][0]:
        return
    num_prompts, last = journal.num_prompts(), -1
    while rows := journal.select(f"{SELECT_GRANT} WHERE wave > ? ORDER BY wave LIMIT 10000", last):
        try:
            grants = [as_grant(row) for row in rows]
            if any(grant.prompt >= num_prompts for grant in grants):
                raise ValueError("a decision concerns a prompt that is not there")
        except ValueError as error:
            raise journal_error(journal.path, error) from error
        yield from grants
        last = grants[-1].wave


def join_grants(journals: Iterable[Journal], into: Journal) -> None:
    """Replace the decisions of a journal by those of others, one after the other.

    Everything is granted if it is in each of them.

    Args:
        journals: of runs of some of the prompts.
        into: of all prompts.
    """
    positions = dict(into.select("SELECT id, position FROM prompts"))
    num_waves = num_rounds = 0
    with into.transaction() as db:
        db.execute(TABLE)
        db.execute("DELETE FROM grants")
        db.execute(PUT, (ENDED, "true"))
        for journal in journals:
            place = {
                position: positions[prompt_id]
                for position, prompt_id in journal.select("SELECT position, id FROM prompts")
            }
            grants = [
                Grant(
                    num_waves + grant.wave,
                    num_rounds + grant.round,
                    place[grant.prompt],
                    grant.plays,
                    grant.gain,
                )
                for grant in read_grants(journal)
            ]
            db.executemany(INSERT, grants)
            if grants:
                num_waves, num_rounds = grants[-1].wave + 1, grants[-1].round + 1
            if not allocation_ended(journal):
                db.execute("DELETE FROM run WHERE key = ?", (ENDED,))


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


def plays_of(journal: Journal) -> PlaysPerPrompt | None:
    """Return the plays that the prompts of an adaptive run have; None: each has the budget."""
    if not is_adaptive(journal.identity):
        return None
    return PlaysPerPrompt.of(journal.num_scored().values(), journal.num_prompts())


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
