"""Win rates: their arithmetic, and what they promise whatever the outcomes are."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import wait
from tests.judge_server import judging, rating
from toa_trl.errors import RewardError, Unavailable
from toa_trl.evaluation.accuracy import Scores
from toa_trl.evaluation.intervals import bootstrap
from toa_trl.evaluation.outputs import Output, Outputs
from toa_trl.evaluation.winrate import (
    FEWEST_MATCHED,
    MATCHED,
    NUM_AT_ONCE,
    by_judge,
    by_scores,
    win_rate_of,
    win_rates,
)
from toa_trl.rewards import make_reward
from toa_trl.tasks import make_task
from toa_trl.types import Prompt, Score

OUTCOMES = st.none() | st.builds(
    lambda share, weight: Score(share, weight=weight),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.875, 1.0]),
    st.sampled_from([1.0, 2.0, 3.0]),
)
CASES = st.lists(st.tuples(OUTCOMES, st.integers(0, 40), st.integers(0, 40)), max_size=60)
Case = tuple[Score | None, int, int]


def outcomes(*values: float | None) -> list[Score | None]:
    """Outcomes of weight 1."""
    return [None if value is None else Score(value) for value in values]


def values(found: list[Score | None]) -> list[float | None]:
    """The shares of outcomes."""
    return [None if outcome is None else outcome.value for outcome in found]


def rate(cases: list[Case]) -> Any:
    return win_rate_of(*zip(*cases, strict=True)) if cases else win_rate_of([], [], [])


def swapped(case: Case) -> Case:
    outcome, ours, theirs = case
    if outcome is not None:
        outcome = Score(1 - outcome.value, weight=outcome.weight)
    return outcome, theirs, ours


def test_outcomes_by_scores() -> None:
    found = by_scores([1.0, 0.5, -2.0, 3], [0.5, 0.5, -1.0, 3.0])
    assert found == outcomes(1.0, 0.5, 0.0, 0.5)
    assert by_scores([0.1 + 0.2], [0.3]) == [Score(1.0)]  # no tolerance
    missing = [None, 1.0, math.nan, 1.0, math.inf]
    assert by_scores(missing, [1.0, None, 1.0, math.nan, 1.0]) == [None] * 5
    assert by_scores([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        by_scores([1.0], [])


@given(st.lists(st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False))))
def test_outcomes_by_scores_mirror(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    mirrored = values(by_scores(theirs, ours))
    assert [None if v is None else 1 - v for v in values(by_scores(ours, theirs))] == mirrored


@given(CASES)
def test_swapping_the_models_mirrors_both_rates(cases: list[Case]) -> None:
    one, other = rate(cases), rate([swapped(case) for case in cases])
    for name in ("win_rate", "win_rate_matched_length"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None and b is None) or a + b == pytest.approx(1, abs=1e-12)
    assert (one.num_wins, one.num_ties, one.num_losses) == (
        other.num_losses,
        other.num_ties,
        other.num_wins,
    )
    assert (one.num_failed, one.num_matched) == (other.num_failed, other.num_matched)
    assert (one.mean_length, one.baseline_mean_length) == (
        other.baseline_mean_length,
        other.mean_length,
    )


@given(CASES, st.randoms(use_true_random=False))
def test_the_order_of_the_prompts_does_not_matter(cases: list[Case], rng: random.Random) -> None:
    assert rate(rng.sample(cases, len(cases))).as_json() == rate(cases).as_json()


@given(CASES)
def test_counts_add_up_and_intervals_hold_their_rates(cases: list[Case]) -> None:
    found = rate(cases)
    assert found.num_wins + found.num_ties + found.num_losses + found.num_failed == len(cases)
    assert (
        (found.win_rate is None) == (found.num_failed == len(cases)) == (found.mean_length is None)
    )
    assert (found.reason is None) == (found.win_rate_matched_length is not None)
    pairs = [
        (found.win_rate, found.interval),
        (found.win_rate_matched_length, found.interval_matched_length),
    ]
    for value, interval in pairs:
        assert (value is None) == (interval is None)
        if value is not None:
            low, high = interval
            assert 0 <= low <= value + 1e-9
            assert value - 1e-9 <= high <= 1
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize(("outcome", "expected"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_wins_ties_and_losses_count_one_half_and_nothing(outcome: float, expected: float) -> None:
    found = win_rate_of([Score(outcome)] * 20, [10] * 20, [11, 9] * 10)
    assert found.win_rate == found.win_rate_matched_length == expected
    assert found.interval == found.interval_matched_length == (expected, expected)
    assert (found.num_matched, found.reason) == (20, None)


def test_failures_are_left_out() -> None:
    mixed = outcomes(1.0, None, 0.0, 0.5, 1.0, None, None)
    found = win_rate_of(mixed, [4, None, 2, 2, 4, None, 3], [1, 1, 1, 1, 1, None, 99])
    assert found.win_rate == 2.5 / 4
    assert found.interval == bootstrap([0.0, 0.5, 1.0, 1.0])
    assert (found.num_wins, found.num_ties, found.num_losses, found.num_failed) == (2, 1, 1, 3)
    assert (found.mean_length, found.baseline_mean_length) == (3.0, 1.0)


def test_without_outcomes_there_is_no_rate_and_a_reason() -> None:
    found = win_rate_of([None] * 3, [None] * 3, [4, 5, 6])
    assert found.as_json() == {
        "win_rate": None,
        "interval": None,
        "win_rate_matched_length": None,
        "interval_matched_length": None,
        "num_matched": 0,
        "num_wins": 0,
        "num_ties": 0,
        "num_losses": 0,
        "num_failed": 3,
        "mean_length": None,
        "baseline_mean_length": None,
        "reason": "every outcome is missing",
    }


def test_arena_verdicts_count_with_their_weights() -> None:
    """Arena-Hard-Auto repeats a strong verdict three times and takes the mean over all of them."""
    rng = random.Random(0)
    shares_of = {"A>>B": [1.0] * 3, "A>B": [1.0], "A=B": [0.5], "B>A": [0.0], "B>>A": [0.0] * 3}
    verdicts = list(shares_of)
    games = [(rng.choice(verdicts), rng.choice(verdicts)) for _ in range(200)]
    theirs = [value for game in games for verdict in game for value in shares_of[verdict]]
    ours = []
    for game in games:
        repeated = [value for verdict in game for value in shares_of[verdict]]
        ours.append(Score(sum(repeated) / len(repeated), weight=len(repeated) / 2))
    found = win_rate_of(ours, [9] * 200, [9] * 200)
    assert (
        found.win_rate == found.win_rate_matched_length == pytest.approx(sum(theirs) / len(theirs))
    )
    shares = np.array([score.value for score in ours])
    weights = np.array([score.weight for score in ours])
    drawn = np.random.default_rng(1).integers(0, 200, (2000, 200))  # the ratio itself, drawn anew
    low, high = np.percentile((shares * weights)[drawn].sum(1) / weights[drawn].sum(1), [2.5, 97.5])
    assert found.interval == pytest.approx((low, high), abs=0.01)


def test_at_matched_length_a_judge_of_length_gives_one_half() -> None:
    rng = np.random.default_rng(0)
    for longer in (0.9, 1.0, 1.1, 1.2):
        theirs = rng.integers(50, 500, 400).astype(float)
        ours = np.rint(theirs * longer * rng.lognormal(0, 0.3, 400))
        found = win_rate_of(by_scores(list(ours), list(theirs)), list(ours), list(theirs))
        assert found.win_rate_matched_length == pytest.approx(0.5, abs=1e-12)
        assert found.win_rate is not None
        assert (found.win_rate > 0.53) == (longer > 1)


def test_at_matched_length_a_preference_for_long_answers_is_taken_out() -> None:
    """Wins at the odds exp(0.4 + 2 log(length ratio)): at equal length the rate is 0.6."""
    rng = np.random.default_rng(0)
    ratio = rng.normal(0.3, 0.35, 4000)
    wins = rng.random(4000) < 1 / (1 + np.exp(-0.4 - 2 * ratio))
    found = win_rate_of(outcomes(*wins.astype(float)), list(300 * np.exp(ratio)), [300.0] * 4000)
    assert found.win_rate is not None
    assert found.win_rate > 0.68
    assert found.win_rate_matched_length == pytest.approx(0.6, abs=0.03)
    low, high = found.interval_matched_length or (0, 0)
    assert low < 0.6 < high


def test_pairs_are_matched_by_the_ratio_of_their_lengths() -> None:
    assert MATCHED == 1.2
    lengths = [(100, 120), (120, 100), (100, 121), (121, 100), (0, 0), (0, 1), (7, 7)]
    assert (
        win_rate_of(
            [Score(1.0)] * 7 * 5, [a for a, _ in lengths] * 5, [b for _, b in lengths] * 5
        ).num_matched
        == 4 * 5
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([100] * 50, [200] * 50),  # none
        ([110] * 50, [100] * 50),  # all of them longer: nothing on the other side
        ([110] * 50 + [99] * 2, [100] * 52),  # two that would decide it all
        ([100] * 9, [100] * 9),
        ([0] * 50, [1] * 50),
    ],
)
def test_too_few_matched_pairs_give_a_reason_and_no_rate(
    ours: list[float], theirs: list[float]
) -> None:
    found = win_rate_of([Score(1.0), *[Score(0.5)] * (len(ours) - 1)], ours, theirs)
    assert (found.win_rate_matched_length, found.interval_matched_length) == (None, None)
    assert "too few" in (found.reason or "")
    assert found.win_rate is not None


def test_as_few_matched_pairs_as_are_needed() -> None:
    num = int(FEWEST_MATCHED)
    assert win_rate_of([Score(1.0)] * num, [5] * num, [5] * num).win_rate_matched_length == 1.0
    assert (
        win_rate_of(
            [Score(1.0)] * num, [10, 11] * (num // 2), [11, 10] * (num // 2)
        ).win_rate_matched_length
        == 1.0
    )


class Counting:
    """A judge that knows how many ask it at once."""

    def __init__(self) -> None:
        self.running = self.most = 0

    async def compare(self, prompt: Prompt, a: str, b: str) -> Score:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.0001 * (len(a) % 3))
        self.running -= 1
        if a == "gone":
            raise Unavailable("gone")
        if len(a) % 5 == 0:
            raise RewardError("no verdict")
        return Score(1.0 if len(a) > len(b) else 0.0)


def test_by_judge_keeps_the_order_and_leaves_failures_out(caplog: pytest.LogCaptureFixture) -> None:
    number = 3 * NUM_AT_ONCE
    prompts = [Prompt(str(i), "?") for i in range(number)]  # type: ignore[arg-type]
    responses = [None if i == 1 else "x" * i for i in range(number)]
    against = [None if i == 2 else "x" * 200 for i in range(number)]
    judge = Counting()
    with caplog.at_level(logging.WARNING):
        found = wait(by_judge(judge, prompts, responses, against, progress=False))
    assert values(found) == [
        None if i in (1, 2) or i % 5 == 0 else float(i > 200) for i in range(number)
    ]
    assert judge.most == NUM_AT_ONCE
    assert (
        f"{number // 5 + 1 + 2} of {number} comparisons failed, most often: no verdict"
        in caplog.text
    )


def test_by_judge_stops_where_the_judge_is_gone_and_bears_nothing_to_do() -> None:
    prompt = Prompt("p", "?")  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        wait(by_judge(Counting(), [prompt], ["gone"], ["x"], progress=False))
    assert wait(by_judge(Counting(), [], [], [], progress=False)) == []
    with pytest.raises(ValueError, match="shorter"):
        wait(by_judge(Counting(), [prompt], [], ["x"], progress=False))


def test_a_row_for_each_model_and_whatever_measured_it() -> None:
    prompts = [Prompt(str(i), "?", {"source": "What?"}) for i in range(12)]  # type: ignore[arg-type]
    seen = []

    class Longer:
        async def compare(self, prompt: Prompt, a: str, b: str) -> Score:
            seen.append(prompt.messages[-1].content)
            return Score(float(len(a) > len(b)))

    outputs = {
        name: [Outputs(Output(text), (Output("a sample that nobody compares"),))] * 12
        for name, text in {"base": "one two", "sft": "one two three", "dpo": "1 2"}.items()
    }
    scores = {
        "base": Scores(reward=[0.0] * 12),
        "sft": Scores(reward=[1.0] * 11 + [None]),
        "dpo": Scores(reward=[0.0] * 12),
    }
    task = make_task({"name": "translation"})
    rows = wait(win_rates("base", prompts, task, outputs, scores, Longer(), progress=False))
    assert [(row["model"], row["baseline"], row["by"], row["win_rate"]) for row in rows] == [
        ("sft", "base", "reward", 1.0),
        ("sft", "base", "judge", 1.0),
        ("dpo", "base", "reward", 0.5),
        ("dpo", "base", "judge", 0.0),
    ]
    assert rows[0] | {"num_failed": 1, "mean_length": 3.0, "baseline_mean_length": 2.0} == rows[0]
    assert set(seen) == {"What?"}  # as the reward model sees it: the source alone
    verified = {name: Scores(verifier=[1.0] * 12) for name in outputs}
    assert [row["by"] for row in wait(win_rates("sft", prompts, task, outputs, verified))] == [
        "verifier"
    ] * 2


@pytest.mark.parametrize("mode", ["pairwise", "arena"])
def test_a_judge_that_talks_nonsense_still_gives_the_right_rate(mode: str) -> None:
    rng = random.Random(1)
    prompts = [Prompt(str(i), f"Question {i}?") for i in range(100)]  # type: ignore[arg-type]
    ours, theirs = ([" ".join(word * rng.randint(5, 20)) for _ in prompts] for word in "wv")

    async def judged(url: str) -> list[Score | None]:
        agent = {"name": "judge", "engine": "openai", "model": "judge", "base_url": url}
        judge: Any = make_reward({"kind": "judge", "agent": agent, "mode": mode, "max_attempts": 2})
        try:
            return await by_judge(judge, prompts, ours, theirs, progress=False)
        finally:
            await judge.aclose()

    with judging(nonsense=0.3) as server:
        found = wait(judged(server.url))
        assert server.stats()["served_again"] == 0
    lengths = [[len(text.split()) for text in texts] for texts in (ours, theirs)]
    expected = by_scores(*lengths)
    pairs = zip(values(found), values(expected), strict=True)
    assert all(value in (None, truth) for value, truth in pairs)
    summary = win_rate_of(found, *lengths)
    assert 5 <= summary.num_failed <= 35  # 1 - (1 - 0.3 ** 2) ** 2 of 100 are 17
    assert summary.win_rate_matched_length == pytest.approx(0.5)
    assert rating(ours[0]) != rating(theirs[0])
