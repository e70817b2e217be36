"""Totals of a run's rollouts, read in streaming batches.

Every reward is kept (8 bytes per play), so that quantiles are exact; the rest are running sums and
a few numbers per prompt. The rows of a prompt must be consecutive, as a run writes them.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from toa_trl.errors import ConfigError
from toa_trl.report.rollout_tables import Floats, floats, prompt_spans, whole_prompts

# (kind, agent) of an answer or aggregate, then of each refinement of it
Steps = tuple[tuple[str, str], ...]

NEEDED = ("prompt_id", "play", "agent", "kind", "reward")
AMOUNTS = ("prompt_tokens", "completion_tokens", "flops", "reward_flops")
FURTHER = ("refs", "depth", "finish_reason", "error", *AMOUNTS)
BATCH_ROWS = 32_768
MAX_REASONS = 1_000  # distinct reasons of failures


@dataclass
class Tally:
    """Totals of one agent's plays."""

    plays: int = 0
    failed: int = 0  # without a reward
    truncated: int = 0  # finish_reason "length"
    wins: int = 0  # prompts whose best play is this agent's
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0  # of the plays whose FLOPs are known
    num_flops: int = 0  # number of these plays
    reward_flops: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass
class BestSoFar:
    """Best reward after 1, 2, ... scored plays; prompts with fewer plays keep their best."""

    num_prompts: int = 0
    num_short: int = 0  # prompts with fewer scored plays than the longest
    _origin: float = 0.0  # subtracted from all rewards, so that squares do not cancel
    _total: Floats = field(default_factory=lambda: np.zeros(0))
    _square: Floats = field(default_factory=lambda: np.zeros(0))
    _own_total: Floats = field(default_factory=lambda: np.zeros(0))
    _own_num: Floats = field(default_factory=lambda: np.zeros(0))

    def add(self, rewards: Floats) -> None:
        """Add the rewards of a prompt's scored plays (at least one), in the order of the plays."""
        if not self.num_prompts:
            self._origin = float(rewards[0])
        known, num = len(self._total), len(rewards)
        if num > known:
            # earlier prompts stay at their best, whose sums are the last entries
            how: Any = {"mode": "edge"} if known else {}
            self._total = np.pad(self._total, (0, num - known), **how)
            self._square = np.pad(self._square, (0, num - known), **how)
            self._own_total = np.pad(self._own_total, (0, num - known))
            self._own_num = np.pad(self._own_num, (0, num - known))
            self.num_short = self.num_prompts
        self.num_short += num < known
        best = np.maximum.accumulate(rewards) - self._origin
        best = np.pad(best, (0, len(self._total) - num), mode="edge")
        self._total += best
        self._square += best**2
        self._own_total[:num] += rewards
        self._own_num[:num] += 1
        self.num_prompts += 1

    @property
    def mean(self) -> Floats:
        """Mean best reward after 1, 2, ... scored plays."""
        return self._total / max(self.num_prompts, 1) + self._origin

    @property
    def half_width(self) -> Floats:
        """Half width of the normal 95 % interval of `mean`; 0 for a single prompt."""
        num = self.num_prompts
        variance = (self._square - self._total**2 / max(num, 1)) / max(num - 1, 1)
        return 1.96 * np.sqrt(np.maximum(variance, 0) / max(num, 1))

    @property
    def own(self) -> Floats:
        """Mean reward of the 1st, 2nd, ... scored play itself."""
        return self._own_total / np.maximum(self._own_num, 1)


@dataclass
class Summary:
    """Totals of a run's rollouts. Rewards are raw."""

    tallies: dict[str, Tally] = field(default_factory=dict)  # by agent, in the order of run.yaml
    prompt_ids: list[str] = field(default_factory=list)
    num_unscored_prompts: int = 0  # no play of theirs has a reward
    rewards: dict[tuple[str, int], array[float]] = field(default_factory=dict)  # by (agent, depth)
    rewards_by_kind: dict[str, list[float]] = field(default_factory=dict)  # kind -> [count, sum]
    # (reason, agent) -> failed plays
    reasons: dict[tuple[str, str], int] = field(default_factory=dict)
    # path of best plays -> [count, sum of rewards]
    paths: dict[Steps, list[float]] = field(default_factory=dict)
    # (agent of the draft, or None for the best of several; refining agent)
    # -> [count, sum of gains, number of gains > 0]
    gains: dict[tuple[str | None, str], list[float]] = field(default_factory=dict)
    # kinds of the best plays, and "fresh": answers below a draft
    best: Counter[str] = field(default_factory=Counter)
    curve: BestSoFar = field(default_factory=BestSoFar)

    def total(self, name: str) -> Any:
        """Return the sum of a field of `Tally` over the agents."""
        return sum(getattr(tally, name) for tally in self.tallies.values())

    def select(self, agent: str | None = None, depths: Collection[int] | None = None) -> Floats:
        """Return the rewards of an agent, or of some depths."""
        chosen = [np.zeros(0)]
        for (own_agent, depth), values in self.rewards.items():
            if agent in (None, own_agent) and (depths is None or depth in depths):
                chosen.append(np.frombuffer(values))
        return np.concatenate(chosen)


