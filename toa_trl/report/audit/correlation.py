"""Pearson's and Spearman's correlation of two columns, over all plays and within the prompts."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_PLAYS = 3  # two plays always correlate by 1 or -1


@dataclass(frozen=True)
class Correlation:
    """Of two numbers of a play; None where one of them is always the same."""

    num_plays: int
    pearson: float | None  # over all plays
    spearman: float | None
    num_prompts: (
        int  # at least three plays of theirs have both numbers, and these are not all the same
    )
    within_pearson: (
        float | None
    )  # the mean over these prompts of the correlation of each prompt's plays
    within_spearman: float | None
    within_chance: (
        float | None
    )  # as far from 0 as 19 of 20 means would lie if the ranks were by chance

    @property
    def beyond_chance(self) -> float:
        """The mean rank correlation within prompts; 0 where chance would do that."""
        if self.within_spearman is None or self.within_chance is None:
            return 0.0
        return self.within_spearman if abs(self.within_spearman) > self.within_chance else 0.0


class Correlating:
    """Takes one prompt's plays after another; memory grows by 16 bytes a play, for the ranks over all of them."""

    def __init__(self) -> None:
        self._x, self._y = array("d"), array("d")
        self._within: list[tuple[float, float]] = []
        self._variance = 0.0  # of the sum of the prompts' rank correlations, if there were none

    def add(self, x: Floats, y: Floats) -> None:
        """One prompt's plays, both numbers known."""
        self._x.frombytes(x.tobytes())
        self._y.frombytes(y.tobytes())
        if len(x) >= MIN_PLAYS and (pearson := _pearson(x, y)) is not None:
            rank = _pearson(_ranks(x), _ranks(y))
            self._within.append((pearson, 0.0 if rank is None else rank))
            self._variance += 1 / (
                len(x) - 1
            )  # of a rank correlation by chance (Kendall, Rank Correlation Methods)

    def result(self) -> Correlation:
        """Of all plays so far."""
        x, y, num = np.frombuffer(self._x), np.frombuffer(self._y), len(self._within)
        overall = _pearson(x, y), _pearson(_ranks(x), _ranks(y))
        if not num:
            return Correlation(len(x), *overall, 0, None, None, None)
        pearson, spearman = np.mean(self._within, axis=0).tolist()
        return Correlation(
            len(x), *overall, num, pearson, spearman, 1.96 * self._variance**0.5 / num
        )


def _pearson(x: Floats, y: Floats) -> float | None:
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return None
    x, y = (
        of / np.abs(of).max() for of in (x - x.mean(), y - y.mean())
    )  # squares neither overflow nor vanish
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse].astype(np.float64)
