"""Pearson's and Spearman's correlation of two columns, over all plays and within prompts."""

from array import array
from dataclasses import dataclass

import numpy as np

from toa_trl.report.rollout_tables import Floats

MIN_PLAYS = 3  # two plays always correlate by 1 or -1


@dataclass(frozen=True)
class Correlation:
    """Correlation of two numbers of a play; None if one of them is constant."""

    num_plays: int
    pearson: float | None  # over all plays
    spearman: float | None
    num_prompts: int  # prompts with at least MIN_PLAYS such plays, which differ in both numbers
    within_pearson: float | None  # mean over these prompts of the correlation within each
    within_spearman: float | None
    within_chance: float | None  # 95 % bound of |within_spearman| for independent ranks

    @property
    def beyond_chance(self) -> float:
        """The mean rank correlation within prompts; 0 if it is within chance."""
        if self.within_spearman is None or self.within_chance is None:
            return 0.0
        return self.within_spearman if abs(self.within_spearman) > self.within_chance else 0.0


class Correlating:
    """Collects plays prompt by prompt; memory grows by 16 bytes per play, for the overall ranks."""

    def __init__(self) -> None:
        """Start without plays."""
        self._x, self._y = array("d"), array("d")
        self._within: list[tuple[float, float]] = []
        self._variance = 0.0  # of the sum of the prompts' rank correlations under independence

    def add(self, x: Floats, y: Floats) -> None:
        """Add the plays of one prompt; both numbers must be known."""
        self._x.frombytes(x.tobytes())
        self._y.frombytes(y.tobytes())
        pearson = _pearson(x, y) if len(x) >= MIN_PLAYS else None
        if pearson is not None:
            spearman = _spearman(x, y)
            self._within.append((pearson, spearman or 0.0))
            # by chance it has the variance 1 / (n - 1): Kendall, Rank Correlation Methods
            self._variance += 1 / (len(x) - 1)

    def result(self) -> Correlation:
        """Return the correlation of all plays added so far."""
        x, y, num = np.frombuffer(self._x), np.frombuffer(self._y), len(self._within)
        overall = _pearson(x, y), _spearman(x, y)
        if not num:
            return Correlation(len(x), *overall, 0, None, None, None)
        pearson, spearman = np.mean(self._within, axis=0).tolist()
        chance = 1.96 * self._variance**0.5 / num
        return Correlation(len(x), *overall, num, pearson, spearman, chance)


def _pearson(x: Floats, y: Floats) -> float | None:
    """Return Pearson's r; None if it is undefined.

    scipy.stats.pearsonr takes ten times as long for the few plays of a prompt, because it also
    computes a p-value.
    """
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return None
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()  # squares neither overflow nor underflow
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def _spearman(x: Floats, y: Floats) -> float | None:
    """Return Pearson's r of the ranks; equal numbers have the mean of their ranks."""
    from scipy.stats import rankdata  # importing it takes seconds, which `import toa_trl` need not

    return _pearson(rankdata(x), rankdata(y))
