"""The settings of an adaptive allocation, checked against the run that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toa_trl.agents import Agent
from toa_trl.agents.base import Price
from toa_trl.data.preference import REJECTED_RANK
from toa_trl.errors import ConfigError
from toa_trl.sampling.allocation.base import Allocation, SearchOf
from toa_trl.sampling.allocation.gain import GainEstimator
from toa_trl.sampling.allocation.history import Objective, ObjectiveName
from toa_trl.sampling.allocation.prior import check_prior, learn_from
from toa_trl.sampling.allocation.turns import AdaptiveTurns
from toa_trl.sampling.allocation.waves import Waves
from toa_trl.sampling.costs import check_costs, cost_of
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.journal.grants import num_unfinished
from toa_trl.search import first_difference
from toa_trl.search.base import Cost
from toa_trl.types import Prompt
from toa_trl.utils.config import FiniteFloat, PositiveInt

MIN_PLAYS = 4
MAX_SHARE = 8  # max_plays by default: this many times the budget


class Adaptive(Allocation):
    """The next plays go to the prompts where they are expected to gain most.

    `budget` is then the mean number of plays per prompt. The gain is learned during the run,
    from the plays of all its prompts. The search must not depend on the budget: toa takes width
    anytime unless one is given.

    Args:
        min_plays: plays that every prompt gets first, at most the budget. By default 4, or the
            number of agents where that is more.
        max_plays: most plays of a prompt, at least the budget. By default 8 times the budget.
        wave: plays that a prompt gets at a time afterwards.
        objective: what plays are to increase. best: the best reward, for SFT. top_k: the mean of
            the `top_k` best rewards. margin: the best reward minus that of the response that the
            pairing policy (rank or worst) rejects.
        top_k: number of best rewards that count for the objective top_k.
        cost: what the gain is divided by. plays: every play costs the same. flops: the FLOPs of the
            agents. price: the prices of the agents.
        stop_reward: known ceiling of the reward, such as 1 for verifiable rewards: a prompt that
            reaches it gets no further plays.
        prior: folder of an earlier run with the same reward and task, such as a pilot, from whose
            plays the gain is learned before this run has any.
    """

    def __init__(
        self,
        min_plays: PositiveInt | None = None,
        max_plays: PositiveInt | None = None,
        wave: PositiveInt = 2,
        objective: ObjectiveName = "best",
        top_k: PositiveInt = 3,
        cost: Cost = "plays",
        stop_reward: FiniteFloat | None = None,
        prior: str | None = None,
    ) -> None:
        self._min_plays, self._max_plays, self._wave = min_plays, max_plays, wave
        self._objective, self._cost = Objective(objective, top_k), cost
        self._stop_reward = stop_reward
        self._prior = None if prior is None else Path(prior).expanduser()
        self._settings: dict[str, Any] = {
            "kind": "adaptive",
            "min_plays": min_plays,
            "max_plays": max_plays,
            "wave": wave,
            "objective": objective,
            "top_k": top_k,
            "cost": cost,
            "stop_reward": stop_reward,
        }

    def search_params(self, search: Any, params: Mapping[str, Any]) -> dict[str, Any]:
        """See `Allocation`."""
        return {**({"width": "anytime"} if search == "toa" else {}), **params}

    def check(self, budget: int, search_of: SearchOf, preference: Mapping[str, Any]) -> None:
        """See `Allocation`."""
        super().check(budget, search_of, preference)
        self._num_agents = len(search_of(budget).agents)
        min_plays, max_plays = self._least, self.most_plays
        if max_plays < budget:
            raise ConfigError(
                f"allocation.max_plays: must be >= the budget, {budget}, which is the mean number "
                f"of plays per prompt, not {max_plays}"
            )
        if min_plays > budget:
            raise ConfigError(
                f"allocation.min_plays: must be <= the budget, {budget}, not {min_plays}"
            )
        first = {action.agent for _, action in search_of(max_plays).ask(self._num_agents)}
        if min_plays < len(first):
            raise ConfigError(
                f"allocation.min_plays: must be >= {len(first)}, because the search asks each of "
                f"its {len(first)} agents first, not {min_plays}"
            )
        play = first_difference(lambda: search_of(budget), lambda: search_of(max_plays), budget)
        if play is not None:
            raise ConfigError(
                "allocation: adaptive needs a search whose choices do not depend on the budget, "
                f"and those of this one do, from play {play} on; for toa set search_params: "
                "{width: anytime}, or choose parallel, sequential, moa, greedy or ab_mcts"
            )
        self._check_objective(preference)

    def _check_objective(self, preference: Mapping[str, Any]) -> None:
        policy = preference.get("policy", "rank")
        if self._objective.name != "margin":
            return
        if policy not in ("rank", "worst"):
            raise ConfigError(
                f"allocation.objective: margin is defined for the pairing policies rank and worst, "
                f"not for preference.policy {policy!r}; choose best or top_k"
            )
        rank = preference.get("rejected_rank", REJECTED_RANK) if policy == "rank" else None
        self._objective = Objective("margin", self._objective.k, rank)
        self._settings["rejected_rank"] = rank

    def check_costs(self, agents: Mapping[str, Agent], prices: Mapping[str, Price]) -> None:
        """See `Allocation`."""
        check_costs("allocation.cost", self._cost, agents, prices)

    def identified(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """See `Allocation`."""
        if self._prior is None:
            return {**identity, "allocation": self._settings}
        prior = check_prior(self._prior, identity)
        return {**identity, "allocation": {**self._settings, "prior": prior}}

    @property
    def most_plays(self) -> int:
        """See `Allocation`."""
        return self._max_plays or MAX_SHARE * self.budget

    @property
    def _least(self) -> int:
        return self._min_plays or min(self.budget, max(MIN_PLAYS, self._num_agents))

    def unfinished(self, prompts: Sequence[Prompt], journal: Journal) -> list[Prompt]:
        """See `Allocation`."""
        return list(prompts) if num_unfinished(journal) else []

    def turns(
        self, prompts: Sequence[Prompt], journal: Journal, prices: Mapping[str, Price]
    ) -> AdaptiveTurns | None:
        """See `Allocation`."""
        if not prompts:
            return None
        estimator = GainEstimator()
        if self._prior is not None:
            learn_from(self._prior, self._wave, self._objective, estimator)
        waves = Waves(
            num_prompts=len(prompts),
            budget=self.budget,
            min_plays=self._least,
            max_plays=self.most_plays,
            wave=self._wave,
            objective=self._objective,
            stop_reward=self._stop_reward,
            estimator=estimator,
        )
        return AdaptiveTurns(prompts, waves, journal, cost_of(self._cost, prices))
