"""Totals of runs, measured when they are asked for and kept until the run has changed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError, JournalError
from toa_trl.sampling.limits import cost_of
from toa_trl.types import AgentCounts
from toa_trl.viewer.folder import agents_of, configuration_of, describe, open_journal
from toa_trl.viewer.plays import Plays

RECENT_S = 300.0  # length of the window over which plays per second are measured
LIMIT_S = 20.0  # of one total of a run that is not complete
PATIENCE = 10.0  # a run that is being written is measured for at most this share of the time
BY_AGENT = """
SELECT agent, count(reward), count(*) - count(reward), coalesce(sum(prompt_tokens), 0),
    coalesce(sum(completion_tokens), 0), coalesce(sum(flops), 0), avg(reward),
    count(CASE WHEN reward IS NOT NULL AND finish_reason = 'length' THEN 1 END)
FROM {plays} GROUP BY agent"""
BEST = """
SELECT avg(best), count(*) FROM (
    SELECT max(reward) AS best FROM {plays} WHERE reward IS NOT NULL GROUP BY prompt_id
) AS of_prompts"""


class Figures:
    """The totals of every run that was asked for."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[object, float, float, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def of(self, path: Path) -> dict[str, Any]:
        """Return the totals of a run: see `measure`.

        Args:
            path: folder of the run.

        Raises:
            JournalError: the journal cannot be read.
        """
        with self._lock:  # one at a time: a large run takes seconds
            stamp, known = _stamp(path), self._known.get(path)
            now = time.monotonic()
            if known is not None and (known[0] == stamp or now - known[1] < PATIENCE * known[2]):
                return known[3]
            measured = measure(path)
            end = time.monotonic()
            self._known[path] = (stamp, end, end - now, measured)
            return measured


def measure(path: Path) -> dict[str, Any]:
    """Return the totals of a run.

    Args:
        path: folder of the run.

    Returns:
        {scored, failed, truncated, tokens, cost, mean_reward, mean_best, total (scored plays that
        the run wants), rate (plays per second, of a run that is being written), last (unix time of
        the last play), agents: [{name, scored, failed, tokens, mean_reward}]}; what is not known is
        None.

    Raises:
        JournalError: the journal cannot be read.
    """
    about = describe(path)
    if about["state"] == "damaged":
        raise JournalError(str(about["fault"]))
    with open_journal(path) as journal:
        identity, configuration = journal.identity, configuration_of(path)
        plays = Plays(journal, path)
        rows = plays.select(BY_AGENT, limit_s=LIMIT_S)
        try:
            mean_best = plays.select(BEST, limit_s=LIMIT_S)[0][0]
        except ConfigError:  # takes too long
            mean_best = None
        spending, times = journal.reward_spending, journal.times()
        recent = journal.num_written_since(time.time() - RECENT_S)
        num_prompts = journal.num_prompts()
    counts = {
        str(agent): AgentCounts(scored, failed, int(read), int(wrote), float(flops))
        for agent, scored, failed, read, wrote, flops, *_ in rows
    }
    means = {str(agent): mean for agent, *_, mean, _ in rows}
    scored = sum(of_agent.num_scored for of_agent in counts.values())
    total = num_prompts * int(identity.get("budget", 0))
    first, last = times or (None, None)
    rate = None
    if about["state"] == "running" and first is not None:
        rate = recent / max(min(RECENT_S, time.time() - first), 1.0)
    agents = [
        {
            "name": name,
            "scored": own.num_scored,
            "failed": own.num_failed,
            "tokens": own.prompt_tokens + own.completion_tokens,
            "mean_reward": means.get(name),
        }
        for name in dict.fromkeys([*agents_of(identity, configuration), *counts])
        for own in [counts.get(name, AgentCounts())]
    ]
    reward_sum = sum((means[name] or 0.0) * own.num_scored for name, own in counts.items())
    return {
        "scored": scored,
        "failed": sum(of_agent.num_failed for of_agent in counts.values()),
        "truncated": sum(row[-1] for row in rows),
        "tokens": sum(own["tokens"] for own in agents),
        "cost": cost_of(configuration, counts, spending),
        "mean_reward": reward_sum / scored if scored else None,
        "mean_best": mean_best,
        # a reward was known to be the highest, or no prompt may have more plays
        "total": scored if about["state"] == "finished" else total,
        "rate": rate,
        "last": last,
        "agents": agents,
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
