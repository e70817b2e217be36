"""The tau that a pilot recommends is that of the warning of a run."""

from __future__ import annotations

import logging

import pytest

from tests.helpers import play, rollout
from toa_trl.evaluation.pilot.figures import Resamples
from toa_trl.evaluation.pilot.tau import advise_tau
from toa_trl.sampling.observer import ENOUGH, RewardWatch
from toa_trl.types import Rollout


def rollouts(scale: float) -> list[Rollout]:
    return [
        rollout(*(play(n, scale * (8 * row + n), f"{row} {n}") for n in range(8)), id=str(row))
        for row in range(ENOUGH // 8)
    ]


@pytest.mark.parametrize(("scale", "keep"), [(1.0, False), (0.005, True), (0.0005, False)])
def test_the_advice_is_that_of_the_warning(
    scale: float, keep: bool, caplog: pytest.LogCaptureFixture
) -> None:
    advice = advise_tau(rollouts(scale), 0.1, Resamples(8))
    watch = RewardWatch(0.1)
    with caplog.at_level(logging.WARNING):
        for number in range(ENOUGH):
            watch.see(str(number), scale * number)
    assert advice is not None
    assert advice.keep is keep
    assert advice.suggested.low <= advice.suggested.value <= advice.suggested.high
    assert advice.suggested.value == pytest.approx(scale * 32.5 / 2)
    assert (f"use a tau of about {advice.suggested.value:.2g}" in caplog.text) is not keep


def test_a_response_that_is_repeated_counts_once_per_prompt() -> None:
    same = [rollout(*(play(n, 9.0, "same") for n in range(5)), play(5, 0.0, "x"), id="p")] * 2
    advice = advise_tau(same, 0.1, Resamples(2))
    assert advice is not None
    assert advice.saturated_share.value == 0.5


def test_equal_rewards_leave_nothing_to_choose() -> None:
    same = [rollout(play(0, 3.0), play(1, 3.0), id=str(n)) for n in range(2)]
    assert advise_tau(same, 0.1, Resamples(2)) is None
