"""The baselines play exactly what the table of toa-algorithm.md says."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.driver import gauss, play_out
from toa_trl.search import make_search
from toa_trl.types import Action, Play

NAMES = tuple("abcdefgh")


def run(name: str, k: int, budget: int, seed: int = 0, **params: object) -> list[Play]:
    return play_out(make_search(name, NAMES[:k], budget, seed, **params), gauss(seed))


def rounds(plays: list[Play], size: int) -> list[list[Play]]:
    return [plays[at : at + size] for at in range(0, len(plays), size)]


@pytest.mark.parametrize("agent", [None, "a", "c"])
def test_best_of_n_is_n_answers_of_one_agent(agent: str | None) -> None:
    params: dict[str, Any] = {} if agent is None else {"agent": agent}
    assert [p.action for p in run("best_of_n", 3, 9, **params)] == [Action(agent or "a")] * 9


@given(k=st.integers(1, 6), budget=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_parallel_asks_every_agent_once_a_round(k: int, budget: int, seed: int) -> None:
    *whole, last = rounds(run("parallel", k, budget, seed), k)
    assert all(p.action == Action(p.action.agent) for each in [*whole, last] for p in each)
    assert all(sorted(p.action.agent for p in each) == list(NAMES[:k]) for each in whole)
    assert len({p.action.agent for p in last}) == len(last)


@pytest.mark.parametrize("name", ["parallel", "sequential"])
def test_the_order_of_agents_is_drawn_anew_each_round_and_by_the_seed(name: str) -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        return [tuple(p.action.agent for p in each) for each in rounds(run(name, 4, 80, seed), 4)]

    assert len(set(orders(0))) > 5
    assert orders(0) != orders(1)


@given(budget=st.integers(2, 40), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_prs_refines_the_best_answer_of_its_first_half(budget: int, seed: int) -> None:
    plays = run("prs", 3, budget, seed, agent="b")
    answers, refinements = plays[: budget // 2], plays[budget // 2 :]
    assert all(p.action == Action("b") for p in answers)
    best = max(answers, key=lambda p: p.reward or 0.0).index
    assert all(p.action == Action("b", "refine", (best,), best, 1) for p in refinements)


def test_prs_of_one_play_is_an_answer() -> None:
    assert [p.action for p in run("prs", 2, 1)] == [Action("a")]


def test_prs_takes_the_first_of_equal_answers() -> None:
    plays = play_out(make_search("prs", ["a"], 8), lambda index, action: 1.0)
    assert {p.action.parent for p in plays[4:]} == {0}


@given(k=st.integers(1, 6), budget=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_sequential_is_chains_through_all_agents(k: int, budget: int, seed: int) -> None:
    for chain in rounds(run("sequential", k, budget, seed), k):
        first, *others = chain
        assert first.action == Action(first.action.agent)
        for depth, (before, p) in enumerate(zip(chain, others, strict=False), 1):
            assert p.action == Action(
                p.action.agent, "refine", (before.index,), before.index, depth
            )
        assert len({p.action.agent for p in chain}) == len(chain)
        assert len(chain) == k or chain[-1].index == budget - 1  # only the last round is cut short


@given(
    k=st.integers(1, 5),
    layers=st.integers(1, 4),
    budget=st.integers(1, 60),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_moa_aggregates_exactly_the_layer_before(
    k: int, layers: int, budget: int, seed: int
) -> None:
    plays = run("moa", k, budget, seed, num_layers=layers)
    for at, layer in enumerate(rounds(plays, k)):
        assert [p.action.agent for p in layer] == list(NAMES[: len(layer)])
        before = plays[(at - 1) * k : at * k]
        for p in layer:
            if at % layers == 0:
                assert p.action == Action(p.action.agent)
            else:
                assert p.action.kind == "aggregate"
                assert sorted(p.action.refs) == [b.index for b in before]
                assert p.action.parent == max(before, key=lambda b: b.reward or 0.0).index
                assert p.action.depth == at % layers


def test_moa_shows_the_drafts_in_an_order_drawn_for_each_aggregation() -> None:
    aggregations = [p.action.refs for p in run("moa", 4, 64) if p.action.refs]
    drawn = Counter(tuple(ref % 4 for ref in refs) for refs in aggregations)
    assert len(aggregations) == 48
    assert len(drawn) > 12


def test_moa_has_four_layers_unless_told_otherwise() -> None:
    assert [p.action.depth for p in run("moa", 2, 10)] == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]


def test_rounds_do_not_wait_for_one_another() -> None:
    sequential = make_search("sequential", ["a", "b", "c"], 9)
    assert [action.kind for _, action in sequential.ask(9)] == ["answer"] * 3
    assert sequential.ask(9) == []
    moa = make_search("moa", ["a", "b"], 8, num_layers=2)
    assert [action.kind for _, action in moa.ask(8)] == ["answer"] * 4
    moa.tell(0, 0.1)
    assert moa.ask(8) == []
    moa.tell(1, 0.2)
    assert [(action.kind, sorted(action.refs)) for _, action in moa.ask(8)] == [
        ("aggregate", [0, 1])
    ] * 2


def test_a_failed_slot_is_played_again_under_a_new_index() -> None:
    search = make_search("sequential", ["a", "b"], 4, 0)
    ((first, action),) = search.ask(1)
    search.fail(first)
    ((again, repeated),) = search.ask(1)
    assert (again, repeated) == (1, action)
    search.tell(again, 0.3)
    ((_, refinement),) = search.ask(1)
    assert refinement.refs == (1,)


@pytest.mark.parametrize("name", ["parallel", "sequential", "prs", "moa"])
@given(
    k=st.integers(1, 4),
    budget=st.integers(2, 24),
    in_flight=st.integers(1, 6),
    cut=st.integers(1, 24),
    seed=st.integers(0, 9999),
    lost=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=150)
def test_whatever_failed_or_was_lost_a_restored_run_plays_what_is_planned(
    name: str, k: int, budget: int, in_flight: int, cut: int, seed: int, lost: float
) -> None:
    def layers(plays: list[Play]) -> Counter[tuple[str, int]]:
        return Counter((p.action.kind, p.action.depth) for p in plays if p.reward is not None)

    rng = random.Random(seed)
    plays = play_out(
        make_search(name, NAMES[:k], budget, seed),
        gauss(seed),
        in_flight=in_flight,
        order=rng,
        fails=lambda index, action: rng.random() < 0.4,
        max_plays=cut,
    )
    shown = {ref for p in plays for ref in p.action.refs}
    kept = [p for p in plays if p.index in shown or rng.random() >= lost]
    restored = make_search(name, NAMES[:k], budget, seed)
    restored.restore(kept)
    whole = play_out(restored, gauss(seed), recorded=kept)
    assert layers(whole) == layers(run(name, k, budget, seed))
