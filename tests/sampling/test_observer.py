from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import play
from toa_trl.sampling import observer
from toa_trl.sampling.observer import (
    ENOUGH,
    Failures,
    RewardWatch,
    distinguishes,
    squashed_spread,
    suggested_tau,
)
from toa_trl.types import Action, Message, Play, Prompt


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


@pytest.mark.parametrize("share_right", [0.02, 0.2, 0.8, 0.98])
def test_a_verifier_that_nearly_always_says_the_same_is_not_mentioned(
    share_right: float, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(0)
    rewards = [0.0, 1.0, *(float(rng.random() < share_right) for _ in range(1000))]
    assert warnings(rewards, 0.1, caplog) == ""


@given(st.lists(st.integers(-9, 9).map(float) | st.floats(-1e6, 1e6), min_size=2, max_size=80))
def test_the_suggested_tau_keeps_rewards_apart(rewards: list[float]) -> None:
    tau = suggested_tau(rewards)
    assert 0 < tau < float("inf")
    assert distinguishes(rewards, tau)


@pytest.mark.parametrize("tau", [0.1, None])
def test_rewards_of_a_fitting_scale_are_not_mentioned(
    tau: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(0)
    assert warnings([rng.gauss(0.15, 0.05) for _ in range(1000)], tau, caplog) == ""


@pytest.mark.parametrize(
    ("mean", "std", "tau", "spreads"),
    [
        (0.15, 0.05, 0.1, True),
        (0.15, 0.05, 100.0, False),  # nothing saturates: all become 0.5
        (0.0, 1.0, 20.0, False),
        (0.0, 1.0, 1.0, True),
        (-50.0, 10.0, 30.0, True),
        (-50.0, 10.0, 5.0, False),  # within the edge, and nearly all the same
    ],
)
def test_a_tau_that_leaves_hardly_any_spread_is_reported_with_a_better_one(
    mean: float, std: float, tau: float, spreads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(0)
    rewards = [rng.gauss(mean, std) for _ in range(ENOUGH)]
    said = warnings(rewards, tau, caplog)
    assert (said == "") is spreads
    if not spreads:
        assert "the middle half of 64 rewards spreads over" in said
        suggested = float(said.split("search_params: {tau: ")[1].split("}")[0])
        assert squashed_spread(rewards, suggested) > 4 * squashed_spread(rewards, tau)


@pytest.mark.parametrize(
    ("num_saturated", "warns"), [(ENOUGH // 2, False), (ENOUGH // 2 + 1, True)]
)
def test_saturation_is_reported_when_it_concerns_more_than_half(
    num_saturated: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With tau = 1, only rewards beyond +-13.8 are within a millionth of 0 or 1."""
    rewards = [20.0] * num_saturated + [0.5] * (ENOUGH - num_saturated)
    expected = f"{num_saturated} of {ENOUGH} rewards are 0 or 1 to a millionth"
    said = warnings(rewards, 1.0, caplog)
    assert (expected in said) is bool(said) is warns


@pytest.mark.parametrize(
    ("reward", "warns"), [(13.8, False), (13.9, True), (-13.8, False), (-13.9, True)]
)
def test_saturation_begins_within_a_millionth_of_the_edge(
    reward: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rewards = [reward] * (ENOUGH - 1) + [0.0]
    assert bool(warnings(rewards, 1.0, caplog)) is warns


def test_nothing_is_reported_before_there_are_enough_rewards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert warnings([1.0] * (ENOUGH - 1), None, caplog) == ""
    assert warnings([1.0] * ENOUGH, None, caplog) != ""


def test_rewards_and_reasons_are_seen_in_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "MAX_REASONS", 2)
    prompt = Prompt("p", (Message("user", "Hi"),))
    rewards, failures = RewardWatch(None), Failures()
    for error in (None, "slow", "down", "third", "slow"):
        seen = Play(1, Action("a"), error=error) if error else play(0, 0.5)
        rewards.played(prompt, seen)
        failures.played(prompt, seen)
    assert rewards._rewards == [0.5]
    assert failures.reasons == {"slow": 2, "down": 1}  # no more than MAX_REASONS different ones
