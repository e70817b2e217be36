"""Totals of runs, measured when they are asked for and kept until the run has changed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from toa_trl.errors import JournalError
from toa_trl.sampling.journal import Journal, open_journal
from toa_trl.sampling.limits import cost_of
from toa_trl.types import AgentCounts
from toa_trl.utils.files import read_configuration
from toa_trl.viewer.folder import agents_of, describe
from toa_trl.viewer.plays import Plays

RECENT_S = 300.0  # length of the window over which plays per second are measured
READING_S = 3.0  # a request reads further plays of a journal for about this long
CHUNK = 100_000  # plays that are read at once
PATIENCE = 10.0  # a run that is being written is measured for at most this share of the time
BY_AGENT = """
SELECT agent, count(reward), count(*) - count(reward), coalesce(sum(prompt_tokens), 0),
    coalesce(sum(completion_tokens), 0), coalesce(sum(flops), 0), coalesce(sum(reward), 0),
    count(CASE WHEN reward IS NOT NULL AND finish_reason = 'length' THEN 1 END)
FROM {rows} GROUP BY agent"""
BEST = "SELECT prompt_id, max(reward) FROM {rows} WHERE reward IS NOT NULL GROUP BY prompt_id"
NEW = "(SELECT * FROM plays WHERE rowid > ? AND rowid <= ?) AS new"


class Played(NamedTuple):
    """Totals of some plays, as BY_AGENT selects them."""

    scored: int = 0
    failed: int = 0
    read: int = 0  # tokens
    wrote: int = 0
    flops: float = 0.0
    rewards: float = 0.0  # their sum
    truncated: int = 0  # scored plays that max_tokens cut short

    def plus(self, *others: Self) -> Self:
        """Return the sum."""
        return type(self)(*map(sum, zip(self, *others, strict=True)))

    @property
    def counts(self) -> AgentCounts:
        """What the cost is computed of."""
        return AgentCounts(self.scored, self.failed, self.read, self.wrote, self.flops)

    def as_json(self) -> dict[str, Any]:
        """Return {scored, failed, tokens, mean_reward}."""
        counts = {"scored": self.scored, "failed": self.failed, "tokens": self.read + self.wrote}
        return {**counts, "mean_reward": self.rewards / self.scored if self.scored else None}


@dataclass
class Totals:
    """Totals of the plays that were read so far; plays are only ever added to a journal."""

    by_agent: dict[str, Played] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)  # reward by prompt
    last: int = 0  # row of the journal up to which plays were read
    num_rows: int = 0  # of the journal

    def add(self, by_agent: Iterable[Any], best: Iterable[Any]) -> None:
        """Add the rows of both statements."""
        for agent, *amounts in by_agent:
            before = self.by_agent.get(str(agent), Played())
            self.by_agent[str(agent)] = before.plus(Played(*amounts))
        for prompt_id, reward in best:
            self.best[prompt_id] = max(reward, self.best.get(prompt_id, reward))

    def read(self, journal: Journal) -> None:
        """Read the plays that are new, or as many as READING_S allows."""
        end = time.monotonic() + READING_S
        self.num_rows = int(journal.select("SELECT coalesce(max(rowid), 0) FROM plays")[0][0])
        while self.last < self.num_rows:
            upto = min(self.last + CHUNK, self.num_rows)
            statements = (sql.format(rows=NEW) for sql in (BY_AGENT, BEST))
            self.add(*(journal.select(sql, self.last, upto) for sql in statements))
            self.last = upto
            if time.monotonic() >= end:
                return

    @property
    def share(self) -> float:
        """Share of the plays that were read."""
        return self.last / self.num_rows if self.num_rows else 1.0


class Figures:
    """The totals of every run that was asked for."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[object, float, float, dict[str, Any]]] = {}
        self._totals: dict[Path, tuple[int, Totals]] = {}
        self._lock = threading.Lock()

    def of(self, path: Path) -> dict[str, Any]:
        """Return the totals of a run: see `measure`.

        Raises:
            JournalError: the journal cannot be read.
        """
        with self._lock:  # one at a time: a large run takes seconds
            stamp, known = _stamp(path), self._known.get(path)
            now = time.monotonic()
            if known is not None and known[3]["share"] == 1.0:
                is_recent = now - known[1] < PATIENCE * known[2]
                if known[0] == stamp or is_recent:
                    return known[3]
            journal = path / "journal.sqlite"
            inode = journal.stat().st_ino if journal.exists() else 0
            before, totals = self._totals.get(path, (inode, Totals()))
            if before != inode:  # recovered, or replaced
                totals = Totals()
            measured = measure(path, totals)
            self._totals[path] = (inode, totals)
            end = time.monotonic()
            self._known[path] = (stamp, end, end - now, measured)
            return measured


def measure(path: Path, totals: Totals) -> dict[str, Any]:
    """Return the totals of a run.

    Args:
        path: folder of the run.
        totals: of the plays that were read before; changed.

    Returns:
        {scored, failed, truncated, tokens, cost, mean_reward, mean_best, total (scored plays that
        the run wants), rate (plays per second, of a run that is being written), last (unix time of
        the last play), agents: [{name, scored, failed, tokens, mean_reward}], share (of the plays
        that were read: all counts are of these)}; what is not known is None.

    Raises:
        JournalError: the journal cannot be read.
    """
    about = describe(path)
    if about["state"] == "damaged":
        raise JournalError(str(about["fault"]))
    with open_journal(path) as journal:
        identity, configuration = journal.identity, read_configuration(path)
        plays = Plays(journal, path)
        if plays.in_files:
            totals = Totals()
            totals.add(plays.select(BY_AGENT), plays.select(BEST))
        else:
            totals.read(journal)
        spending, times = journal.reward_spending, journal.times()
        recent = journal.num_written_since(time.time() - RECENT_S)
        num_prompts = journal.num_prompts()
    by_agent = totals.by_agent
    names = dict.fromkeys([*agents_of(identity, configuration), *by_agent])
    whole, rate = Played().plus(*by_agent.values()), None
    counts = {name: own.counts for name, own in by_agent.items()}
    if about["state"] == "running" and times is not None:
        rate = recent / max(min(RECENT_S, time.time() - times[0]), 1.0)
    return {
        **whole.as_json(),
        "truncated": whole.truncated,
        "cost": cost_of(configuration, counts, spending),
        "mean_best": sum(totals.best.values()) / len(totals.best) if totals.best else None,
        # a reward was known to be the highest, or no prompt may have more plays
        "total": whole.scored if about["state"] == "finished" else num_prompts * identity["budget"],
        "rate": rate,
        "last": times[1] if times else None,
        "agents": [{"name": name, **by_agent.get(name, Played()).as_json()} for name in names],
        "share": totals.share,
    }


def _stamp(path: Path) -> object:
    """Return what changes whenever the journal does."""
    stamps = []
    for name in ("journal.sqlite", "journal.sqlite-wal", "run.yaml"):
        try:
            state = os.stat(path / name)
        except FileNotFoundError:
            stamps.append((name, 0, 0))
        else:
            stamps.append((name, state.st_mtime_ns, state.st_size))
    return tuple(stamps)
