"""Which agents earn their place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import play, rollout
from toa_trl.evaluation.pilot.agents import (
    DEAR,
    EARNS,
    NEVER,
    NONE,
    ONLY,
    REPLACEABLE,
    Place,
    place_of,
    without,
)
from toa_trl.evaluation.pilot.figures import Resamples
from toa_trl.types import Action, Completion, Play, Rollout

REFINED = rollout(
    play(0, 1.0, agent="a"),
    play(1, 2.0, agent="b"),
    play(2, 5.0, agent="a", parent=1),  # rests on b
    play(3, 6.0, agent="a", parent=2),  # so does this
    play(4, 3.0, agent="a", parent=0),
    play(5, None, agent="b"),
)


def test_a_subtree_goes_with_its_root() -> None:
    assert [p.index for p in without(REFINED, "b")] == [0, 4]
    assert [p.index for p in without(REFINED, "a")] == [1]


def test_a_fresh_answer_below_a_response_rests_on_nothing() -> None:
    fresh = Play(1, Action("b", parent=0, depth=1), Completion("x"), reward=1.0)
    assert without(rollout(play(0, 2.0, agent="a"), fresh), "a") == (fresh,)


@st.composite
def trees(draw: st.DrawFn) -> Rollout:
    plays = []
    for index in range(draw(st.integers(1, 12))):
        agent = draw(st.sampled_from("abc"))
        refs = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        action = Action(agent, "aggregate" if refs else "answer", tuple(sorted(refs)))
        reward = draw(st.integers(-3, 3))
        plays.append(Play(index, action, Completion("x", flops=1.0), reward=float(reward)))
    return rollout(*plays)


@settings(max_examples=40)
@given(tree=trees(), agent=st.sampled_from("abcd"))
def test_what_is_left_is_all_that_neither_is_nor_sees_the_agents(tree: Rollout, agent: str) -> None:
    def rests(index: int) -> bool:
        action = tree.plays[index].action
        return action.agent == agent or any(map(rests, action.refs))

    left = without(tree, agent)
    assert [p.index for p in left] == [p.index for p in tree.plays if not rests(p.index)]
    place = place_of(agent, [tree, tree], Resamples(2, 20), lambda _: 1.0)
    if place.loss is not None:
        assert place.loss.low >= 0
        best_left = max(p.reward or 0.0 for p in left)
        assert place.loss.value == (tree.ranked[0].reward or 0.0) - best_left
    assert (place.loss is None) == (place.verdict in (NEVER, ONLY))


def place(agent: str, *rollouts: Rollout) -> Place:
    costs = {"a": 1.0, "b": 1.0, "dear": 10.0}
    return place_of(agent, rollouts, Resamples(len(rollouts)), lambda p: costs[p.action.agent])


def many(*plays: Play) -> list[Rollout]:
    return [rollout(*plays, id=str(number)) for number in range(8)]


def test_shares_and_losses_by_hand() -> None:
    other = rollout(play(0, 4.0, agent="a"), play(1, 0.0, agent="b"), id="other")
    found = place("b", REFINED, other)
    assert found.best_share.value == 0.0
    assert found.cost_share.value == 3 / 8  # a failed play costs too
    assert found.loss is not None
    assert found.loss.value == (3.0 + 0.0) / 2  # 6 -> 3, 4 -> 4
    assert found.net_loss is not None
    # two plays are left of the first prompt, whose first two reached 2; one of the second, 4
    assert found.net_loss.value == ((2.0 - 3.0) + (4.0 - 4.0)) / 2


@pytest.mark.parametrize(
    ("agent", "plays", "verdict"),
    [
        # alternating, and every response of b is better than the next one of a
        ("b", [(1.0, "a"), (5.0, "b"), (2.0, "a"), (6.0, "b")], EARNS),
        ("a", [(1.0, "a"), (5.0, "b"), (2.0, "a"), (6.0, "b")], NONE),
        ("dear", [(1.0, "a"), (2.0, "a"), (3.0, "a"), (3.5, "dear")], REPLACEABLE),
        ("b", [(1.0, "a"), (2.0, "b"), (3.0, "a"), (3.5, "b")], DEAR),
        ("b", [(1.0, "a")], NEVER),
        ("a", [(1.0, "a")], ONLY),
    ],
)
def test_verdicts(agent: str, plays: list[tuple[float, str]], verdict: str) -> None:
    made = [play(index, reward, agent=name) for index, (reward, name) in enumerate(plays)]
    assert place(agent, *many(*made)).verdict == verdict
