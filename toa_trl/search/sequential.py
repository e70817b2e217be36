"""Sequential refinement ("Seq. Refine" in the paper): the agents refine one response in turn."""

import random
from collections.abc import Iterator, Sequence
from itertools import count

from toa_trl.search.schedule import ScheduledSearch, Slot


def sequential(agents: Sequence[str], budget: int, seed: int = 0) -> ScheduledSearch:
    """Play N/K rounds: the first agent answers, each further one refines the response before it.

    Args:
        agents: names of the K agents.
        budget: number N of scored plays to spend.
        seed: seed of the order of the agents, which is drawn for each round.
    """

    def schedule(agents: Sequence[str], rng: random.Random) -> Iterator[Slot]:
        for start in count(step=len(agents)):
            first, *others = rng.sample(agents, len(agents))
            yield Slot(first)
            for slot, agent in enumerate(others, start):
                yield Slot(agent, "refine", needs=(slot,))

    return ScheduledSearch(agents, budget, seed, schedule)
