"""Best of N ("Rand" in the paper): N answers from one agent."""

import random
from collections.abc import Iterator, Sequence
from itertools import repeat

from toa_trl.search.schedule import ScheduledSearch, Slot, one_of


def best_of_n(
    agents: Sequence[str], budget: int, seed: int = 0, *, agent: str | None = None
) -> ScheduledSearch:
    """Answer `budget` times with one agent.

    Args:
        agents: names of the agents.
        budget: number of scored plays to spend.
        seed: not used.
        agent: the agent that answers; default: the first.

    Raises:
        ConfigError: `agent` is not among the agents.
    """

    def schedule(agents: Sequence[str], rng: random.Random) -> Iterator[Slot]:
        return repeat(Slot(one_of(agents, agent)))

    return ScheduledSearch(agents, budget, seed, schedule)