def summarize(files: Sequence[Path], agents: Sequence[str] = ()) -> Summary:
    """Return the totals of a run, reading every play once.

    Args:
        files: the rollouts of a run.
        agents: names in the order in which they are listed; others follow in order of appearance.

    Raises:
        ConfigError: a column is missing, or the rows of a prompt are not consecutive.
    """
    summary = Summary(tallies={agent: Tally() for agent in agents})
    seen: set[str] = set()
    for block in whole_prompts(files, NEEDED, FURTHER, BATCH_ROWS):
        columns = _columns(block)
        _count(summary, columns)
        ids = columns["prompt_id"]
        for start, end in prompt_spans(ids):
            if ids[start] in seen:
                raise ConfigError(
                    f"rollouts: the rows of prompt {ids[start]!r} are not consecutive; "
                    "sort by prompt_id"
                )
            seen.add(ids[start])
            summary.prompt_ids.append(ids[start])
            order = start + np.argsort(columns["play"][start:end], kind="stable")
            _follow(summary, {name: column[order] for name, column in columns.items()})
    return summary


def _columns(table: pa.Table) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for name in ("prompt_id", "agent", "kind", "finish_reason", "error"):
        columns[name] = np.array(table[name].cast(pa.string()).to_pylist(), dtype=object)
    for name in ("play", "depth", "reward", *AMOUNTS):
        columns[name] = floats(table[name])
    columns["play"] = columns["play"].astype(np.int64)
    columns["depth"] = np.nan_to_num(columns["depth"]).astype(np.int64)
    refs = np.empty(len(table), dtype=object)
    refs[:] = [tuple(r or ()) for r in table["refs"].to_pylist()]
    columns["refs"] = refs
    return columns


def _count(summary: Summary, columns: dict[str, NDArray[Any]]) -> None:
    """Add sums per agent, and the rewards."""
    scored = ~np.isnan(columns["reward"])
    for agent in dict.fromkeys(columns["agent"]):
        own = columns["agent"] == agent
        tally = summary.tallies.setdefault(agent, Tally())
        tally.plays += int(own.sum())
        tally.failed += int((own & ~scored).sum())
        tally.truncated += int((columns["finish_reason"][own] == "length").sum())
        tally.prompt_tokens += int(np.nansum(columns["prompt_tokens"][own]))
        tally.completion_tokens += int(np.nansum(columns["completion_tokens"][own]))
        tally.flops += float(np.nansum(columns["flops"][own]))
        tally.num_flops += int((~np.isnan(columns["flops"][own])).sum())
        tally.reward_flops += float(np.nansum(columns["reward_flops"][own]))
        tally.kinds.update(columns["kind"][own])
        for depth in np.unique(columns["depth"][own & scored]).tolist():
            chosen = columns["reward"][own & scored & (columns["depth"] == depth)]
            summary.rewards.setdefault((agent, depth), array("d")).frombytes(chosen.tobytes())
    for kind in dict.fromkeys(columns["kind"]):
        chosen = columns["reward"][scored & (columns["kind"] == kind)]
        _add(summary.rewards_by_kind, kind, len(chosen), float(chosen.sum()))
    for agent, error in zip(columns["agent"][~scored], columns["error"][~scored], strict=True):
        # addresses and request ids would make every reason unique
        lines = re.sub(r"0x[0-9a-f]+|[0-9a-f-]{16,}|\d{5,}", "…", error or "").strip().splitlines()
        reason = (lines[0][:200] if lines else "no reason recorded", agent)
        if reason not in summary.reasons and len(summary.reasons) >= MAX_REASONS:
            reason = ("other reasons", agent)
        summary.reasons[reason] = summary.reasons.get(reason, 0) + 1


def _follow(summary: Summary, plays: dict[str, NDArray[Any]]) -> None:
    """Add a whole prompt, its plays in order: the best path, gains of refinements, the curve."""
    rewards, agents, kinds, refs = plays["reward"], plays["agent"], plays["kind"], plays["refs"]
    scored = ~np.isnan(rewards)
    if not scored.any():
        summary.num_unscored_prompts += 1
        return
    summary.curve.add(rewards[scored])
    row_of = {play: row for row, play in enumerate(plays["play"].tolist())}
    for row in np.flatnonzero(scored & (kinds != "answer")):
        drafts = [row_of[ref] for ref in refs[row] if ref in row_of and scored[row_of[ref]]]
        if drafts:
            gain = float(rewards[row] - rewards[drafts].max())
            of = agents[drafts[0]] if len(drafts) == 1 else None
            _add(summary.gains, (of, agents[row]), 1, gain, gain > 0)
    at = best = int(np.nanargmax(rewards))  # of equal rewards the earlier play
    steps = [(kinds[at], agents[at])]
    while kinds[at] == "refine" and refs[at] and refs[at][0] in row_of:
        at = row_of[refs[at][0]]
        steps.append((kinds[at], agents[at]))
    _add(summary.paths, tuple(reversed(steps)), 1, float(rewards[best]))
    summary.tallies[agents[best]].wins += 1
    summary.best[kinds[best]] += 1
    summary.best["fresh"] += bool(kinds[best] == "answer" and plays["depth"][best] > 0)


def _add(sums: dict[Any, list[float]], key: Any, *values: float) -> None:
    sums[key] = [a + b for a, b in zip(sums.get(key, [0.0] * len(values)), values, strict=True)]
