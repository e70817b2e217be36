"""Parallel ensemble ("Par. Ensemble" in the paper): N/K answers from each agent."""

import random
from collections.abc import Iterator, Sequence

from toa_trl.search.schedule import ScheduledSearch, Slot, shuffled


def parallel(agents: Sequence[str], budget: int, seed: int = 0) -> ScheduledSearch:
    """Play rounds in which every agent answers once.

    Args:
        agents: names of the agents.
        budget: number of scored plays to spend.
        seed: seed of the order of the agents, which is drawn for each round.
    """

    def schedule(rng: random.Random) -> Iterator[Slot]:
        while True:
            yield from (Slot(agent) for agent in shuffled(agents, rng))

    return ScheduledSearch(agents, budget, seed, schedule)
