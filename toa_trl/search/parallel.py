"""Parallel ensemble ("Par. Ensemble" in the paper): N/K answers from each agent."""

import random
from collections.abc import Iterator, Sequence

from toa_trl.search.schedule import ScheduledSearch, Slot


def parallel(agents: Sequence[str], budget: int, seed: int = 0) -> ScheduledSearch:
    """Play rounds in which every agent answers once.

    Args:
        agents: names of the agents.
        budget: number of scored plays to spend.
        seed: seed of the order of the agents, which is drawn for each round.
    """

    def schedule(agents: Sequence[str], rng: random.Random) -> Iterator[Slot]:
        while True:
            yield from map(Slot, rng.sample(agents, len(agents)))

    return ScheduledSearch(agents, budget, seed, schedule)
