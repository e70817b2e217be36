"""Which budget? What the best reward gains from one doubling of the plays to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toa_trl.evaluation.pilot.figures import Figure, Numbers, Resamples, figure
from toa_trl.types import Rollout

POINTS = (0.25, 0.5, 1.0, 2.0)  # budgets of the curve that are shown, relative to the pilot's


@dataclass(frozen=True)
class BudgetAdvice:
    """The budget that a pilot recommends."""

    budget: int | None  # None: more than the pilot's
    low: int | None  # 95 % interval, likewise
    high: int | None
    gain_share: float  # a doubling has to gain this share of what the pilot gained in all
    curve: dict[int, Figure]
    """Mean best reward by plays per prompt, the same number for each; beyond the pilot's budget it
    is extrapolated."""


def best_so_far(rollouts: Sequence[Rollout], budget: int) -> Numbers:
    """Return the best reward after 1, 2, ... scored plays, shape (prompts, budget).

    Args:
        rollouts: each with at least one scored play; one with fewer plays keeps its last value.
        budget: plays per prompt.
    """
    best = np.empty((len(rollouts), budget))
    for row, rollout in zip(best, rollouts, strict=True):
        rewards = np.array([play.reward for play in rollout.scored[:budget]], dtype=np.float64)
        row[: len(rewards)] = np.maximum.accumulate(rewards)
        row[len(rewards) :] = row[len(rewards) - 1]
    return best


def advise_budget(best: Numbers, resamples: Resamples, gain_share: float) -> BudgetAdvice:
    """Return the smallest budget from which on no doubling gains the stated share.

    Args:
        best: see `best_so_far`.
        resamples: draws of the prompts.
        gain_share: share of the gain from the first play to the last of the pilot, in (0, 1].
    """
    budget = best.shape[1]
    mean, drawn = best.mean(axis=0)[None], resamples.shares @ best
    plays = sorted({max(1, round(point * budget)) for point in POINTS})
    curve = {n: figure(float(_at(mean, n)[0]), _at(drawn, n)) for n in plays}
    (smallest,) = _smallest(mean, gain_share)
    low, high = np.percentile(_smallest(drawn, gain_share), [2.5, 97.5], method="nearest")
    known = (int(n) if n <= budget else None for n in (smallest, low, high))
    return BudgetAdvice(next(known), next(known), next(known), gain_share, curve)


def _smallest(curves: Numbers, gain_share: float) -> NDArray[np.int64]:
    """Return the recommended budget on each curve, or one more than its last."""
    budget = curves.shape[1]
    doubled = np.column_stack([_at(curves, 2 * n) for n in range(1, budget + 1)])
    gains, needed = doubled - curves, gain_share * (curves[:, -1:] - curves[:, :1])
    pays = (gains >= needed) & (gains > 0)
    last = budget - pays[:, ::-1].argmax(axis=1)  # the last budget whose doubling pays
    return np.where(pays.any(axis=1), last + 1, 1)


def _at(curves: Numbers, plays: int) -> Numbers:
    """Return the value of each curve at a number of plays, at most double those of the curve.

    Beyond its end, the next doubling gains in the ratio in which the last two did, at most as much
    as the last one.
    """
    budget = curves.shape[1]
    if plays <= budget:
        return curves[:, plays - 1]
    last, half, quarter = (curves[:, max(1, budget // part) - 1] for part in (1, 2, 4))
    recent, before = last - half, half - quarter
    ratio = np.divide(recent, before, out=np.ones_like(recent), where=before > 0)
    gained: Numbers = recent * ratio.clip(max=1) * math.log2(plays / budget)
    return last + gained
