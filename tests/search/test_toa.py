"""TOA: golden traces, an oracle, and the invariants of toa-algorithm.md."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.driver import gauss, play_out
from tests.search.oracle import GOLDEN, golden, oracle
from toa_trl.search import make_search
from toa_trl.search.toa import TOA
from toa_trl.types import Action

PUBLISHED = Path(__file__).parents[1] / "golden" / "toa_traces.json"
NAMES = tuple("abcdefgh")


def config_of(trace: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a trace, by the names of this package."""
    return {key.removesuffix("_responses"): value for key, value in trace["config"].items()}


def replay(trace: dict[str, Any], by_default: bool = False) -> None:
    """Feed the rewards back one at a time; every choice must be equal."""
    params = config_of(trace)
    num_agents, budget = params.pop("num_agents"), params.pop("budget")
    if by_default:
        params = {}
    search = make_search("toa", NAMES[:num_agents], budget, **params)
    for number, expected in enumerate(trace["plays"]):
        ((index, action),) = search.ask()
        refined = action.refs[0] if action.refs else None
        assert (index, NAMES.index(action.agent), refined, action.depth) == (
            number,
            expected["agent"],
            expected["parent"],
            expected["depth"],
        )
        search.tell(index, expected["reward"])
    assert search.done


def test_equals_the_published_implementation() -> None:
    traces = json.loads(PUBLISHED.read_text())
    assert len(traces) == 12
    for trace in traces:
        replay(trace)


def test_the_defaults_are_the_settings_of_the_paper_for_alignment() -> None:
    replay(json.loads(PUBLISHED.read_text())[0], by_default=True)


@pytest.mark.parametrize("number", range(4))
def test_equals_the_small_golden_traces(number: int) -> None:
    replay(json.loads(GOLDEN.read_text())[number])


def test_the_small_golden_traces_are_the_oracles() -> None:
    assert json.loads(GOLDEN.read_text()) == golden()


def test_the_oracle_equals_the_published_implementation() -> None:
    for trace in json.loads(PUBLISHED.read_text()):
        config = config_of(trace)
        if config["budget"] > 64:
            continue  # it walks the whole tree: minutes
        rewards = [play["reward"] for play in trace["plays"]]
        plays = oracle(rewards.__getitem__, **config)
        assert [play[:2] for play in plays] == [
            (play["agent"], play["parent"]) for play in trace["plays"]
        ]


def compare(
    num_agents: int,
    budget: int,
    width: int,
    alpha: float,
    tau: float,
    top_k: int,
    rewards: list[float],
) -> None:
    params: dict[str, Any] = {"width": width, "alpha": alpha, "tau": tau, "top_k": top_k}
    plays = play_out(
        make_search("toa", NAMES[:num_agents], budget, **params),
        lambda index, action: rewards[index],
    )
    played = [
        (
            NAMES.index(p.action.agent),
            p.action.refs[0] if p.action.refs else None,
            p.action.parent,
            p.action.depth,
        )
        for p in plays
    ]
    assert played == oracle(rewards.__getitem__, num_agents=num_agents, budget=budget, **params)


@given(
    num_agents=st.integers(1, 4),
    budget=st.integers(1, 45),
    extra_width=st.integers(0, 8),
    alpha=st.sampled_from([0.0, 0.01, 0.05, 0.5, 2.0]),
    tau=st.sampled_from([0.02, 0.1, 1.0, 10.0]),
    top_k=st.sampled_from([1, 1, 2, 3]),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.05, 0.5, 3.0]),
)
@settings(max_examples=150)
def test_equals_the_oracle(
    num_agents: int,
    budget: int,
    extra_width: int,
    alpha: float,
    tau: float,
    top_k: int,
    seed: int,
    spread: float,
) -> None:
    rng = random.Random(seed)
    rewards = [rng.gauss(0, spread) for _ in range(budget)]
    compare(num_agents, budget, num_agents + extra_width, alpha, tau, top_k, rewards)


