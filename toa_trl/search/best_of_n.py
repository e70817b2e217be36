"""Best of N ("Rand" in the paper): N answers from one agent."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import repeat

from toa_trl.search.schedule import ScheduledSearch, Slot, one_of


def best_of_n(
    agents: Sequence[str], budget: int, seed: int = 0, *, agent: str | None = None
) -> ScheduledSearch:
    """`budget` answers from `agent` (default: the first)."""

    def schedule(rng: random.Random) -> Iterator[Slot]:
        return repeat(Slot(one_of(agents, agent)))

    return ScheduledSearch(agents, budget, seed, schedule)
