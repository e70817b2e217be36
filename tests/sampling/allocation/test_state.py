"""The state of a prompt: what the numbers are, and that they are finite for any finite rewards."""

from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toa_trl.sampling.allocation.state import FEATURES, state


@dataclass
class Seen:
    """Scored plays."""

    rewards: list[float]
    drafts: list[float | None]
    depths: list[int]


class Best:
    """The best reward."""

    def value(self, rewards: list[float]) -> float:
        return max(rewards)


class Mean:
    """The mean reward."""

    def value(self, rewards: list[float]) -> float:
        return fmean(rewards)


PLAYS = Seen([1.0, 3.0, 2.0, 3.0], [None, 1.0, 3.0, None], [0, 1, 2, 0])


def features(seen: Seen, num_plays: int | None = None) -> dict[str, float]:
    """Return the state by name, after `num_plays` or all plays."""
    found = state(seen, len(seen.rewards) if num_plays is None else num_plays, Best())
    return dict(zip(FEATURES, found.tolist(), strict=True))


def test_each_number_is_what_its_name_says() -> None:
    expected = {"value": 3, "plays": 4, "since": 2, "gap": 0, "depth": 1, "improved": 0.5}
    assert features(PLAYS) == {**expected, "spread": pytest.approx(np.std([1, 3, 2, 3]))}


def test_only_the_first_plays_count() -> None:
    expected = {"value": 3, "plays": 2, "since": 0, "gap": 2, "spread": 1, "depth": 1}
    assert features(PLAYS, 2) == {**expected, "improved": 1}


def test_one_play_has_a_state() -> None:
    expected = dict.fromkeys(FEATURES, 0.0) | {"value": 1, "plays": 1}
    assert features(PLAYS, 1) == expected


def test_the_value_is_that_of_the_objective() -> None:
    assert state(PLAYS, 4, Mean())[FEATURES.index("value")] == pytest.approx(2.25)


def test_equal_rewards_have_no_spread_whatever_their_rounding() -> None:
    seen = Seen([0.1] * 7, [None] * 7, [0] * 7)
    assert (features(seen)["spread"], features(seen)["gap"]) == (0, 0)


@settings(max_examples=25)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_the_state_of_finite_rewards_is_finite(rewards: list[float]) -> None:
    seen = Seen(rewards, [None, *rewards[:-1]], list(range(len(rewards))))
    assert np.isfinite(state(seen, len(rewards), Best())).all()