@given(
    num_agents=st.integers(1, 3),
    extra_width=st.integers(0, 6),
    alpha=st.sampled_from([0.0, 0.05, 1.0]),
    top_k=st.integers(1, 3),
    rewards=st.lists(st.sampled_from([-80.0, 0.0, 1.0, 80.0, 90.0]), min_size=1, max_size=35),
)
@settings(max_examples=100)
def test_equals_the_oracle_where_rewards_tie_or_saturate(
    num_agents: int, extra_width: int, alpha: float, top_k: int, rewards: list[float]
) -> None:
    compare(num_agents, len(rewards), num_agents + extra_width, alpha, 1.0, top_k, rewards)


@given(
    k=st.integers(1, 5),
    budget=st.integers(1, 60),
    extra_width=st.integers(0, 20),
    seed=st.integers(0, 999),
)
@settings(max_examples=60)
def test_first_a_round_of_answers_then_the_width(
    k: int, budget: int, extra_width: int, seed: int
) -> None:
    width = k + extra_width
    plays = play_out(make_search("toa", NAMES[:k], budget, width=width), gauss(seed))
    assert all(p.action.depth == 0 for p in plays[:width])
    assert sorted(p.action.agent for p in plays[:k]) == sorted(NAMES[: min(k, budget)])
    assert sum(p.action.depth == 0 for p in plays) == min(budget, width)


@pytest.mark.parametrize("seed", range(4))
def test_at_paper_settings_plays_fall_about_evenly_over_three_depths(seed: int) -> None:
    rng, rewards = random.Random(seed), list[float]()

    def refinement_helps(index: int, action: Action) -> float:
        base = rewards[action.refs[0]] + 0.02 if action.refs else 0.05
        rewards.append(rng.gauss(base, 0.05))
        return rewards[-1]

    search = make_search("toa", NAMES[:4], 160, width=53, alpha=0.01, tau=0.1)
    depths = Counter(p.action.depth for p in play_out(search, refinement_helps))
    assert depths[0] == 53
    assert 53 <= depths[1] <= 70
    assert 35 <= depths[2] <= 54


def test_width_is_a_third_of_the_budget_unless_told_otherwise() -> None:
    assert TOA(["a", "b"], 160).width == 53
    assert TOA(["a", "b", "c"], 6).width == 3


@pytest.mark.parametrize(("budget", "width"), [(160, 80), (9, 4), (4, 3)])
def test_a_width_below_one_is_a_share_of_the_budget(budget: int, width: int) -> None:
    search = make_search("toa", ["a", "b", "c"], budget, width=0.5)
    assert search.width == width


def test_a_fresh_arm_has_a_parent_and_no_refs() -> None:
    # every answer is as good as can be, so that arms below start equal to those under the root and
    # fresh ones come up
    rng = random.Random(0)
    search = make_search("toa", NAMES[:2], 80, width=4, alpha=2.0, tau=1.0)
    plays = play_out(search, lambda index, action: -3.0 if action.refs else rng.gauss(1, 1))
    fresh = [p.action for p in plays if p.action.parent is not None and not p.action.refs]
    assert fresh
    assert all(action.kind == "answer" and action.depth > 0 for action in fresh)


@given(k=st.integers(1, 4), in_flight=st.integers(2, 30), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_plays_in_flight_spread_over_the_agents(k: int, in_flight: int, seed: int) -> None:
    search = make_search("toa", NAMES[:k], 60, width=20)
    asked = search.ask(in_flight)
    assert [action.depth for _, action in asked] == [0] * min(in_flight, 20)
    counts = Counter(action.agent for _, action in asked)
    assert max(counts.values()) - min(counts[agent] for agent in NAMES[:k]) <= 1


def test_a_play_costs_as_many_steps_in_a_large_tree_as_in_a_small_one() -> None:
    """Counted in function calls, not in seconds."""
    rng = random.Random(0)
    search = make_search("toa", NAMES[:4], 2_000, width=667, alpha=0.01, tau=0.1)
    calls, per_play = 0, []

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    for _ in range(2_000):
        before = calls
        sys.setprofile(count)
        try:
            ((index, _),) = search.ask()
            search.tell(index, rng.gauss(0.1, 0.1))
        finally:
            sys.setprofile(None)
        per_play.append(calls - before)
    # by depth: plays at depth d pass d levels, however many responses there are
    assert max(per_play) < 400
    assert sum(per_play[1_900:]) < 2 * sum(per_play[1_000:1_100])
    assert sum(per_play[600:660]) <= 1.1 * sum(per_play[60:120])
