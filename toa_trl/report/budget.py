"""Where the budget of an adaptive run went, from its rollouts and the decisions in its journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from toa_trl.errors import ToaError
from toa_trl.report.html import finite
from toa_trl.report.rollout_tables import Floats
from toa_trl.report.rollouts import query_plays
from toa_trl.sampling.allocation.history import Objective, ObjectiveName
from toa_trl.sampling.budget import is_adaptive
from toa_trl.sampling.journal import open_journal
from toa_trl.sampling.journal.grants import read_grants
from toa_trl.types import Grant

MAX_WAVES = 20_000  # waves whose gains are computed, evenly spaced over the run
NUM_GROUPS = 10
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
NEAREST = 40  # waves whose mean gain is the usual one


@dataclass(frozen=True)
class Wave:
    """Plays that a prompt was given because of what they were expected to gain."""

    value: float  # of the objective, before
    expected: float  # gain of the objective per play
    came: float  # gain of the objective per play


@dataclass(frozen=True)
class Group:
    """Prompts whose first plays had similar best rewards, or waves at similar values."""

    low: float
    high: float
    members: np.ndarray  # their indices


@dataclass(frozen=True)
class Uniform:
    """The first plays of every prompt, as many as the mean: what a uniform budget would give."""

    num_plays: int  # per prompt
    num_known: int  # prompts for which it is known exactly
    reached: Floats  # best reward of every prompt after these plays, or after the fewer it had
    gains: Floats  # how much better the best reward of the whole run is
    num_missing: int  # plays that the other prompts did not get
    usual_gain: float | None  # per play, of plays of the run at such best rewards


@dataclass(frozen=True)
class Budget:
    """What an adaptive run did with its budget. Only prompts with a scored play count."""

    best: list[Floats]  # of each prompt: best reward after 1, 2, ... scored plays
    objective: Objective
    stop_reward: float | None
    num_first: int  # scored plays that every prompt was to get first
    wave: int  # plays that a prompt was given at a time afterwards
    waves: list[Wave] | None  # None: the decisions are not at hand
    num_waves: int  # complete ones with an expected gain, of which `waves` are some
    cost: str  # what gains are divided by: plays, flops or price
    in_flight: int  # plays of a prompt at the same time

    @property
    def num_plays(self) -> np.ndarray:
        """Scored plays of each prompt."""
        return np.array([len(curve) for curve in self.best])

    @property
    def final(self) -> Floats:
        """Best reward of each prompt."""
        return np.array([curve[-1] for curve in self.best])

    def after(self, num_plays: int) -> Floats:
        """Return the best reward of each prompt after so many plays, or the fewer that it has."""
        return np.array([curve[min(num_plays, len(curve)) - 1] for curve in self.best])

    def uniform(self) -> Uniform:
        """Return what a uniform budget of as many plays, rounded down, would have given."""
        had, final = self.num_plays, self.final
        num_plays = int(had.mean())
        known = had >= num_plays
        if self.stop_reward is not None:  # more plays would not have been better
            known |= final >= self.stop_reward
        missing = (num_plays - had)[~known]
        usual, reached = self._usual_gains(final[~known]), self.after(num_plays)
        return Uniform(
            num_plays=num_plays,
            num_known=int(known.sum()),
            reached=reached,
            gains=final - reached,
            num_missing=int(missing.sum()),
            usual_gain=float(np.average(usual, weights=missing)) if len(usual) else None,
        )

    def _usual_gains(self, values: Floats) -> Floats:
        """Return the mean gain per play of the waves that began nearest to these best rewards."""
        starts, gains = [np.zeros(0)], [np.zeros(0)]
        for curve in self.best:
            before = np.arange(self.num_first, len(curve), self.wave)
            after = np.minimum(before + self.wave, len(curve))
            starts.append(curve[before - 1])
            gains.append((curve[after - 1] - curve[before - 1]) / (after - before))
        known, gained = np.concatenate(starts), np.concatenate(gains)
        if not len(known):
            return known
        order, size = np.argsort(known, kind="stable"), min(NEAREST, len(known))
        sums = np.concatenate([[0.0], gained[order].cumsum()])
        first = np.clip(known[order].searchsorted(values) - size // 2, 0, len(known) - size)
        means: Floats = (sums[first + size] - sums[first]) / size
        return means


def read_budget(run_dir: Path, files: Sequence[Path], run: Mapping[str, Any]) -> Budget | None:
    """Return what a run did with its budget; None unless its allocation is adaptive.

    Args:
        run_dir: folder of the run, perhaps with its journal.
        files: the rollouts of the run.
        run: content of run.yaml.
    """
    grants, settings, ids = _decisions(run_dir)
    if settings is None:
        settings = run["allocation"] if is_adaptive(run) else None
    if settings is None:
        return None
    with query_plays(files) as plays:
        rows = plays.execute("""
            SELECT prompt_id, list(reward ORDER BY play) FROM plays WHERE reward IS NOT NULL
            GROUP BY prompt_id ORDER BY min(row_num)""").df()
    rewards = {row[0]: np.asarray(row[1], np.float64) for row in rows.itertuples(index=False)}
    objective = _objective(settings)
    least = min(map(len, rewards.values()), default=0)
    expected = _expected(grants or (), ids, rewards)
    return Budget(
        best=[np.maximum.accumulate(values) for values in rewards.values()],
        objective=objective,
        stop_reward=finite(settings.get("stop_reward")),
        num_first=max(1, grants[0].plays if grants else least),
        wave=max(1, int(finite(settings.get("wave")) or 4)),
        waves=None if grants is None else _waves(expected, objective),
        num_waves=len(expected),
        cost=str(settings.get("cost")),
        in_flight=int(finite(run.get("plays_in_flight")) or 1),
    )


def grouped(values: Floats) -> list[Group]:
    """Return tenths of the values, the lowest first; equal values are in one group."""
    if not len(values):
        return []
    edges = np.unique(np.quantile(values, np.arange(1, NUM_GROUPS) / NUM_GROUPS))
    places = np.searchsorted(edges, values)
    groups = []
    for place in np.unique(places):
        members = np.flatnonzero(places == place)
        own = values[members]
        groups.append(Group(float(own.min()), float(own.max()), members))
    return groups


def _decisions(run_dir: Path) -> tuple[list[Grant] | None, dict[str, Any] | None, dict[int, str]]:
    """Return the decisions, the settings of the allocation, and the prompts by position."""
    try:
        with open_journal(run_dir) as journal:
            identity = journal.identity
            if not is_adaptive(identity):
                return None, None, {}
            ids = dict(journal.select("SELECT position, id FROM prompts"))
            return read_grants(journal), identity["allocation"], ids
    except ToaError:  # the rollouts can be read without a journal
        return None, None, {}


def _objective(settings: Mapping[str, Any]) -> Objective:
    name: ObjectiveName = next((it for it in OBJECTIVES if it == settings.get("objective")), "best")
    k, rank = settings.get("top_k"), finite(settings.get("rejected_rank"))
    return Objective(name, k if isinstance(k, int) and k > 0 else 3, rank)


def _expected(
    grants: Sequence[Grant], ids: Mapping[int, str], rewards: Mapping[str, Floats]
) -> list[tuple[Floats, int, int, float]]:
    """Return the rewards, the plays before and after, and the expected gain of complete waves."""
    before: dict[int, int] = {}
    expected = []
    for grant in grants:
        start = before.get(grant.prompt, 0)
        before[grant.prompt] = grant.plays
        own, gain = rewards.get(ids.get(grant.prompt, "")), finite(grant.gain)
        if own is not None and gain is not None and 0 < start < grant.plays <= len(own):
            expected.append((own, start, grant.plays, gain))
    return expected


def _waves(expected: Sequence[tuple[Floats, int, int, float]], objective: Objective) -> list[Wave]:
    waves = []
    for own, start, end, gain in expected[:: -(-len(expected) // MAX_WAVES) or 1]:
        value = objective.value(own[:start].tolist())
        came = objective.value(own[:end].tolist()) - value
        waves.append(Wave(value, gain, came / (end - start)))
    return waves
