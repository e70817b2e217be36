"""The expected gain of a prompt's next plays, learned from the waves of the same run.

A prompt gains less the better it is already: a falling curve over the value of its objective, the
same for all prompts, is fitted to the gains seen so far (isotonic regression, linear between the
middles of its steps). Where a reward has a ceiling, the curve falls to zero there; where it has
none, the curve is nearly flat. What the curve cannot know, because prompts that are hard stay at a
low value, the number of plays tells: the curve is multiplied by how much more, or less, than it
expected prompts with about as many plays have gained.
"""

from __future__ import annotations

import numpy as np

from toa_trl.sampling.allocation.state import FEATURES, LARGEST

NEAREST = 160  # observations, by the number of plays, that correct the curve
SHRINKAGE = 0.1  # of the correction towards none, in units of the mean gain
MOST = 10.0  # the correction is in [1 / MOST, MOST]
VALUE, PLAYS = FEATURES.index("value"), FEATURES.index("plays")


class GainEstimator:
    """Expect the gain of the next wave from its newest `memory` observations, in their order."""

    memory = 4096

    def __init__(self) -> None:
        self._values, self._plays, self._gains = np.empty(0), np.empty(0), np.empty(0)

    def observe(self, states: np.ndarray, gains: np.ndarray) -> None:
        """Add observations, the oldest first.

        Args:
            states: states before a wave, shape (m, number of FEATURES).
            gains: gain of the objective per play of that wave, shape (m,).
        """
        gains = np.clip(gains, -LARGEST, LARGEST)
        self._values = np.concatenate([self._values, states[:, VALUE]])[-self.memory :]
        self._plays = np.concatenate([self._plays, states[:, PLAYS]])[-self.memory :]
        self._gains = np.concatenate([self._gains, gains])[-self.memory :]

    def expected(self, states: np.ndarray) -> np.ndarray:
        """Return the expected gain per play of the next wave.

        Args:
            states: current states, shape (n, number of FEATURES).

        Returns:
            Shape (n,); infinite before the first observation.
        """
        if not len(self._gains):
            return np.full(len(states), np.inf)
        scale = np.abs(self._gains).max() or 1.0
        gains = self._gains / scale
        middles, levels = falling_curve(self._values, gains)
        curve: np.ndarray = np.interp(states[:, VALUE], middles, levels)
        if gains.mean() > 0:
            fitted = np.interp(self._values, middles, levels)
            order = np.argsort(self._plays, kind="stable")
            known, plays = self._plays[order], states[:, PLAYS]
            least = SHRINKAGE * gains.mean()
            seen = nearest_means(known, gains[order], plays) + least
            thought = np.maximum(nearest_means(known, fitted[order], plays), 0) + least
            curve = curve * np.clip(seen / thought, 1 / MOST, MOST)
        return curve * scale


def falling_curve(values: np.ndarray, gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of the falling step function nearest to the gains, by least squares.

    Returns:
        The middle of each step (mean of its values), rising, and its level, falling.
    """
    distinct, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    totals = np.bincount(at, weights=gains)
    steps: list[list[float]] = []  # of each: number of gains, their sum, number of values, sum
    for value, count, total in zip(
        distinct.tolist(), counts.tolist(), totals.tolist(), strict=True
    ):
        step = [count, total, 1, value]
        # a step that is not below the one before it is joined with it
        while steps and steps[-1][1] * step[0] <= step[1] * steps[-1][0]:
            step = [a + b for a, b in zip(steps.pop(), step, strict=True)]
        steps.append(step)
    table = np.array(steps)
    return table[:, 3] / table[:, 2], table[:, 1] / table[:, 0]


def nearest_means(known: np.ndarray, gains: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return for each number asked the mean gain of the NEAREST of the known ones.

    Args:
        known: sorted numbers.
        gains: their gains.
        asked: numbers; all known ones that are equal to one of them count.
    """
    size = min(NEAREST, len(known))
    left, right = np.searchsorted(known, asked), np.searchsorted(known, asked, "right")
    first = np.clip((left + right - size) // 2, 0, len(known) - size)
    last = np.maximum(first + size, right)
    first = np.minimum(first, left)
    sums = np.concatenate([[0.0], np.cumsum(gains)])
    means: np.ndarray = (sums[last] - sums[first]) / (last - first)
    return means
