"""The agents and the reward model of a run: made of their entries, checked and closed together."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toa_trl.agents import Agent, as_agent, make_agent, names_of_agents
from toa_trl.rewards import KINDS, RewardModel, make_reward
from toa_trl.sampling.contents import contents_of
from toa_trl.sampling.identity import decisive
from toa_trl.utils.aio import gather_or_cancel


def check_parts(
    agents: Sequence[Agent | Mapping[str, Any]],
    reward: RewardModel | Mapping[str, Any] | Callable[..., Any],
) -> list[str]:
    """Return the names of the agents; a mistake in an entry is found before a model is loaded.

    Raises:
        ConfigError: an entry is invalid.
    """
    names = names_of_agents(agents)
    if isinstance(reward, Mapping):
        KINDS.check(reward, "reward")
    return names


class Parts:
    """What answers and what scores.

    Args:
        agents: entries {name, engine, ...}, or objects with a name and `generate`.
        reward: entry {kind, ...}, or an object with `score`, or a function.

    Raises:
        ConfigError: an entry is invalid, or a model cannot be loaded.
    """

    def __init__(
        self,
        agents: Sequence[Agent | Mapping[str, Any]],
        reward: RewardModel | Mapping[str, Any] | Callable[..., Any],
    ) -> None:
        made = [make_agent(a) if isinstance(a, Mapping) else as_agent(a) for a in agents]
        self.agents: dict[str, Agent] = {agent.name: agent for agent in made}
        self.reward: RewardModel = make_reward(reward)
        names = [agent.name for agent in made]
        self._given = dict(zip(names, agents, strict=True)), reward
        self._all: list[Agent | RewardModel] = [*made, self.reward]
        # What was given as an object is its owner's to close.
        self._owned = [
            part
            for part, given in zip(self._all, [*agents, reward], strict=True)
            if isinstance(given, Mapping)
        ]

    def identity(self, search: Any, task: Any) -> dict[str, Any]:
        """Return what of agents, reward model and own code decides a run's result, as JSON values.

        Args:
            search: as it was given; its own code counts.
            task: likewise.
        """
        agents, reward = self._given
        identity: dict[str, Any] = {"agents": {}}
        for name, agent in agents.items():
            made = agent if isinstance(agent, Mapping) else self.agents[name]
            identity["agents"][name] = decisive(made)
        identity["reward"] = decisive(reward if isinstance(reward, Mapping) else self.reward)
        if self.reward.texts is not None:
            identity["reward_words"] = self.reward.texts
        parts = {"search": search, "task": task, "agents": agents, "reward": reward}
        if contents := contents_of(parts):
            identity["contents"] = contents
        return identity

    async def check(self) -> None:
        """Check that agents and reward model can be asked.

        Raises:
            ConfigError: a server cannot be reached, or refuses the key.
        """
        await gather_or_cancel(part.check() for part in self._all)

    async def aclose(self) -> None:
        """Close the agents and the reward model that were made here."""
        await asyncio.gather(*(part.aclose() for part in self._owned))
