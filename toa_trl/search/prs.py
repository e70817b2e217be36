"""Preference-based reflective sampling (PRS, arXiv 2408.12163), without feedback text."""

import random
from collections.abc import Iterator, Sequence
from itertools import repeat

from toa_trl.search.schedule import ScheduledSearch, Slot, one_of


def prs(
    agents: Sequence[str], budget: int, seed: int = 0, *, agent: str | None = None
) -> ScheduledSearch:
    """Answer N // 2 times with one agent, then refine the best of those answers N - N // 2 times.

    Args:
        agents: names of the agents.
        budget: number N of scored plays to spend.
        seed: not used.
        agent: the agent that answers and refines; default: the first.

    Raises:
        ConfigError: `agent` is not among the agents.
    """

    def schedule(agents: Sequence[str], rng: random.Random) -> Iterator[Slot]:
        only, num_answers = one_of(agents, agent), max(1, budget // 2)
        yield from repeat(Slot(only), num_answers)
        yield from repeat(Slot(only, "refine", needs=range(num_answers), best_only=True))

    return ScheduledSearch(agents, budget, seed, schedule)
