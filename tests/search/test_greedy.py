"""Greedy refinement."""

from __future__ import annotations

from tests.search.driver import gauss, play_out
from toa_trl.search import make_search


def test_every_agent_answers_once_and_then_the_best_is_refined_in_turn() -> None:
    plays = play_out(make_search("greedy", ["a", "b", "c"], 12), gauss())
    assert [(p.action.agent, p.action.kind) for p in plays[:3]] == [
        (agent, "answer") for agent in "abc"
    ]
    for play in plays[3:]:
        earlier = [p for p in plays if p.index < play.index and p.reward is not None]
        best = max(earlier, key=lambda p: p.reward or 0.0)
        assert play.action.refs == (best.index,) == (play.action.parent,)
        assert play.action.depth == best.action.depth + 1
        assert play.action.agent == "abc"[play.index % 3]


def test_of_equal_rewards_the_earliest_is_refined() -> None:
    plays = play_out(make_search("greedy", ["a", "b"], 6), lambda index, action: 0.5)
    assert {play.action.refs for play in plays[2:]} == {(0,)}
