"""Mixture of agents (MoA, arXiv 2406.04692): layers of agents, each aggregating all responses of the layer before."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count

from toa_trl.search.schedule import ScheduledSearch, Slot
from toa_trl.utils.config import PositiveInt


def moa(
    agents: Sequence[str], budget: int, seed: int = 0, *, num_layers: PositiveInt = 4
) -> ScheduledSearch:
    """N/(K * num_layers) rounds: every agent answers, then in each further layer every agent aggregates the last K.

    The paper takes 4 layers for alignment and 3 for translation. The K responses are shown in an order drawn anew for
    each aggregation.

    Raises:
        ConfigError: num_layers < 1.
    """

    def schedule(rng: random.Random) -> Iterator[Slot]:
        num_agents = len(agents)
        for start in count(step=num_agents):
            if start // num_agents % num_layers == 0:
                yield from (Slot(agent) for agent in agents)
            else:
                layer = range(start - num_agents, start)
                yield from (
                    Slot(agent, "aggregate", tuple(rng.sample(layer, num_agents)))
                    for agent in agents
                )

    return ScheduledSearch(agents, budget, seed, schedule)
