"""Greedy refinement: every agent answers once, then the agents refine the best response in turn."""

from collections.abc import Sequence

from toa_trl.search.base import Search
from toa_trl.types import Action
from toa_trl.utils.config import PositiveInt


class Greedy(Search):
    """Refine the best response so far, one agent after the other.

    A simple baseline, on par with the tree searches in our measurements. No choice depends on the
    budget. With several plays in flight, the best response is that of the rewards known so far.

    Args:
        agents: names of the agents, in the order of their turns.
        budget: number of scored plays to spend.
        seed: not used: the search draws nothing.
    """

    def __init__(self, agents: Sequence[str], budget: PositiveInt, seed: int = 0) -> None:
        super().__init__(agents, budget, seed)
        self._answered = set[str]()  # agents with an answer, in flight or scored
        self._best: int | None = None  # play with the best reward; of equal ones the earliest

    def choose(self, index: int) -> Action | None:
        """See `Search`."""
        action = self._next(index)
        if action is not None:
            self.replay(index, action)
        return action

    def _next(self, index: int) -> Action | None:
        for agent in self.available:
            if agent not in self._answered:
                return Action(agent)
        if self._best is None or not self.available:
            return None
        agent = self.available[index % len(self.available)]
        depth = self.actions[self._best].depth + 1
        return Action(agent, "refine", refs=(self._best,), parent=self._best, depth=depth)

    def replay(self, index: int, action: Action) -> None:
        """See `Search`."""
        if action.kind == "answer":
            self._answered.add(action.agent)

    def scored(self, index: int, reward: float) -> None:
        """See `Search`."""
        best = self._best
        if best is None or (reward, -index) > (self.rewards[best], -best):
            self._best = index

    def failed(self, index: int, action: Action) -> None:
        """See `Search`."""
        if action.kind == "answer":
            self._answered.discard(action.agent)
