"""TOA with `cost`: the gain of a play is divided by what its agent costs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.search.driver import record
from toa_trl.errors import ConfigError
from toa_trl.search import Search, make_search
from toa_trl.types import Action, Play

AGENTS = ("a", "b", "c", "d")


def search_of(**params: Any) -> Search:
    given: dict[str, Any] = {"width": "anytime", "alpha": 0.05, "tau": 1.0, **params}
    return make_search("toa", AGENTS, 48, **given)


def cost_of(costs: Mapping[str, float], play: Play) -> float:
    return costs[play.action.agent]


def play_on(search: Search, costs: Mapping[str, float], seed: object) -> list[tuple[int, Action]]:
    """Play to the end; the reward of a play depends on its index alone. Every tenth play fails."""
    asked = []
    while not search.done:
        ((index, action),) = search.ask()
        asked.append((index, action))
        rng = random.Random(f"{seed}/{index}")
        if rng.random() < 0.1:
            search.fail(index)
        else:
            search.tell(index, rng.gauss(0, 1), costs[action.agent])
    return asked


@given(
    seed=st.integers(0, 10**6),
    cost=st.floats(0, 1e12),
    width=st.sampled_from(["anytime", 16, None]),
)
@settings(max_examples=10, phases=[Phase.generate])
def test_equal_costs_change_nothing(seed: int, cost: float, width: Any) -> None:
    costs = dict.fromkeys(AGENTS, cost)
    weighed = play_on(search_of(cost="flops", width=width), costs, seed)
    assert weighed == play_on(search_of(width=width), costs, seed)


@pytest.mark.parametrize("width", ["anytime", 16])
@pytest.mark.parametrize("dear", AGENTS)
@pytest.mark.parametrize("price", [4.0, 1e9])
def test_a_dearer_agent_of_equal_quality_gets_fewer_plays(
    width: Any, dear: str, price: float
) -> None:
    counts = {"plays": Counter[str](), "price": Counter[str]()}
    for cost, count in counts.items():
        for seed in range(10):
            costs = {**dict.fromkeys(AGENTS, 1.0), dear: price}
            asked = play_on(search_of(cost=cost, width=width), costs, seed)
            count.update(action.agent for _, action in asked)
    assert counts["price"][dear] < 0.85 * counts["plays"][dear]


def test_a_dear_agent_that_gains_more_is_still_asked() -> None:
    counts = Counter[str]()
    search = search_of(cost="flops", tau=10.0)
    best = 0.0
    while not search.done:
        ((index, action),) = search.ask()
        counts[action.agent] += 1
        best += action.agent == "d"  # nobody else improves anything
        search.tell(index, best if action.agent == "d" else -1.0, 4.0 if action.agent == "d" else 1)
    assert counts["d"] > 2


def test_where_refinements_gain_a_dear_agent_is_asked_before_a_cheap_one_that_spoils() -> None:
    search = make_search("toa", ["a", "d"], 24, width="anytime", alpha=0.0, tau=1.0, cost="flops")
    agents: dict[int, list[str]] = {}  # draft -> agents that refined it
    while not search.done:
        ((index, action),) = search.ask()
        reward = 0.0
        if action.parent is not None:
            agents.setdefault(action.parent, []).append(action.agent)
            reward = search.rewards[action.parent] + (0.5 if action.agent == "d" else -0.5)
        search.tell(index, reward, 4.0 if action.agent == "d" else 1.0)
    drafts = [names for names in agents.values() if len(names) > 1]
    assert len(drafts) > 5
    assert all(names[:2] == ["a", "d"] for names in drafts)


def test_agents_that_cost_nothing_are_the_cheapest() -> None:
    asked = play_on(search_of(cost="price"), {"a": 0.0, "b": 0.0, "c": 1.0, "d": 2.0}, 0)
    counts = Counter(action.agent for _, action in asked)
    assert counts["c"] + counts["d"] < counts["a"] + counts["b"]


@given(seed=st.integers(0, 10**6), kept=st.integers(1, 60))
@settings(max_examples=10, phases=[Phase.generate])
def test_a_restored_search_continues_as_if_it_had_never_stopped(seed: int, kept: int) -> None:
    costs = {"a": 1.0, "b": 4.0, "c": 0.5, "d": 4.0}
    whole = search_of(cost="flops")
    asked = play_on(whole, costs, seed)
    recorded = [record(index, action, whole.rewards.get(index)) for index, action in asked[:kept]]
    restored = search_of(cost="flops")
    restored.restore(recorded, lambda play: cost_of(costs, play))
    assert asked[:kept] + play_on(restored, costs, seed) == asked


def test_another_cost_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"search_params\.cost: must be one of .*'flops'"
    ) as error:
        search_of(cost="flop")
    assert "\n" not in str(error.value)
