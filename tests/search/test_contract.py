"""What every search of the registry does, whichever it is."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.own_parts import load_example
from tests.search.driver import choices, gauss, play_out, record
from toa_trl.errors import ConfigError, SearchError
from toa_trl.search import SEARCHES, Search, first_difference, make_search
from toa_trl.search.base import MAX_FAILURES
from toa_trl.types import Action, Play

NAMES = tuple("abcdefgh")
searches = pytest.mark.parametrize("name", [*SEARCHES, load_example("Search")])
num_agents = st.integers(1, 5)
budgets = st.integers(1, 40)
seeds = st.integers(0, 10_000)
rates = st.sampled_from([0.0, 0.1, 0.4])


def make(name: str, k: int, budget: int, seed: int = 0) -> Search:
    # a small width, so that trees grow deep within a small budget
    params = {"width": max(k, budget // 4), "tau": 0.5} if name == "toa" else {}
    return make_search(name, NAMES[:k], budget, seed, **params)


def failing(rate: float, seed: object) -> Callable[[int, Action], bool]:
    return lambda index, action: random.Random(f"fails/{seed}/{index}").random() < rate


def state(search: Search) -> str:
    """Everything the search knows, to compare before and after.

    TOA's nodes have no __dict__, and form cycles.
    """
    seen: dict[int, int] = {}

    def show(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ",".join(f"{show(k)}:{show(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + ",".join(map(show, value)) + "]"
        fields = getattr(type(value), "__dataclass_fields__", None)
        if fields is None or isinstance(value, Action):
            return repr(value)
        if id(value) in seen:
            return f"#{seen[id(value)]}"
        seen[id(value)] = len(seen)
        return type(value).__name__ + show([getattr(value, field) for field in fields])

    return show({key: value for key, value in vars(search).items() if not callable(value)})


@searches
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("budget", [1, 2, 7, 30])
@pytest.mark.parametrize("in_flight", [1, 4, 100])
def test_spends_exactly_its_budget(name: str, k: int, budget: int, in_flight: int) -> None:
    if name == "toa" and budget < k:
        budget = k
    search = make(name, k, budget)
    plays = play_out(search, gauss(), in_flight=in_flight)
    assert sorted(p.index for p in plays) == list(range(budget))
    assert search.done
    assert search.ask(10) == []


@searches
@given(k=num_agents, budget=budgets, in_flight=st.integers(1, 12), seed=seeds, rate=rates)
@settings(max_examples=40)
def test_any_order_of_tells_and_failures(
    name: str, k: int, budget: int, in_flight: int, seed: int, rate: float
) -> None:
    search = make(name, k, budget, seed)
    plays = play_out(
        search,
        gauss(seed),
        in_flight=in_flight,
        order=random.Random(seed),
        fails=failing(rate, seed),
    )
    scored = [p for p in plays if p.reward is not None]
    assert len(scored) == budget or search.all_failing
    assert sorted(p.index for p in plays)[-1] < len(plays) + in_flight
    if search.done:
        assert sorted(p.index for p in plays) == list(range(len(plays)))


@searches
@given(budget=budgets, seed=seeds)
@settings(max_examples=30)
def test_one_agent_goes_on_through_failures_as_long_as_it_is_asked(
    name: str, budget: int, seed: int
) -> None:
    search = make(name, 1, budget, seed)
    fails, rng, scored = 0, random.Random(seed), 0
    while not search.done:
        ((index, _),) = search.ask()
        assert index == fails + scored
        if rng.random() < 0.5:
            search.fail(index)
            fails += 1
        else:
            search.tell(index, rng.random())
            scored += 1
    assert scored == budget


@searches
@given(k=st.integers(2, 5), budget=budgets, in_flight=st.integers(1, 6), data=st.data(), seed=seeds)
@settings(max_examples=40)
def test_an_agent_that_always_fails_does_not_stop_the_others(
    name: str, k: int, budget: int, in_flight: int, data: st.DataObject, seed: int
) -> None:
    dead = data.draw(st.sampled_from(NAMES[:k]))
    search = make(name, k, budget, seed)
    plays = play_out(
        search,
        gauss(seed),
        in_flight=in_flight,
        order=random.Random(seed),
        fails=lambda index, action: action.agent == dead,
    )
    others = {p.action.agent for p in plays} - {dead}
    if search.all_failing and not search.done:
        assert not others, "given up although another agent worked"
    else:
        assert search.done
        # it is passed over after three failures in a row; those in flight by then may fail too
        assert sum(p.action.agent == dead for p in plays) <= 3 + in_flight


@searches
@given(k=num_agents, budget=budgets, in_flight=st.integers(1, 6), seed=seeds)
@settings(max_examples=25)
def test_same_seed_same_choices(name: str, k: int, budget: int, in_flight: int, seed: int) -> None:
    def run() -> list[tuple[int, Action]]:
        order = random.Random(seed)
        search = make(name, k, budget, seed)
        return choices(
            play_out(
                search, gauss(seed), in_flight=in_flight, order=order, fails=failing(0.1, seed)
            )
        )

    state_before = random.getstate()
    first = run()
    random.random()  # a search that drew from the global generator would now draw something else
    assert run() == first
    random.setstate(state_before)


@searches
def test_leaves_the_global_generator_alone(name: str) -> None:
    before = random.getstate()
    play_out(make(name, 3, 20, 5), gauss())
    assert random.getstate() == before


@searches
@given(k=num_agents, budget=budgets, cut=st.integers(0, 60), seed=seeds, rate=rates)
@settings(max_examples=50)
def test_restored_one_at_a_time_it_makes_the_same_choices(
    name: str, k: int, budget: int, cut: int, seed: int, rate: float
) -> None:
    fails = failing(rate, seed)
    whole = play_out(make(name, k, budget, seed), gauss(seed), fails=fails)
    before = make(name, k, budget, seed)
    prefix = play_out(before, gauss(seed), fails=fails, max_plays=min(cut, len(whole)))
    assert prefix == whole[: len(prefix)]
    assume(not before.all_failing)  # a search that was given up gives every agent another chance
    restored = make(name, k, budget, seed)
    restored.restore(prefix)
    assert restored.done == before.done
    assert play_out(restored, gauss(seed), fails=fails, recorded=prefix) == whole


@searches
@given(
    k=num_agents,
    budget=budgets,
    in_flight=st.integers(2, 8),
    cuts=st.lists(st.integers(1, 15), min_size=1, max_size=4),
    seed=seeds,
    rate=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=50)
def test_killed_again_and_again_with_plays_in_flight(
    name: str, k: int, budget: int, in_flight: int, cuts: list[int], seed: int, rate: float
) -> None:
    order, fails = random.Random(seed), failing(rate, seed)
    plays: list[Play] = []
    for cut in [*cuts, None]:
        search = make(name, k, budget, seed)
        search.restore(reversed(plays))  # in any order
        gaps = sorted(
            set(range(max((p.index for p in plays), default=-1) + 1)) - {p.index for p in plays}
        )
        probe = copy.deepcopy(search)
        asked = [index for index, _ in probe.ask(in_flight)]
        expected = gaps + list(range(len(gaps) + len(plays), len(gaps) + len(plays) + in_flight))
        assert asked == expected[: len(asked)], "what was in flight is asked for first"
        plays = play_out(
            search,
            gauss(seed),
            in_flight=in_flight,
            order=order,
            fails=fails,
            recorded=plays,
            max_plays=cut,
        )
    if search.done:
        assert sum(p.reward is not None for p in plays) == budget
        assert sorted(p.index for p in plays) == list(range(len(plays)))
    else:
        assert search.all_failing


@searches
def test_long_runs_with_many_plays_in_flight_are_restored(name: str) -> None:
    """Where the work of a play grows with the square of the budget, this does not end."""
    plays = play_out(make(name, 4, 2000), gauss(), in_flight=64)
    restored = make(name, 4, 2000)
    restored.restore(plays[:-100])
    again = play_out(restored, gauss(), in_flight=64, recorded=plays[:-100])
    assert sorted(play.index for play in again) == sorted(play.index for play in plays)


ANYTIME: dict[str, dict[str, Any]] = {
    **{name: {} for name in SEARCHES if name not in ("prs", "toa")},  # these two use the budget
    "toa": {"width": "anytime"},
}


@pytest.mark.parametrize("name", ANYTIME)
@given(k=num_agents, budget=budgets, more=st.integers(1, 60), seed=seeds, rate=rates)
@settings(max_examples=30)
def test_the_first_plays_of_an_anytime_search_do_not_depend_on_the_budget(
    name: str, k: int, budget: int, more: int, seed: int, rate: float
) -> None:
    def plays(budget: int, max_plays: int | None = None) -> list[Play]:
        search = make_search(name, NAMES[:k], budget, seed, **ANYTIME[name])
        fails = failing(rate, seed)
        return play_out(search, gauss(seed), fails=fails, max_plays=max_plays)

    first = plays(budget)
    assert plays(budget + more, len(first)) == first


@pytest.mark.parametrize("name", ANYTIME)
def test_the_choices_of_an_anytime_search_differ_with_no_budget(name: str) -> None:
    def search(budget: int) -> Search:
        return make_search(name, NAMES[:2], budget, **ANYTIME[name])

    assert first_difference(lambda: search(8), lambda: search(40), 8) is None


@pytest.mark.parametrize("name", ["prs", "toa"])
def test_a_search_that_uses_the_budget_chooses_by_it(name: str) -> None:
    def search(budget: int) -> Search:
        return make_search(name, NAMES[:2], budget)

    assert first_difference(lambda: search(8), lambda: search(40), 8) is not None


@searches
def test_a_gap_is_asked_for_again_under_its_own_index(name: str) -> None:
    search = make(name, 3, 12)
    asked = search.ask(3)
    kept = [asked[0], asked[2]]
    restored = make(name, 3, 12)
    restored.restore(record(index, action, 0.5) for index, action in kept)
    assert restored.ask(1)[0][0] == 1
    assert not restored.done


@searches
@given(k=num_agents, budget=budgets, seed=seeds, rate=st.sampled_from([0.3, 0.7]))
@settings(max_examples=40)
def test_a_play_that_was_withdrawn_leaves_no_trace(
    name: str, k: int, budget: int, seed: int, rate: float
) -> None:
    assume(name != "toa" or budget >= k)
    plain = choices(play_out(make(name, k, budget), gauss(seed)))
    search, rng, played = make(name, k, budget), random.Random(seed), []
    while not search.done:
        ((index, action),) = search.ask()
        if rng.random() < rate:
            search.withdraw(index)
            continue
        played.append((index, action))
        search.tell(index, gauss(seed)(index, action))
    assert played == plain
    with pytest.raises(SearchError):
        search.withdraw(0)


@searches
@given(k=st.integers(2, 5), budget=budgets, in_flight=st.integers(1, 6), seed=seeds)
@settings(max_examples=40)
def test_agents_that_are_away_are_not_asked_and_may_come_back(
    name: str, k: int, budget: int, in_flight: int, seed: int
) -> None:
    assume(name != "toa" or budget >= k)
    search, rng, scored = make(name, k, budget), random.Random(seed), 0
    running: dict[int, Action] = {}
    for step in range(20 * budget + 200):
        if search.done:
            break
        gone = rng.sample(NAMES[:k], rng.randrange(k + 1)) if step < 10 * budget else []
        search.away = frozenset(gone)
        asked = search.ask(in_flight - len(running))
        assert not {action.agent for _, action in asked} & search.away
        running.update(asked)
        for index in rng.sample(sorted(running), min(len(running), rng.randrange(1, 3))):
            action = running.pop(index)
            if action.agent in search.away:
                search.withdraw(index)
            elif rng.random() < 0.1:
                search.fail(index)
            else:
                search.tell(index, rng.random())
                scored += 1
    assert search.done or search.all_failing
    assert scored <= budget


@searches
def test_with_every_agent_away_nothing_is_asked(name: str) -> None:
    search = make(name, 3, 10)
    search.away = frozenset(NAMES[:3])
    assert search.ask(5) == []
    assert not search.done
    assert not search.all_failing
    search.away = frozenset()
    assert len(play_out(search, gauss())) == 10


@searches
def test_all_failing_where_all_that_are_there_keep_failing(name: str) -> None:
    search = make(name, 2, 6)
    search.away = frozenset("b")
    for _ in range(3):
        for index, action in search.ask():
            assert action.agent == "a"
            search.fail(index)
    assert search.all_failing
    search.away = frozenset()
    assert search.all_failing == (name in ("best_of_n", "prs"))  # these play one agent alone


@searches
def test_an_agent_that_comes_back_has_its_failures_forgiven(name: str) -> None:
    search = make(name, 1, 5)
    for _ in range(3):
        search.fail(search.ask()[0][0])
    assert search.all_failing
    search.away = frozenset("a")
    search.away = frozenset()
    assert not search.all_failing


@searches
@pytest.mark.parametrize("reward", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_no_number_is_refused_and_nothing_changes(
    name: str, reward: float
) -> None:
    search = make(name, 2, 8)
    play_out(search, gauss(), max_plays=3)
    ((index, _),) = search.ask(1)
    before = state(search)
    with pytest.raises(SearchError, match="finite"):
        search.tell(index, reward)
    assert state(search) == before
    search.tell(index, 0.5)  # it is still in flight
    assert state(search) != before


@searches
def test_told_twice_unknown_or_failed_plays_are_refused_and_nothing_changes(name: str) -> None:
    search = make(name, 2, 8)
    play_out(search, gauss(), max_plays=2)
    ((index, _),) = search.ask(1)
    search.fail(index)
    before = state(search)
    for play in (0, 1, index, index + 1, 99, -1):
        with pytest.raises(SearchError, match=str(play)):
            search.tell(play, 0.5)
        with pytest.raises(SearchError, match=str(play)):
            search.fail(play)
    assert state(search) == before


@searches
@given(rewards=st.lists(st.floats(-1e300, 1e300), min_size=20, max_size=20))
@settings(max_examples=20)
def test_rewards_may_be_any_finite_real(name: str, rewards: list[float]) -> None:
    search = make(name, 3, 20)
    play_out(search, lambda index, action: rewards[index], in_flight=2)
    assert search.done


@searches
def test_restore_refuses_what_cannot_have_happened(name: str) -> None:
    with pytest.raises(SearchError, match="play 0"):
        make(name, 2, 8).restore([record(0, Action("nobody"), 0.5)])
    with pytest.raises(SearchError, match="play 0"):
        make(name, 2, 8).restore([record(0, Action("a", "refine", (7,), 7, 1), 0.5)])
    asked = make(name, 2, 8)
    asked.ask()
    with pytest.raises(SearchError, match="fresh"):
        asked.restore([record(0, Action("a"), 0.5)])


@searches
def test_a_failed_play_costs_no_budget(name: str) -> None:
    search = make(name, 2, 4)
    ((first, action),) = search.ask(1)
    search.fail(first)
    plays = play_out(search, gauss(), recorded=[record(first, action, None)])
    assert [p.index for p in plays] == [0, 1, 2, 3, 4]
    assert sum(p.reward is not None for p in plays) == 4


@searches
def test_all_failing_only_when_every_agent_has_failed_three_times_in_a_row(name: str) -> None:
    search = make(name, 2, 8)
    failures = {"a": 0, "b": 0}
    for _ in range(20):
        if search.all_failing:
            break
        ((index, action),) = search.ask(1)
        search.fail(index)
        failures[action.agent] += 1
    assert search.all_failing
    assert all(count == 3 for count in failures.values() if count)
    ((index, _),) = search.ask(1)
    search.tell(index, 1.0)
    assert not search.all_failing


@searches
def test_mistakes_are_refused_by_name(name: str) -> None:
    for budget in (0, -3, 2.5, "8", True, None):
        with pytest.raises(ConfigError, match="budget"):
            make_search(name, ["a", "b"], budget)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="agents"):
        make_search(name, [], 8)
    with pytest.raises(ConfigError, match=r"agents.*'a'"):
        make_search(name, ["a", "b", "a"], 8)
    with pytest.raises(ConfigError, match=r"search_params: unknown key 'widht'"):
        make_search(name, ["a", "b"], 8, widht=3)


@searches
def test_the_name_of_one_agent_is_not_taken_for_a_list_of_letters(name: str) -> None:
    plays = play_out(make_search(name, "llama", 3), gauss())
    assert {play.action.agent for play in plays} == {"llama"}


def test_an_unknown_search_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown search 'mcts'.*best_of_n.*toa"):
        make_search("mcts", ["a"], 8)
    with pytest.raises(ConfigError, match="did you mean 'toa'"):
        make_search("tao", ["a"], 8)


def test_every_search_of_the_paper_is_there() -> None:
    assert {"best_of_n", "parallel", "prs", "sequential", "moa", "toa"} <= set(SEARCHES)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("toa", {"width": 1}),
        ("toa", {"width": 2.5}),
        ("toa", {"width": True}),
        ("toa", {"tau": 0}),
        ("toa", {"tau": -1.0}),
        ("toa", {"tau": float("nan")}),
        ("toa", {"tau": float("inf")}),
        ("toa", {"alpha": -0.1}),
        ("toa", {"alpha": float("nan")}),
        ("toa", {"top_k": 0}),
        ("toa", {"top_k": 1.5}),
        ("moa", {"num_layers": 0}),
        ("moa", {"num_layers": 2.0}),
        ("best_of_n", {"agent": "z"}),
        ("prs", {"agent": "z"}),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(params))):
        make_search(name, ["a", "b", "c"], 12, **params)


@pytest.mark.parametrize(
    ("name", "params"),
    [("toa", {"tau": "hot"}), ("toa", {"alpha": None}), ("toa", {"width": "many"})],
)
def test_parameters_of_another_type_are_refused_by_name(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(params))):
        make_search(name, ["a", "b", "c"], 12, **params)


def test_an_agent_that_succeeds_again_is_available_at_once() -> None:
    search = make_search("parallel", ["a", "b"], 40)
    asked = [index for index, action in search.ask(40) if action.agent == "a"]
    for play in asked[:MAX_FAILURES]:
        search.fail(play)
    assert search.available == ["b"]
    search.tell(asked[MAX_FAILURES], 0.5)
    assert search.available == ["a", "b"]


def test_a_restored_search_gives_failing_agents_all_their_attempts_again() -> None:
    failed = [Play(index, Action("a"), error="no answer") for index in range(MAX_FAILURES)]
    search = make_search("best_of_n", ["a"], 10)
    search.restore(failed)
    for attempt in range(MAX_FAILURES):
        assert not search.all_failing, attempt
        ((play, _),) = search.ask()
        search.fail(play)
    assert search.all_failing
