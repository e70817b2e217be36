"""What the estimator of the gain knows about a prompt: a few numbers of its scored plays."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

FEATURES = (
    "value",  # of the objective, in units of the reward
    "plays",  # number of scored plays
    "since",  # scored plays since the best reward last improved
    "gap",  # best reward minus the second best
    "spread",  # standard deviation of the rewards
    "depth",  # depth of the best play
    "improved",  # share of the refinements that are better than their draft; 0 without any
)
"""Names of the numbers of a state, in their order."""

LARGEST = 1e100  # rewards are clipped to +- this, so that no square or sum overflows


class Plays(Protocol):
    """The scored plays of a prompt, by index."""

    @property
    def rewards(self) -> list[float]:
        """Raw rewards."""

    @property
    def drafts(self) -> list[float | None]:
        """For each play the reward of the draft that it refined; None for an answer."""

    @property
    def depths(self) -> list[int]:
        """For each play the depth of its action."""


class Valued(Protocol):
    """What plays are to increase."""

    def value(self, rewards: list[float]) -> float:
        """Return the objective of a prompt with these rewards, at least one."""


def state(history: Plays, num_plays: int, objective: Valued) -> np.ndarray:
    """Return the FEATURES of a prompt after its first `num_plays` scored plays, at least one."""
    # plain Python: for the tens of plays of a prompt it is faster than arrays
    rewards = history.rewards[:num_plays]
    scored = [min(max(reward, -LARGEST), LARGEST) for reward in rewards]
    best = max(scored)
    at = scored.index(best)  # the first of the best
    second = max((*scored[:at], *scored[at + 1 :]), default=best)
    # equal rewards have no spread, though their mean is rounded
    spread = 0.0
    if min(scored) < best:
        middle = sum(scored) / len(scored)
        spread = math.sqrt(sum((reward - middle) ** 2 for reward in scored) / len(scored))
    pairs = zip(rewards, history.drafts[:num_plays], strict=True)
    better = [reward > draft for reward, draft in pairs if draft is not None]
    improved = sum(better) / len(better) if better else 0.0
    value = min(max(objective.value(rewards), -LARGEST), LARGEST)
    since = len(scored) - 1 - at
    depth = history.depths[at]
    return np.array([value, len(scored), since, best - second, spread, depth, improved])
