"""What the allocation of the budget knows about a prompt: its scored plays, in order."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean
from typing import Literal

from toa_trl.types import LARGEST_SCORE, Play

VALUE, PLAYS = 0, 1  # columns of a state

_index = attrgetter("index")
ObjectiveName = Literal["best", "top_k", "margin"]


@dataclass(frozen=True, slots=True)
class History:
    """The scored plays of a prompt, by index."""

    rewards: list[float]
    cost: float  # of all plays, >= 0

    def __len__(self) -> int:
        """Return the number of scored plays."""
        return len(self.rewards)

    @property
    def best(self) -> float:
        """The best reward; there is at least one play."""
        return max(self.rewards)

    @classmethod
    def of(cls, plays: Iterable[Play], cost: Callable[[Play], float]) -> History:
        """Return the history of a prompt's plays, scored and failed, in any order."""
        ordered = sorted(plays, key=_index)
        rewards = [play.reward for play in ordered if play.reward is not None]
        costs = (cost(play) for play in ordered if play.reward is not None)
        return cls(rewards, math.fsum(costs))


@dataclass(frozen=True, slots=True)
class Objective:
    """What plays are to increase.

    Args:
        name: best: the best reward. top_k: the mean of the k best rewards. margin: the best reward
            minus that of the response which becomes the rejected one.
        k: of top_k.
        rank: of margin: rank of the rejected response, an integer >= 2, a fraction of the plays in
            (0, 1), or None for the worst response.
    """

    name: ObjectiveName = "best"
    k: int = 3
    rank: int | float | None = None

    def value(self, rewards: list[float]) -> float:
        """Return the objective of a prompt with these rewards, at least one."""
        best = max(rewards)
        if self.name == "best":
            return best
        if self.name == "top_k":
            return fmean(heapq.nlargest(self.k, rewards))
        if self.rank is None:
            return best - min(rewards)
        rank = self.rank
        if isinstance(rank, float):
            rank = max(2, round(rank * len(rewards)))
        return best - heapq.nlargest(rank, rewards)[-1]


def state(history: History, num_plays: int, objective: Objective) -> tuple[float, ...]:
    """Return what the estimator of the gain knows about a prompt.

    Args:
        history: of the prompt.
        num_plays: only its first so many scored plays count, at least one.
        objective: of the run.

    Returns:
        The value of the objective, in units of the reward, and the number of plays.
    """
    value = objective.value(history.rewards[:num_plays])
    # journals of earlier versions may hold larger rewards
    return min(max(value, -LARGEST_SCORE), LARGEST_SCORE), num_plays
