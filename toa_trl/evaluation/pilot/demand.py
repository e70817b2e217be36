"""What the full run takes: hours, tokens, FLOPs and price, by agent and for the reward model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np

from toa_trl.agents.base import Price
from toa_trl.evaluation.costs import Costs
from toa_trl.evaluation.pilot.figures import Figure, Numbers, Resamples
from toa_trl.sampling.timing import Call
from toa_trl.types import Play, Rollout

AGENTS, REWARD, NEITHER = "agents", "reward", "neither"
TOKEN = Price(prompt=1e6, completion=1e6)  # a price of 1 per token


@dataclass(frozen=True)
class FullRun:
    """Size of the run that a pilot stands for."""

    num_prompts: int
    budget: int  # mean plays per prompt
    plays_in_flight: int  # of all prompts together, at most
    pilot_in_flight: int  # the same of the pilot


@dataclass(frozen=True)
class Part:
    """What an agent or the reward model takes in the full run; None: unknown."""

    name: str
    tokens: Figure | None
    flops: Figure | None
    cost: Figure | None
    latency_s: Figure | None  # mean time of a call
    busy_hours: Figure | None  # with at least one call, at the pace of the pilot
    busy_share: float | None  # of the pilot's time, with at least one call
    concurrency: float | None  # mean number of calls while there is one


@dataclass(frozen=True)
class Hours:
    """How long the full run takes."""

    at_pilot_pace: Figure  # plays per second as in the pilot
    if_as_fast: Figure
    """With all plays in flight, if calls take no longer than with those of the pilot."""
    agents_share: Figure  # of the time of a play; the reward model has the rest
    bottleneck: str  # AGENTS, REWARD or NEITHER
    idle_share: float  # of the pilot's time, without any call


@dataclass(frozen=True)
class Demand:
    """What the full run takes."""

    hours: Hours | None  # None: no call was timed
    parts: list[Part]  # the agents, in their order
    reward: Part
    tokens: Figure  # of agents and reward model
    flops: Figure | None
    cost: Figure | None


class Estimator:
    """Scales what a pilot took to the full run.

    Args:
        rollouts: of the pilot, each with at least one scored play.
        calls: timed calls of the pilot.
        run: the full run.
        costs: how costs are counted; without prices they are unknown.
        resamples: draws of the prompts.
    """

    def __init__(
        self,
        rollouts: Sequence[Rollout],
        calls: Sequence[Call],
        run: FullRun,
        costs: Costs,
        resamples: Resamples,
    ) -> None:
        self._rollouts, self._run, self._costs = rollouts, run, costs
        self._resamples = resamples
        self._num_scored = np.array([len(rollout.scored) for rollout in rollouts], dtype=float)
        self._calls = list(calls)
        self._row_of_prompt: dict[str | None, int] = {
            rollout.prompt.id: row for row, rollout in enumerate(rollouts)
        }
        self._row_of_play: dict[tuple[str, int | None], int] = {
            (play.action.agent, play.seed): row
            for row, rollout in enumerate(rollouts)
            for play in rollout.plays
        }

    def demand(self, agents: Sequence[str]) -> Demand:
        """Return what the full run takes.

        Args:
            agents: names of the agents, in the order shown.
        """
        parts = [self._part(agent) for agent in agents]
        reward, priced = self._reward(), bool(self._costs.prices)
        rows = [self._costs.of(rollout.plays) for rollout in self._rollouts]
        of_reward = self._per_prompt(self._calls_of(None), lambda call: call.tokens)
        tokens = self._scaled(np.array([row["tokens"] for row in rows]) + of_reward)
        flops = self._known([row["flops"] + row["reward_flops"] for row in rows])
        price = np.array([row["cost"] for row in rows])
        price += self._per_prompt(self._calls_of(None), lambda call: call.cost)
        cost = self._scaled(price) if priced or price.any() else None
        return Demand(self._hours(), parts, reward, tokens, flops, cost)

    def _part(self, agent: str) -> Part:
        rows = [
            self._costs.of([play for play in rollout.plays if play.action.agent == agent])
            for rollout in self._rollouts
        ]
        flops = self._known([row["flops"] for row in rows])
        priced = agent in self._costs.prices
        return Part(
            agent,
            self._scaled([row["tokens"] for row in rows]),
            flops,
            self._scaled([row["cost"] for row in rows]) if priced else None,
            *self._times(agent),
        )

    def _reward(self) -> Part:
        calls = self._calls_of(None)
        flops = [sum(play.reward_flops or 0.0 for play in r.plays) for r in self._rollouts]
        return Part(
            REWARD,
            self._known(self._per_prompt(calls, lambda call: call.tokens)),
            self._known(flops),
            self._known(self._per_prompt(calls, lambda call: call.cost)),
            *self._times(None),
        )

    def _times(
        self, agent: str | None
    ) -> tuple[Figure | None, Figure | None, float | None, float | None]:
        """Return latency, busy hours of the full run, busy share and concurrency."""
        calls = self._calls_of(agent)
        seconds = self._seconds(calls)
        if not seconds.sum():
            return None, None, None, None
        counts = self._per_prompt(calls, lambda call: 1)
        busy_s, wall_s = busy_seconds(calls), self._wall_s()
        in_calls_s = sum(call.end_s - call.start_s for call in calls)
        hours = self._scaled(seconds).times(busy_s / seconds.sum() / 3600)
        latency = self._resamples.ratio(seconds, counts)
        return latency, hours, busy_s / wall_s, in_calls_s / busy_s

    def _hours(self) -> Hours | None:
        of_agents = self._seconds([call for call in self._calls if call.agent is not None])
        of_all = of_agents + self._seconds(self._calls_of(None))
        if not of_all.sum():
            return None
        work, wall_s = self._scaled(of_all), self._wall_s()
        share = self._resamples.ratio(of_agents, of_all)
        bottleneck = AGENTS if share.low > 0.5 else REWARD if share.high < 0.5 else NEITHER
        return Hours(
            work.times(wall_s / of_all.sum() / 3600),
            work.times(1 / self._run.plays_in_flight / 3600),
            share,
            bottleneck,
            1 - busy_seconds(self._calls) / wall_s,
        )

    def _wall_s(self) -> float:
        """Return how long the sessions of the pilot took, from the first call to the last."""
        total_s = 0.0
        for _, group in groupby(self._calls, key=lambda call: call.session):
            calls = list(group)
            total_s += max(c.end_s for c in calls) - min(c.start_s for c in calls)
        return total_s

    def _calls_of(self, agent: str | None) -> list[Call]:
        return [call for call in self._calls if call.agent == agent]

    def _seconds(self, calls: Iterable[Call]) -> Numbers:
        return self._per_prompt(calls, lambda call: call.end_s - call.start_s)

    def _per_prompt(self, calls: Iterable[Call], value: Callable[[Call], float]) -> Numbers:
        totals = np.zeros(len(self._rollouts))
        for call in calls:
            row = self._row(call)
            if row is not None:
                totals[row] += value(call)
        return totals

    def _row(self, call: Call) -> int | None:
        """Return the prompt of a call; None for one that was withdrawn or cancelled."""
        if call.agent is None:
            return self._row_of_prompt.get(call.prompt_id)
        return self._row_of_play.get((call.agent, call.seed))

    def _scaled(self, totals: Sequence[float] | Numbers) -> Figure:
        """Return the total of the full run for one total per prompt of the pilot."""
        per_play = self._resamples.ratio(totals, self._num_scored)
        return per_play.times(self._run.num_prompts * self._run.budget)

    def _known(self, totals: Sequence[float] | Numbers) -> Figure | None:
        return self._scaled(totals) if np.any(totals) else None


def busy_seconds(calls: Iterable[Call]) -> float:
    """Return for how long at least one of the calls was in progress."""
    total_s, session, until_s = 0.0, -1, 0.0
    for call in sorted(calls, key=lambda call: (call.session, call.start_s)):
        if call.session != session:
            session, until_s = call.session, call.start_s
        total_s += max(call.end_s - max(call.start_s, until_s), 0.0)
        until_s = max(until_s, call.end_s)
    return total_s


def cost_measure(rollouts: Iterable[Rollout], costs: Costs) -> tuple[str, Callable[[Play], float]]:
    """Return in what the cost of an agent's plays is compared: price, FLOPs or tokens.

    Returns:
        Its name, and the cost of one play: by prices if every agent has one; else FLOPs if those
        of every response are known; else tokens.
    """
    plays = list(chain.from_iterable(rollout.plays for rollout in rollouts))
    if {play.action.agent for play in plays} <= costs.prices.keys():
        return "price", lambda play: _price(play, costs.prices[play.action.agent])
    if all(play.completion.flops for play in plays if play.completion):
        return "FLOPs", lambda play: (play.completion.flops or 0.0) if play.completion else 0.0
    return "tokens", lambda play: _price(play, TOKEN)


def _price(play: Play, price: Price) -> float:
    done = play.completion
    return price.of(done.prompt_tokens, done.completion_tokens) if done else 0.0


def unknown_flops(rollouts: Iterable[Rollout]) -> list[str]:
    """Return the agents whose FLOPs are not known for every response."""
    plays = chain.from_iterable(rollout.plays for rollout in rollouts)
    unknown = (play for play in plays if play.completion and play.completion.flops is None)
    return list(dict.fromkeys(play.action.agent for play in unknown))
