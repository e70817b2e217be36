"""Mixture of agents (MoA, arXiv 2406.04692): layers of agents that aggregate the layer before."""

import random
from collections.abc import Iterator, Sequence
from itertools import count

from toa_trl.search.schedule import ScheduledSearch, Slot
from toa_trl.utils.config import PositiveInt


def moa(
    agents: Sequence[str], budget: int, seed: int = 0, *, num_layers: PositiveInt = 4
) -> ScheduledSearch:
    """Play N / (K * num_layers) rounds of `num_layers` layers.

    In the first layer of a round each of the K agents answers; in every further layer each of them
    aggregates the K responses of the layer before, in an order drawn for each aggregation.

    Args:
        agents: names of the K agents.
        budget: number N of scored plays to spend.
        seed: seed of the order in which responses are shown.
        num_layers: layers of a round (paper of TOA: 4 for alignment, 3 for translation).
    """

    def schedule(agents: Sequence[str], rng: random.Random) -> Iterator[Slot]:
        num_agents = len(agents)
        for start in count(step=num_agents):
            if start // num_agents % num_layers == 0:
                yield from map(Slot, agents)
                continue
            layer = range(start - num_agents, start)
            for agent in agents:
                yield Slot(agent, "aggregate", tuple(rng.sample(layer, num_agents)))

    return ScheduledSearch(agents, budget, seed, schedule)
