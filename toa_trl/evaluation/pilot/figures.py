"""Numbers of a pilot with their 95 % intervals: prompts are the cases that are drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toa_trl.evaluation.intervals import NUM_RESAMPLES, middle_95

Numbers = NDArray[np.float64]


class Figure(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Figure:
        """Return the figure in another unit; the factor is >= 0."""
        return Figure(*(number * factor for number in self))


class Resamples:
    """Draws of the prompts with replacement, the same for all figures of a pilot.

    Args:
        num_prompts: number of prompts, >= 1.
        num_resamples: number of draws.
    """

    def __init__(self, num_prompts: int, num_resamples: int = NUM_RESAMPLES) -> None:
        even = np.full(num_prompts, 1 / num_prompts)
        drawn = np.random.default_rng(0).multinomial(num_prompts, even, num_resamples)
        self.shares: Numbers = drawn / num_prompts
        """How often each prompt is drawn, shape (draws, prompts), by rows a sum of 1."""

    def mean(self, values: Sequence[float] | Numbers) -> Figure:
        """Return the mean of one value per prompt."""
        cases = np.asarray(values, dtype=np.float64)
        return figure(float(cases.mean()), self.shares @ cases)

    def ratio(self, parts: Sequence[float] | Numbers, wholes: Sequence[float] | Numbers) -> Figure:
        """Return the ratio of two sums over the prompts; 0 where the second sum is 0."""
        above, below = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
        if not below.sum():
            return Figure(0.0, 0.0, 0.0)
        drawn = self.shares @ below
        ratios = np.divide(self.shares @ above, drawn, out=np.zeros_like(drawn), where=drawn != 0)
        return figure(float(above.sum() / below.sum()), ratios)


def figure(value: float, draws: Numbers) -> Figure:
    """Return a number with the interval of its draws."""
    return Figure(value, *middle_95(draws))
