"""The expected gain of a prompt's next plays, learned from the waves of the same run."""

from __future__ import annotations

import numpy as np

from toa_trl.sampling.allocation.state import FEATURES

NEAREST = 40  # observations whose mean is the expected gain
VALUE = FEATURES.index("value")


class GainEstimator:
    """Expect the mean gain of the nearest earlier observations by the value of the objective.

    It depends on its newest `memory` observations, in their order, and on nothing else.
    """

    memory = 4096  # newest observations that are kept

    def __init__(self) -> None:
        self._values = np.empty(0)
        self._gains = np.empty(0)

    def observe(self, states: np.ndarray, gains: np.ndarray) -> None:
        """Add observations, the oldest first.

        Args:
            states: states before a wave, shape (m, number of FEATURES).
            gains: gain of the objective per play of that wave, shape (m,).
        """
        self._values = np.concatenate([self._values, states[:, VALUE]])[-self.memory :]
        self._gains = np.concatenate([self._gains, gains])[-self.memory :]

    def expected(self, states: np.ndarray) -> np.ndarray:
        """Return the expected gain per play of the next wave.

        Args:
            states: current states, shape (n, number of FEATURES).

        Returns:
            Shape (n,); infinite before the first observation.
        """
        values = states[:, VALUE]
        num_known = len(self._values)
        if num_known == 0:
            return np.full(len(values), np.inf)
        order = np.argsort(self._values, kind="stable")
        known, gains = self._values[order], self._gains[order]
        size = min(NEAREST, num_known)
        # the window around a value, widened to all observations that are equal to it
        left, right = np.searchsorted(known, values), np.searchsorted(known, values, "right")
        first = np.clip((left + right - size) // 2, 0, num_known - size)
        last = np.maximum(first + size, right)
        first = np.minimum(first, left)
        scale = np.abs(gains).max() or 1.0
        sums = np.concatenate([[0.0], np.cumsum(gains / scale)])
        means: np.ndarray = (sums[last] - sums[first]) / (last - first)
        return means * scale
