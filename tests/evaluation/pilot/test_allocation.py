"""Adaptive or uniform, from the plays of a pilot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import play, rollout
from toa_trl.evaluation.pilot.allocation import (
    Adaptive,
    AllocationAdvice,
    advise_allocation,
    replay,
)
from toa_trl.evaluation.pilot.budget import best_so_far
from toa_trl.evaluation.pilot.figures import Resamples
from toa_trl.types import Rollout

NUM_PROMPTS, BUDGET = 64, 32


def world(reward: Callable[[int, int], float], num_prompts: int = NUM_PROMPTS) -> list[Rollout]:
    return [
        rollout(*(play(n, reward(prompt, n)) for n in range(BUDGET)), id=str(prompt))
        for prompt in range(num_prompts)
    ]


def advice(rollouts: list[Rollout], adaptive: Adaptive) -> AllocationAdvice:
    best = best_so_far(rollouts, BUDGET)
    found = advise_allocation(rollouts, best, adaptive, Resamples(len(rollouts)))
    assert found is not None
    return found


def hard_and_easy(prompt: int, number: int) -> float:
    """Three of four prompts have their best reward at once; the others gain by every play."""
    return number / 2 if prompt % 4 == 0 else 20.0


def test_adaptive_where_few_prompts_gain() -> None:
    found = advice(world(hard_and_easy), Adaptive())
    assert found.kind == "adaptive"
    assert found.mean_plays == 16
    assert found.uniform.value == 20.0 * 3 / 4 + 7.5 / 4
    assert found.gain.value == found.adaptive.value - found.uniform.value
    assert found.gain.low > 0
    assert found.as_uniform.value > 16
    assert found.late_gain_share.value == 1.0


@pytest.mark.parametrize("reward", [lambda prompt, number: 1.0, lambda prompt, number: number])
def test_uniform_where_all_prompts_are_alike(reward: Callable[[int, int], float]) -> None:
    found = advice(world(reward), Adaptive())
    assert found.kind == "uniform"
    assert found.as_uniform.value <= 16


def test_prompts_that_reach_the_ceiling_get_no_further_plays() -> None:
    found = advice(world(hard_and_easy), Adaptive(stop_reward=20.0))
    assert found.adaptive_plays.value == (3 * 4 + BUDGET) / 4  # a prompt has no more than these
    assert found.adaptive.value == 20.0 * 3 / 4 + 15.5 / 4


def test_a_small_budget_cannot_be_divided() -> None:
    rollouts = [rollout(*(play(n, 1.0) for n in range(14)), id=str(p)) for p in range(2)]
    best = best_so_far(rollouts, 14)
    assert advise_allocation(rollouts, best, Adaptive(), Resamples(2)) is None
    assert advise_allocation(rollouts, best, Adaptive(min_plays=3), Resamples(2)) is not None


@settings(max_examples=8)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=2, max_size=12),
    seed=st.integers(0, 99),
    wave=st.integers(1, 5),
)
def test_no_more_is_given_out_than_there_is(lengths: list[int], seed: int, wave: int) -> None:
    rewards = np.random.default_rng(seed).normal(size=(len(lengths), 24))
    rollouts = [
        rollout(*(play(n, float(rewards[row, n])) for n in range(length)), id=str(row))
        for row, length in enumerate(lengths)
    ]
    given_out = replay(rollouts, Adaptive(3, wave), 12, 24)
    assert (given_out <= lengths).all()
    assert (given_out >= np.minimum(lengths, 3)).all()
    assert given_out.sum() <= 12 * len(lengths)
