"""Which prompts get the next plays, and that nothing but the plays decides it."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import number
from toa_trl.sampling.allocation.gain import GainEstimator
from toa_trl.sampling.allocation.history import History, Objective
from toa_trl.sampling.allocation.waves import ROUNDS_IN_FLIGHT, Waves
from toa_trl.types import Grant

Reward = Callable[[int, int], float]


def waves(num_prompts: int = 64, budget: int = 12, **changes: Any) -> Waves:
    settings: dict[str, Any] = {
        "min_plays": 4,
        "max_plays": 48,
        "wave": 4,
        "objective": Objective(),
        "stop_reward": None,
        "estimator": GainEstimator(),
    }
    return Waves(num_prompts=num_prompts, budget=budget, **{**settings, **changes})


def history(reward: Reward, prompt: int, num_plays: int) -> History:
    rewards = [reward(prompt, play) for play in range(num_plays)]
    return History(rewards, float(num_plays))


def spend(
    machine: Waves,
    reward: Reward,
    order: random.Random | None = None,
    stop_after: int | None = None,
    in_flight: Sequence[Grant] = (),
) -> list[Grant]:
    """Complete waves, in their order or in a random one, until all or so many are complete."""
    grants, open_waves, num_complete = list[Grant](), list(in_flight), 0
    while True:
        while (decided := machine.decide()) is not None:
            grants += decided
            open_waves += decided
        if not open_waves or num_complete == stop_after:
            return grants
        grant = open_waves.pop(order.randrange(len(open_waves)) if order else 0)
        machine.complete(grant.prompt, history(reward, grant.prompt, grant.plays))
        num_complete += 1


def solved_at(prompt: int, play: int) -> float:
    """A reward that the first prompts reach early and the last ones late or never."""
    return float(play >= prompt) + number(prompt, play) / 100


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_prompts=st.integers(1, 70),
    wave=st.integers(1, 6),
    more=st.integers(0, 9),
)
def test_the_decisions_do_not_depend_on_which_plays_are_ready(
    seed: int, num_prompts: int, wave: int, more: int
) -> None:
    settings = {"num_prompts": num_prompts, "budget": 4 + more, "wave": wave}

    def reward(prompt: int, play: int) -> float:
        return number(seed, prompt, play) - prompt % 3

    expected = spend(waves(**settings), reward)
    assert spend(waves(**settings), reward, random.Random(seed)) == expected


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), stop_after=st.integers(0, 150))
def test_a_restored_run_decides_as_one_that_was_not_stopped(seed: int, stop_after: int) -> None:
    order = random.Random(seed)
    whole = spend(waves(), solved_at)
    first = waves()
    grants = spend(first, solved_at, order, stop_after)
    # some waves in flight were complete, others had some plays
    in_flight = {grant.prompt: before for grant, before, _ in first._last.values()}
    plays = {grant.prompt: grant.plays for grant in grants}
    for prompt, before in in_flight.items():
        plays[prompt] = order.randint(before, plays[prompt])
    resumed = waves()
    histories = [(prompt, history(solved_at, prompt, n)) for prompt, n in plays.items() if n]
    left = resumed.restore(grants, histories)
    assert grants + spend(resumed, solved_at, order, in_flight=left) == whole


@pytest.mark.parametrize("budget", [4, 7, 12])
@pytest.mark.parametrize("num_prompts", [1, 5, 64, 101])
def test_the_budget_is_spent_to_the_last_play(num_prompts: int, budget: int) -> None:
    machine = waves(num_prompts, budget, max_plays=2 * budget)
    grants = spend(machine, solved_at)
    assert machine.over
    assert machine.granted.sum() == num_prompts * budget
    assert machine.granted.min() >= 4
    assert machine.granted.max() <= 2 * budget
    assert [grant.wave for grant in grants] == list(range(len(grants)))
    for prompt in range(num_prompts):  # plays of a prompt only grow
        own = [grant.plays for grant in grants if grant.prompt == prompt]
        assert own == sorted(set(own))


def test_equal_prompts_get_equal_budgets() -> None:
    machine = waves()
    spend(machine, lambda prompt, play: 0.5)
    assert machine.granted.min() == machine.granted.max() == 12


def test_plays_go_where_they_still_gain() -> None:
    machine = waves(64, 20, max_plays=80)
    spend(machine, lambda prompt, play: min(play, 4 if prompt < 32 else 70) / 70)
    assert machine.granted[32:].mean() > 2 * machine.granted[:32].mean()


def test_a_prompt_at_the_ceiling_gets_no_further_plays() -> None:
    machine = waves(stop_reward=1.0)
    spend(machine, lambda prompt, play: float(prompt % 2 == 0 and play >= 2))
    assert set(machine.granted[::2]) == {4}
    assert machine.granted.sum() == 64 * 12  # what they leave goes to the others

    machine = waves(stop_reward=1.0)
    spend(machine, lambda prompt, play: 1.0)
    assert machine.over
    assert machine.granted.sum() == 64 * 4  # nobody needs the rest


def test_a_prompt_that_was_given_up_gets_no_further_plays() -> None:
    machine = waves()
    while (decided := machine.decide()) is not None or not machine.over:
        for grant in decided or ():
            done = history(solved_at, grant.prompt, grant.plays if grant.prompt else 0)
            machine.complete(grant.prompt, done, given_up=not grant.prompt)
    assert machine.granted[0] == 4
    assert machine.granted.sum() == 64 * 12


def test_plays_beyond_the_grants_count_as_granted() -> None:
    machine = waves(8, 12)
    histories = [(prompt, history(solved_at, prompt, 12)) for prompt in range(8)]
    assert machine.restore([], histories) == []
    assert spend(machine, solved_at) == []
    larger = waves(8, 16)
    larger.restore([], histories)
    assert sum(grant.plays - 12 for grant in spend(larger, solved_at)) >= 8 * 4
    assert larger.granted.sum() == 8 * 16


def test_waves_are_always_in_flight_until_the_budget_ends() -> None:
    machine, num_prompts = waves(320, 16), 320
    open_waves, fewest = list[Grant](), num_prompts
    while True:
        while (decided := machine.decide()) is not None:
            open_waves += decided
        if machine.over:
            break
        fewest = min(fewest, len(open_waves))
        grant = open_waves.pop(0)
        machine.complete(grant.prompt, history(solved_at, grant.prompt, grant.plays))
    assert fewest >= (ROUNDS_IN_FLIGHT - 1) * 10  # rounds of 10 waves


def test_cheap_plays_are_preferred_where_the_gain_is_equal() -> None:
    machine = waves(64, 12)
    while (decided := machine.decide()) is not None or not machine.over:
        for grant in decided or ():
            n = grant.plays
            cost = float(n * (4 if grant.prompt < 32 else 1))
            machine.complete(
                grant.prompt,
                History([number(grant.prompt, i) for i in range(n)], cost),
            )
    assert machine.granted[32:].sum() > 1.2 * machine.granted[:32].sum()
