"""The budget that a pilot recommends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import play, rollout
from toa_trl.evaluation.pilot.budget import advise_budget, best_so_far
from toa_trl.evaluation.pilot.figures import Resamples


def test_the_best_reward_over_scored_plays() -> None:
    one = rollout(play(0, 1.0), play(1, None), play(2, 3.0), play(3, 2.0), id="one")
    short = rollout(play(0, -1.0), id="short")  # its agents kept failing afterwards
    assert best_so_far([one, short], 4).tolist() == [[1, 3, 3, 3], [-1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("curve", "gain_share", "budget"),
    [
        # 0.5 * (8 - 0) = 4: 1 -> 2 plays gain 4, 2 -> 4 gain 3, 3 -> 6 gain 1.5, 4 -> 8 gain 1
        ([0, 4, 6, 7, 7, 7.5, 8, 8], 0.5, 2),
        ([0, 4, 6, 7, 7, 7.5, 8, 8], 0.51, 1),
        # 0.125 * 8 = 1: 4 -> 8 gain 1, 5 -> 10 gain 1 + 1/3 * log2(10/8) = 1.11, 6 -> 12 gain
        # 0.5 + 1/3 * log2(12/8) = 0.69
        ([0, 4, 6, 7, 7, 7.5, 8, 8], 0.125, 6),
        ([0, 1, 2, 3], 0.05, None),  # still climbing
        ([2, 2, 2, 2], 0.05, 1),  # a constant reward
        ([5], 0.05, 1),
    ],
)
def test_the_smallest_budget_whose_doubling_gains_less(
    curve: list[float], gain_share: float, budget: int | None
) -> None:
    best = np.array([curve, curve], dtype=float)
    advice = advise_budget(best, Resamples(2), gain_share)
    assert (advice.budget, advice.low, advice.high) == (budget, budget, budget)


def test_the_curve_at_half_and_double() -> None:
    best = np.array([[0, 2, 3, 4], [0, 4, 5, 6]], dtype=float)
    curve = advise_budget(best, Resamples(2), 0.05).curve
    # the doublings gain 3 and 2, so the next one gains 2 * 2 / 3
    values = {plays: value.value for plays, value in curve.items()}
    assert values == pytest.approx({1: 0, 2: 3, 4: 5, 8: 5 + 4 / 3})
    assert (curve[4].low, curve[4].high) == (4, 6)


@settings(max_examples=30)
@given(gains=st.lists(st.floats(0, 10), min_size=1, max_size=12), gain_share=st.floats(0.01, 1))
def test_no_doubling_pays_from_the_recommended_budget_on(
    gains: list[float], gain_share: float
) -> None:
    curve = np.cumsum(gains)
    advice = advise_budget(np.array([curve]), Resamples(1, 10), gain_share)
    needed = gain_share * (curve[-1] - curve[0])
    known = {n: curve[2 * n - 1] - curve[n - 1] for n in range(1, len(curve) // 2 + 1)}
    budget = advice.budget or len(curve) + 1
    assert all(gain < needed or gain == 0 for n, gain in known.items() if n >= budget)
    assert budget == 1 or known.get(budget - 1, needed) >= needed
