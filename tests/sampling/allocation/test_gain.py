"""The estimator of the gain: what it learns, and what it never depends on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toa_trl.sampling.allocation.gain import GainEstimator, falling_curve
from toa_trl.sampling.allocation.history import PLAYS, VALUE


def drawn(number: int, seed: int = 0) -> np.ndarray:
    """Return random states with different values."""
    rng = np.random.default_rng(seed)
    states = rng.random((number, 2))
    states[:, PLAYS] = rng.integers(4, 40, number)
    return states


def taught(states: np.ndarray, gains: np.ndarray) -> GainEstimator:
    """Return an estimator that has observed these."""
    estimator = GainEstimator()
    estimator.observe(states, gains)
    return estimator


def test_before_the_first_observation_all_prompts_are_equal() -> None:
    assert len(set(GainEstimator().expected(drawn(5)).tolist())) == 1


def test_it_learns_that_prompts_gain_less_the_better_they_are() -> None:
    states = drawn(400)
    gains = 1 - states[:, VALUE]
    low, high = drawn(1, 1).repeat(2, axis=0)
    low[VALUE], high[VALUE] = 0.1, 0.9
    found = taught(states, gains).expected(np.array([low, high]))
    assert found[0] > 0.7
    assert found[1] < 0.3


def test_it_learns_that_there_is_nothing_to_gain() -> None:
    assert (taught(drawn(100), np.zeros(100)).expected(drawn(50, 1)) == 0).all()


def test_the_curve_is_the_nearest_that_never_rises() -> None:
    values, gains = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([5.0, 1.0, 3.0, 4.0, 0.0])
    middles, levels = falling_curve(values, gains)
    assert middles.tolist() == [1, 2.5, 4]
    assert levels.tolist() == [5, pytest.approx(8 / 3), 0]


def test_prompts_that_never_improve_lose_their_plays() -> None:
    states = drawn(600)
    states[:, VALUE] = 0
    early = states[:, PLAYS] < 12  # later, only the unsolvable ones are left
    fresh, old = drawn(1, 1).repeat(2, axis=0)
    fresh[[VALUE, PLAYS]] = (0, 6)
    old[[VALUE, PLAYS]] = (0, 36)
    found = taught(states, early.astype(float)).expected(np.array([fresh, old]))
    assert found[0] > 3 * found[1]


def test_memory_is_bounded_and_only_the_newest_observations_count() -> None:
    size = GainEstimator.memory
    states, gains = drawn(size + 700), np.random.default_rng(3).random(size + 700)
    whole, newest = taught(states, gains), taught(states[700:], gains[700:])
    assert (whole.expected(drawn(30, 1)) == newest.expected(drawn(30, 1))).all()


@pytest.mark.parametrize("sizes", [[1] * 60, [7, 50, 3], [60]])
def test_the_portions_in_which_observations_arrive_do_not_matter(sizes: list[int]) -> None:
    states, gains = drawn(60), np.random.default_rng(3).random(60)
    estimator, at = GainEstimator(), 0
    for size in sizes:
        estimator.observe(states[at : at + size], gains[at : at + size])
        at += size
    expected = taught(states, gains).expected(drawn(30, 1))
    assert (estimator.expected(drawn(30, 1)) == expected).all()


def test_each_prompt_is_judged_by_itself() -> None:
    estimator = taught(drawn(300), np.random.default_rng(3).random(300))
    states, order = drawn(50, 1), np.random.default_rng(4).permutation(50)
    together = estimator.expected(states)
    assert np.allclose(together[order], estimator.expected(states[order]), rtol=1e-12)
    alone = [estimator.expected(states[i : i + 1])[0] for i in range(50)]
    assert np.allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize(("factor", "shift"), [(1024.0, 0.0), (2.0**-20, 0.0), (1.0, 64.0)])
def test_other_units_of_the_reward_only_scale_the_gains(factor: float, shift: float) -> None:
    gains = np.random.default_rng(3).standard_normal(300)

    def converted(states: np.ndarray) -> np.ndarray:
        states = states.copy()
        states[:, VALUE] = factor * states[:, VALUE] + shift
        return states

    found = taught(converted(drawn(300)), factor * gains).expected(converted(drawn(50, 1)))
    assert np.allclose(found, factor * taught(drawn(300), gains).expected(drawn(50, 1)))


large = st.floats(-1e100, 1e100)
rows = st.lists(st.tuples(large, st.integers(1, 99), large), min_size=1, max_size=60)


@settings(max_examples=25)
@given(rows, rows)
def test_it_is_finite_for_any_finite_rewards(
    seen: list[tuple[float, int, float]], asked: list[tuple[float, int, float]]
) -> None:
    estimator = taught(np.array(seen)[:, :2], np.array(seen)[:, 2])
    assert np.isfinite(estimator.expected(np.array(asked)[:, :2])).all()
