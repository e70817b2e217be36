from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import pytest

from tests.helpers import TextReward, play, rollout, wait
from toa_trl.errors import ConfigError, RewardError, Unavailable
from toa_trl.rewards import make_reward
from toa_trl.rewards.calibration import _draw, calibrate
from toa_trl.types import Prompt

ROLLOUTS = [rollout(*(play(i, 0.5, f"{p} {i}") for i in range(20)), id=p) for p in ("p", "q", "r")]


class Seen(TextReward):
    """Remembers what it was asked."""

    def __init__(self, fails: str = "nothing", error: Exception | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.fails, self.error = fails, error or RewardError("cannot score this")

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        self.asked += [(prompt.id, text) for text in responses]
        if any(self.fails in text for text in responses):
            raise self.error
        return await super().score(prompt, responses)


def test_all_responses_where_there_are_fewer_than_asked_for() -> None:
    seen = Seen()
    mean, std = wait(calibrate(ROLLOUTS, seen))
    assert sorted(seen.asked) == sorted(
        (r.prompt.id, p.completion.text) for r in ROLLOUTS for p in r.plays if p.completion
    )
    rewards = [
        wait(TextReward().score(r.prompt, [f"{r.prompt.id} {i}"]))[0]
        for r in ROLLOUTS
        for i in range(20)
    ]
    assert (mean, std) == pytest.approx((fmean(rewards), pstdev(rewards)))


def test_the_draw_is_that_of_its_seed_and_takes_no_response_twice() -> None:
    def drawn(seed: int) -> list[tuple[str, str]]:
        seen = Seen()
        wait(calibrate(iter(ROLLOUTS), seen, num_responses=10, seed=seed))
        assert len(seen.asked) == len(set(seen.asked)) == 10
        return seen.asked

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(10)}) == 10
    often = [
        text for seed in range(60) for text in drawn(seed)
    ]  # 10 of 60, 60 times: each is expected 10 times
    assert len(set(often)) == 60
    assert max(map(often.count, often)) < 30


def test_the_prompt_is_given_as_it_was_judged() -> None:
    seen = Seen()
    wait(
        calibrate(
            ROLLOUTS[:1],
            seen,
            judged=lambda prompt: Prompt(f"{prompt.id} as judged", prompt.messages),
        )
    )
    assert {id for id, _ in seen.asked} == {"p as judged"}


def test_a_standardized_reward_has_mean_0_and_std_1() -> None:
    entry = {"kind": "length", "unit": "characters"}
    mean, std = wait(calibrate(ROLLOUTS, make_reward(entry)))
    standardized = make_reward(
        {"kind": "weighted_sum", "rewards": [{"reward": entry, "mean": mean, "std": std}]}
    )
    assert wait(calibrate(ROLLOUTS, standardized)) == pytest.approx((0, 1), abs=1e-9)


def test_failed_plays_are_not_drawn_and_failed_scores_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = Seen(fails="bad")
    few = rollout(
        play(0, 1.0, "good"), play(1, None), play(2, 1.0, "bad"), play(3, 1.0, "good, too"), id="p"
    )
    mean, _ = wait(calibrate([few], seen))
    assert [text for _, text in seen.asked] == ["good", "bad", "good, too"]
    assert mean == pytest.approx(fmean(wait(TextReward().score(few.prompt, ["good", "good, too"]))))
    assert "1 of 3 responses could not be scored; first error: cannot score this" in caplog.text


@pytest.mark.parametrize(
    ("rollouts", "model", "params", "raised", "named"),
    [
        ([], TextReward(), {}, ConfigError, "at least 2 scored responses are needed, not 0"),
        (
            [rollout(play(0, None))],
            TextReward(),
            {},
            ConfigError,
            "at least 2 scored responses are needed, not 0",
        ),
        (
            [rollout(play(0, 1.0))],
            TextReward(),
            {},
            ConfigError,
            "at least 2 scored responses are needed, not 1",
        ),
        (
            ROLLOUTS,
            make_reward({"kind": "length"}),
            {},
            ConfigError,
            "all 60 responses have the reward 2",
        ),
        (ROLLOUTS, Seen(fails=""), {}, RewardError, "cannot score this"),
        (ROLLOUTS, Seen(fails="", error=Unavailable("gone")), {}, Unavailable, "gone"),
        (
            ROLLOUTS,
            TextReward(),
            {"num_responses": 1},
            ConfigError,
            "num_responses: must be >= 2, not 1",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_an_error(
    rollouts: Any, model: Any, params: Any, raised: type[Exception], named: str
) -> None:
    with pytest.raises(raised, match=named):
        wait(calibrate(rollouts, model, **params))


def test_late_responses_are_drawn_as_often_as_early_ones() -> None:
    """Each response is drawn with probability count / total, wherever it stands in the run."""
    counts = [0] * 60
    for seed in range(400):
        for prompt, text in _draw(ROLLOUTS, 10, random.Random(seed)):
            counts["pqr".index(prompt.id) * 20 + int(text.split()[1])] += 1
    first, middle, end = (sum(counts[i : i + 20]) for i in (0, 20, 40))
    for third in (first, middle, end):  # expected 1333, standard deviation 30 or less
        assert 1180 < third < 1490
    assert min(counts) > 30  # expected 67, standard deviation 7.5
    assert max(counts) < 105
