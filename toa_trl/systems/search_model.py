"""A search as a model: each conversation is answered by a search of its own, in memory."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toa_trl.agents import Agent, make_sampling
from toa_trl.data.prompts import as_prompts
from toa_trl.errors import ConfigError, ToaError
from toa_trl.rewards import RewardModel
from toa_trl.sampling.costs import check_costs, cost_of
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.limits import Meter, has_price, prices_of
from toa_trl.sampling.parts import Parts, check_parts
from toa_trl.sampling.runner import Runner
from toa_trl.search import Search, make_search
from toa_trl.tasks import Task, make_task
from toa_trl.types import Prompt, Rollout, Sampling, Spending


class NoResponse(ToaError):
    """Every play of a search failed."""


@dataclass(frozen=True)
class SearchSettings:
    """Which search, and how much of it."""

    search: str = "toa"
    budget: int = 160  # scored plays
    params: Mapping[str, Any] | None = None
    seed: int = 0


@dataclass(frozen=True)
class SearchResult:
    """What one search has made, and what it has cost."""

    rollout: Rollout
    settings: SearchSettings
    reward: Spending  # of judges and reward models on servers
    limit: str | None  # which limit was reached, if any

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all plays, failed ones included."""
        return sum(play.completion.prompt_tokens for play in self.rollout.plays if play.completion)

    @property
    def completion_tokens(self) -> int:
        """Completion tokens of all plays, failed ones included."""
        plays = self.rollout.plays
        return sum(play.completion.completion_tokens for play in plays if play.completion)


class SearchModel:
    """Agents, a reward model and a task, built once; every answer is a search of its own.

    Args:
        agents: entries {name, engine, ...}, or objects with a name and `generate`.
        reward: entry {kind, ...}, or an object with `score`.
        settings: the search unless a call names another.
        sampling: sampling parameters of all agents; an agent's own entry overrides them.
        task: see `toa_trl.tasks.make_task`; it must need no column but the prompt.
        plays_in_flight: plays of one search at the same time.
        patience_s: seconds that a search waits while no agent is available.
        limits: keys of `toa_trl.sampling.limits.Limits`, of each search.

    Raises:
        ConfigError: an argument is invalid, or the task needs further columns.
    """

    def __init__(
        self,
        agents: Sequence[Agent | Mapping[str, Any]],
        reward: RewardModel | Mapping[str, Any],
        settings: SearchSettings,
        sampling: Mapping[str, Any] | None = None,
        task: str | Mapping[str, Any] | Task = "alignment",
        plays_in_flight: int = 1,
        patience_s: float = 900.0,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings
        self._task = make_task(task)
        columns = {self._task.asked, *self._task.columns} - {"prompt"}
        if columns:
            raise ConfigError(
                f"task: {self._task.name!r} needs the columns {', '.join(sorted(columns))}, but a "
                "request has messages only; choose alignment, math or a folder of templates"
            )
        self._sampling = make_sampling("sampling", Sampling(), sampling or {})
        self._prices, self._limits = prices_of(agents), limits or {}
        self._reward_has_price = has_price(reward)
        self._meter()  # validates the limits before models are loaded
        self._names = check_parts(agents, reward)
        self._make_search(settings, settings.seed)  # validates it before models are loaded
        self._parts = Parts(agents, reward)
        self.check_search(settings)
        self._plays_in_flight, self._patience_s = plays_in_flight, patience_s

    async def check(self) -> None:
        """See `Parts`."""
        await self._parts.check()

    async def aclose(self) -> None:
        """See `Parts`."""
        await self._parts.aclose()

    def check_search(self, settings: SearchSettings) -> Search:
        """Return a new search with these settings.

        Raises:
            ConfigError: the search is unknown, a parameter is invalid, or it weighs costs that are
                not known.
        """
        search = self._make_search(settings, settings.seed)
        prices = self._meter().prices
        check_costs("search_params.cost", search.cost, self._parts.agents, prices)
        return search

    def read(self, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        """Return a conversation as a prompt, whose id is a digest of it.

        Raises:
            ConfigError: the messages are invalid.
        """
        text = json.dumps(messages, sort_keys=True)
        row = {"id": hashlib.sha256(text.encode()).hexdigest()[:32], "prompt": list(messages)}
        (prompt,) = as_prompts([("messages", row)], read=self._task.read)
        return prompt

    def sampling_of(self, changes: Mapping[str, Any]) -> Sampling:
        """Return the sampling of the model with the keys of a request changed.

        Raises:
            ConfigError: a value is invalid.
        """
        return make_sampling("", self._sampling, changes)

    async def answer(
        self,
        prompt: Prompt,
        settings: SearchSettings | None = None,
        sampling: Sampling | None = None,
    ) -> SearchResult:
        """Search for a response; a cancelled call cancels its plays.

        Args:
            prompt: what `read` returned.
            settings: by default those of the model.
            sampling: what `sampling_of` returned.

        Raises:
            ConfigError: a setting is invalid.
            NoResponse: every play failed.
            Unavailable: none of the reward model's servers answers.
            ToaError: no agent has answered for `patience_s`.
        """
        settings = settings or self.settings
        cost = self.check_search(settings).cost
        meter, journal = self._meter(), Journal(":memory:", create=True)
        try:
            journal.begin({}, [prompt])
            runner = Runner(
                make_search=lambda seed: self._make_search(settings, seed),
                agents=self._parts.agents,
                reward_model=self._parts.reward,
                journal=journal,
                task=self._task,
                sampling=sampling or self._sampling,
                seed=settings.seed,
                plays_in_flight=self._plays_in_flight,
                patience_s=self._patience_s,
                observers=[meter],
                enough=meter.is_reached,
                cost_of=cost_of(cost, meter.prices),
            )
            with meter.counting_rewards(journal):
                await runner.run([prompt])
            rollout = Rollout(prompt, tuple(journal.plays(prompt.id)))
        finally:
            journal.close()
        if not rollout.scored:
            reasons = Counter(play.error for play in rollout.plays)
            reason = reasons.most_common(1)[0][0] if reasons else "none was made"
            raise NoResponse(f"every play failed, most often with: {reason}")
        return SearchResult(rollout, settings, meter.reward, meter.reached)

    def _make_search(self, settings: SearchSettings, seed: int) -> Search:
        params = settings.params or {}
        return make_search(settings.search, self._names, settings.budget, seed, **params)

    def _meter(self) -> Meter:
        return Meter(self._limits, self._prices, self._reward_has_price)
