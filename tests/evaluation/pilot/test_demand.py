"""What the full run takes."""

from __future__ import annotations

import pytest

from tests.helpers import play, rollout
from toa_trl.agents.base import Price
from toa_trl.evaluation.costs import Costs
from toa_trl.evaluation.pilot.demand import (
    AGENTS,
    NEITHER,
    REWARD,
    Demand,
    Estimator,
    FullRun,
    Hours,
    busy_seconds,
    cost_measure,
    unknown_flops,
)
from toa_trl.evaluation.pilot.figures import Figure, Resamples
from toa_trl.sampling.timing import Call
from toa_trl.types import Rollout

# two prompts with two plays each; the seed of a play is its index
ROLLOUTS = [
    rollout(play(0, 1.0, agent="a"), play(1, 2.0, agent="b"), id="one"),
    rollout(play(2, 1.0, agent="a"), play(3, 2.0, agent="a"), play(4, None), id="two"),
]
RUN = FullRun(num_prompts=10, budget=2, plays_in_flight=8, pilot_in_flight=2)
CALLS = [
    Call(0, "a", 100.0, 104.0, seed=0),
    Call(0, "a", 101.0, 105.0, seed=2),
    Call(0, None, 106.0, 107.0, prompt_id="one", tokens=30, cost=0.5),
    Call(0, "b", 107.0, 108.0, seed=1),
    Call(0, "a", 107.0, 110.0, seed=99),  # withdrawn: no play of the journal
    # resumed, with another clock
    Call(1, "a", 3.0, 5.0, seed=3),
    Call(1, None, 5.0, 6.0, prompt_id="two", tokens=10, cost=0.0),
    Call(1, None, 6.0, 7.0, prompt_id="one"),
    Call(1, None, 7.0, 8.0, prompt_id="two"),
]


def demand(rollouts: list[Rollout] = ROLLOUTS, calls: list[Call] = CALLS) -> Demand:
    costs = Costs({"a": Price(prompt=1e6, completion=2e6)})
    resamples = Resamples(len(rollouts))
    return Estimator(rollouts, calls, RUN, costs, resamples).demand(["a", "b"])


def hours(*calls: Call) -> Hours:
    found = demand(calls=list(calls)).hours
    assert found is not None
    return found


def value(figure: Figure | None) -> float:
    assert figure is not None
    return figure.value


def test_hours_by_hand() -> None:
    found = demand()
    assert found.hours is not None
    # sessions of 10 and 5 seconds gave 4 plays; the full run has 20
    assert found.hours.at_pilot_pace.value == pytest.approx(15 / 4 * 20 / 3600)
    # the calls of the plays took 4 + 4 + 1 + 2 and 4 x 1 seconds
    assert found.hours.if_as_fast.value == pytest.approx(15 / 4 * 20 / 8 / 3600)
    assert found.hours.agents_share.value == pytest.approx(11 / 15)
    assert found.hours.idle_share == pytest.approx(1 / 15)  # from 105 to 106
    a, b, reward = *found.parts, found.reward
    assert value(a.latency_s) == pytest.approx(10 / 3)
    assert a.busy_share == pytest.approx((5 + 3 + 2) / 15)
    assert a.concurrency == pytest.approx(13 / 10)
    assert value(a.busy_hours) == pytest.approx(10 / 4 * 20 / 3600)
    assert value(b.latency_s) == 1.0
    assert value(reward.latency_s) == 1.0
    assert reward.busy_share == pytest.approx(4 / 15)


def test_tokens_flops_and_price_by_hand() -> None:
    found = demand()
    a, b, reward = *found.parts, found.reward
    # 4 of the 5 plays have 10 + 5 tokens and 1 FLOP, and 2 FLOPs of the reward
    assert value(found.tokens) == (4 * 15 + 40) / 4 * 20
    assert value(found.flops) == 3 * 20
    assert value(found.cost) == (3 * 20 + 0.5) / 4 * 20
    assert (value(a.tokens), value(b.tokens), value(reward.tokens)) == (225, 75, 200)
    assert (value(a.flops), value(b.flops), value(reward.flops)) == (15, 5, 40)
    assert value(a.cost) == 3 * 20 / 4 * 20
    assert b.cost is None
    assert value(reward.cost) == 2.5


def test_intervals_are_over_prompts() -> None:
    tokens = demand().parts[1].tokens  # b has one play of the first prompt, none of the second
    assert tokens == Figure(75, 0, 150)
    assert demand(ROLLOUTS[:1] * 2).parts[1].tokens == Figure(150, 150, 150)


def test_an_incomplete_pilot_counts_by_plays() -> None:
    short = [ROLLOUTS[0], rollout(play(2, 1.0, agent="a"), id="two")]
    assert value(demand(short).tokens) == pytest.approx((3 * 15 + 40) / 3 * 20)


@pytest.mark.parametrize(
    ("agent_s", "reward_s", "expected"),
    [((3, 3), (1, 1), AGENTS), ((1, 1), (3, 3), REWARD), ((3, 1), (1, 3), NEITHER)],
)
def test_the_bottleneck(
    agent_s: tuple[float, float], reward_s: tuple[float, float], expected: str
) -> None:
    calls = []
    for number, prompt_id in enumerate(("one", "two")):
        calls.append(Call(0, "a", 0.0, agent_s[number], seed=2 * number))
        calls.append(Call(0, None, 0.0, reward_s[number], prompt_id=prompt_id))
    assert hours(*calls).bottleneck == expected


def test_without_timed_calls_hours_are_unknown() -> None:
    found = demand(calls=[])
    assert found.hours is None
    assert found.parts[0].latency_s is None
    assert found.reward.tokens is None


def test_busy_seconds_are_those_with_any_call() -> None:
    calls = [Call(0, "a", 0, 4), Call(0, "a", 1, 2), Call(0, "a", 3, 5), Call(0, "a", 7, 8)]
    assert busy_seconds(calls[::-1]) == 6
    assert busy_seconds([]) == 0
    assert busy_seconds([*calls, Call(1, "a", 0, 1)]) == 7


def test_in_what_agents_are_compared() -> None:
    prices = {"a": Price(completion=1e6), "b": Price(completion=2e6)}
    unknown = [rollout(play(0, 1.0, flops=None), id="x")]
    one = ROLLOUTS[0].plays[1]
    cases = [
        (ROLLOUTS, Costs(prices), "price", 10.0),
        (ROLLOUTS, Costs({"a": prices["a"]}), "FLOPs", 1.0),
        (unknown, Costs({}), "tokens", 15.0),
    ]
    for rollouts, costs, name, cost in cases:
        found, cost_of = cost_measure(rollouts, costs)
        assert (found, cost_of(one)) == (name, cost)
    assert unknown_flops(ROLLOUTS) == []
    assert unknown_flops(unknown) == ["a"]
