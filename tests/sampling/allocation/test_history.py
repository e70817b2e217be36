"""What counts of a prompt's plays."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import play
from toa_trl.sampling.allocation.history import History, Objective, state

REWARDS = [1.0, 5.0, 3.0, 4.0, 2.0]


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (Objective(), 5.0),
        (Objective("top_k", 1), 5.0),
        (Objective("top_k", 3), 4.0),
        (Objective("top_k", 9), 3.0),
        (Objective("margin"), 4.0),
        (Objective("margin", rank=2), 1.0),
        (Objective("margin", rank=4), 3.0),
        (Objective("margin", rank=9), 4.0),
        (Objective("margin", rank=0.6), 2.0),
        (Objective("margin", rank=0.01), 1.0),
    ],
)
def test_objectives(objective: Objective, value: float) -> None:
    assert objective.value(REWARDS) == value


def test_a_history_holds_the_scored_plays_by_index() -> None:
    plays: list[Any] = [play(3, 0.5, parent=0), play(0, 0.2), play(1, None), play(2, 0.9)]
    found = History.of(plays, lambda play: 2.0)
    assert found.rewards == [0.2, 0.9, 0.5]
    assert (len(found), found.best, found.cost) == (3, 0.9, 6.0)


def test_a_state_is_the_value_of_the_objective_and_the_number_of_plays() -> None:
    history = History(REWARDS, 5.0)
    assert state(history, 5, Objective("top_k", 3)) == (4.0, 5)
    assert state(history, 1, Objective()) == (1.0, 1)


@settings(max_examples=25)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_the_state_of_finite_rewards_can_be_squared(rewards: list[float]) -> None:
    value, _ = state(History(rewards, 0.0), len(rewards), Objective())
    assert abs(value) <= 1e100
