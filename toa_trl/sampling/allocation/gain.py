"""The expected gain of a prompt's next plays, learned from the waves of the same run.

Mostly a prompt gains less the better it is already: a falling curve over the value of its
objective, the same for all prompts, is fitted to the gains seen so far (isotonic regression, linear
between the middles of its steps). Where a reward has a ceiling, the curve falls to zero there;
where it has none, the curve is nearly flat. Where low prompts gain less than others, because they
cannot be solved while the others still improve, no falling curve fits: then the mean gain of the
nearest values is taken. Cross-validation finds which of the two predicts the gains better.

What neither can know, because hard prompts stay at a low value, the number of plays tells: the
curve is multiplied by how much more, or less, than it expected prompts with about as many plays
have gained.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import isotonic_regression

from toa_trl.sampling.allocation.history import PLAYS, VALUE
from toa_trl.types import LARGEST_SCORE

NEAREST = 160  # observations, by the number of plays, that correct the curve
NEIGHBORS = 40  # observations, by the value, where no falling curve fits
SHRINKAGE = 0.1  # of the correction towards none, in units of the mean gain
MOST = 10.0  # the correction is in [1 / MOST, MOST]
Curve = Callable[[np.ndarray], np.ndarray]  # values -> expected gains


class GainEstimator:
    """Expect the gain of the next wave from its newest `memory` observations, in their order."""

    memory = 4096

    def __init__(self) -> None:
        self._values, self._plays, self._gains = np.empty(0), np.empty(0), np.empty(0)

    def observe(self, states: np.ndarray, gains: np.ndarray) -> None:
        """Add observations, the oldest first.

        Args:
            states: states before a wave, shape (m, 2 or more).
            gains: gain of the objective per play of that wave, shape (m,).
        """
        gains = np.clip(gains, -LARGEST_SCORE, LARGEST_SCORE)
        self._values = np.concatenate([self._values, states[:, VALUE]])[-self.memory :]
        self._plays = np.concatenate([self._plays, states[:, PLAYS]])[-self.memory :]
        self._gains = np.concatenate([self._gains, gains])[-self.memory :]

    def expected(self, states: np.ndarray) -> np.ndarray:
        """Return the expected gain per play of the next wave.

        Args:
            states: current states, shape (n, 2 or more).

        Returns:
            Shape (n,); infinite before the first observation.
        """
        if not len(self._gains):
            return np.full(len(states), np.inf)
        scale = np.abs(self._gains).max() or 1.0
        gains = self._gains / scale
        rising = np.argsort(self._values, kind="stable")
        values, theirs = self._values[rising], gains[rising]
        fit = min((falling, local), key=lambda fit: error(fit, values, theirs, rising % 2 == 0))
        curve_of = fit(values, theirs)
        curve = curve_of(states[:, VALUE])
        if gains.mean() > 0:
            fitted = np.empty(len(gains))
            fitted[rising] = curve_of(values)
            order = np.argsort(self._plays, kind="stable")
            known, plays = self._plays[order], states[:, PLAYS]
            least = SHRINKAGE * gains.mean()
            near = nearest(known, plays, NEAREST)
            seen = means(gains[order], near) + least
            thought = np.maximum(means(fitted[order], near), 0) + least
            curve = curve * np.clip(seen / thought, 1 / MOST, MOST)
        return curve * scale


def falling_curve(values: np.ndarray, gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of the falling step function nearest to the gains, by least squares.

    Args:
        values: sorted.
        gains: theirs.

    Returns:
        The middle of each step (mean of its values), rising, and its level, falling.
    """
    firsts = np.flatnonzero(np.diff(values, prepend=-np.inf))  # of equal values
    counts = np.diff(firsts, append=len(values))
    distinct, means = values[firsts], np.add.reduceat(gains, firsts) / counts
    fit = isotonic_regression(means, weights=counts, increasing=False)
    starts, levels = fit.blocks[:-1], fit.x[fit.blocks[:-1]]
    middles = np.add.reduceat(distinct, starts) / np.diff(fit.blocks)
    return middles, levels


def falling(values: np.ndarray, gains: np.ndarray) -> Curve:
    """Return the falling curve through the gains of sorted values."""
    middles, levels = falling_curve(values, gains)
    return lambda asked: np.interp(asked, middles, levels)


def local(values: np.ndarray, gains: np.ndarray) -> Curve:
    """Return the mean gain of the NEIGHBORS nearest of the sorted values."""
    return lambda asked: means(gains, nearest(values, asked, NEIGHBORS))


def error(
    fit: Callable[[np.ndarray, np.ndarray], Curve],
    values: np.ndarray,
    gains: np.ndarray,
    half: np.ndarray,
) -> float:
    """Return the squared error of a curve fitted to the gains of one half on those of the other.

    Args:
        fit: returns a curve.
        values: sorted.
        gains: theirs.
        half: whether one belongs to the first half.
    """
    total = 0.0
    for learned in (half, ~half):
        if learned.any():
            asked = ~learned
            curve = fit(values[learned], gains[learned])
            total += float(((curve(values[asked]) - gains[asked]) ** 2).sum())
    return total


def nearest(known: np.ndarray, asked: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each number asked where the nearest of the known ones begin and end.

    Args:
        known: sorted numbers.
        asked: numbers; all known ones that are equal to one of them count.
        number: how many count.
    """
    size = min(number, len(known))
    left, right = np.searchsorted(known, asked), np.searchsorted(known, asked, "right")
    first = np.clip((left + right - size) // 2, 0, len(known) - size)
    return np.minimum(first, left), np.maximum(first + size, right)


def means(gains: np.ndarray, ranges: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the mean of the gains in each range, from its first to before its last."""
    first, last = ranges
    sums = np.concatenate([[0.0], np.cumsum(gains)])
    return np.asarray((sums[last] - sums[first]) / (last - first))
