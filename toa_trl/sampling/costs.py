"""What a play costs, where an allocation or a search weighs costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from toa_trl.agents import Agent
from toa_trl.agents.base import Price
from toa_trl.errors import ConfigError
from toa_trl.search.base import Cost
from toa_trl.types import Play


def check_costs(
    place: str, cost: Cost, agents: Mapping[str, Agent], prices: Mapping[str, Price]
) -> None:
    """Check that the costs of the agents are known.

    Args:
        place: path of the key.
        cost: its value.
        agents: of the run, by name.
        prices: of those that have one.

    Raises:
        ConfigError: those of an agent are not.
    """
    for name, agent in agents.items():
        if cost == "flops" and agent.compute is None:
            raise ConfigError(
                f"{place}: the FLOPs of agent {name!r} are unknown; add `config` to "
                "its entry, or choose plays"
            )
        if cost == "price" and name not in prices:
            raise ConfigError(
                f"{place}: agent {name!r} has no price; add price: {{prompt: ..., "
                "completion: ...}, or choose plays"
            )


def cost_of(cost: Cost, prices: Mapping[str, Price]) -> Callable[[Play], float]:
    """Return what tells the cost of a play: 1, its FLOPs, or its price."""

    def of(play: Play) -> float:
        done = play.completion
        if done is None or cost == "plays":
            return 1.0
        if cost == "flops":
            return done.flops or 0.0
        return prices[play.action.agent].of(done.prompt_tokens, done.completion_tokens)

    return of


def identity_of_costs(cost: Cost, prices: Mapping[str, Price]) -> dict[str, Any]:
    """Return the part of a run's identity that the costs are, where its search weighs them.

    Prices may change otherwise when a run is resumed.
    """
    if cost != "price":
        return {}
    return {"prices": {name: price.model_dump() for name, price in prices.items()}}
