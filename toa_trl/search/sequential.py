"""Sequential refinement ("Seq. Refine" in the paper): the agents improve one response after one another."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count

from toa_trl.search.schedule import ScheduledSearch, Slot, shuffled


def sequential(agents: Sequence[str], budget: int, seed: int = 0) -> ScheduledSearch:
    """N/K rounds; each shuffles the agents: the first answers, each next one refines the response just before it."""

    def schedule(rng: random.Random) -> Iterator[Slot]:
        for start in count(step=len(agents)):
            first, *others = shuffled(agents, rng)
            yield Slot(first)
            yield from (
                Slot(agent, "refine", needs=(slot,)) for slot, agent in enumerate(others, start)
            )

    return ScheduledSearch(agents, budget, seed, schedule)
