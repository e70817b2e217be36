from __future__ import annotations

import random

import pytest

from toa_trl.sampling.reward_checks import ENOUGH, RewardWatch


def warnings(rewards: list[float], tau: float | None, caplog: pytest.LogCaptureFixture) -> str:
    watch = RewardWatch(tau)
    for number, reward in enumerate(rewards):
        watch.see(f"text {number}", reward)
    return caplog.text


def test_one_score_for_everything_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    said = warnings([-2.0] * 10 * ENOUGH, 1.0, caplog)
    assert said.count("the reward is -2 for each of") == 1
    assert "squashed" not in said


def test_the_same_text_says_nothing_about_the_model(caplog: pytest.LogCaptureFixture) -> None:
    watch = RewardWatch(None)
    for _ in range(1000):
        watch.see("the same", 0.5)
    assert caplog.text == ""


def test_a_squashing_that_saturates_is_said_once_with_a_tau_that_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = random.Random(0)
    rewards = [rng.gauss(20.0, 8.0) for _ in range(1000)]
    said = warnings(rewards, 0.1, caplog)
    assert said.count("0 or 1 to a millionth") == 1
    tau = float(said.split("search_params: {tau: ")[1].split("}")[0])
    caplog.clear()
    assert warnings(rewards, tau, caplog) == ""


@pytest.mark.parametrize("tau", [0.1, None])
def test_rewards_of_a_fitting_scale_are_not_mentioned(
    tau: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(0)
    assert warnings([rng.gauss(0.15, 0.05) for _ in range(1000)], tau, caplog) == ""
