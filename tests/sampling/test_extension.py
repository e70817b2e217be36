"""A run grows in its journal: more prompts, a larger budget, further agents."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import EchoAgent, TextReward, killed_at
from tests.own_parts import load_example
from tests.search.driver import gauss, play_out
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.sampling.extension import Extend
from toa_trl.search import SEARCHES, first_difference, make_search
from toa_trl.types import Completion, Message, Play, Sampling

NAMES = tuple("abcd")
PROMPTS = ["One?", "Two?", "Three?"]
searches = pytest.mark.parametrize("search", [*SEARCHES, load_example("Search")])


class Killed(BaseException):
    """Ends a run as a kill would."""


class Dying(EchoAgent):
    """Dies at a given call; its class is not part of what is compared."""

    identity = "echo"
    dies_at: int | None = None

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        if len(self.asked) == self.dies_at:
            raise Killed
        return await super().generate(messages, sampling=sampling, seed=seed)


def make(name: str, num_agents: int, budget: int, seed: int = 0) -> Any:
    return make_search(name, NAMES[:num_agents], budget, seed)


@searches
@given(
    num_agents=st.integers(1, 3),
    added=st.integers(0, 1),
    budget=st.integers(1, 20),
    more=st.integers(0, 20),
    cut=st.integers(0, 40),
    in_flight=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_a_search_continues_from_the_plays_of_a_smaller_one(
    search: str,
    num_agents: int,
    added: int,
    budget: int,
    more: int,
    cut: int,
    in_flight: int,
    seed: int,
) -> None:
    """Earlier plays stay, the new budget is spent exactly, and a kill changes nothing."""
    small = play_out(make(search, num_agents, budget, seed), gauss(seed), in_flight=in_flight)

    def grown(plays: list[Play], max_plays: int | None = None) -> list[Play]:
        larger = make(search, num_agents + added, budget + more, seed)
        larger.restore(plays)
        return play_out(larger, gauss(seed), recorded=plays, max_plays=max_plays)

    whole = grown(small)
    assert whole[: len(small)] == small
    assert sorted(play.index for play in whole) == list(range(budget + more))
    if cut < more:  # killed after that many further plays, and resumed
        assert grown(grown(small, max_plays=cut) if cut else small) == whole


@pytest.mark.parametrize(
    ("search", "params", "exact"),
    [
        ("best_of_n", {}, True),
        ("parallel", {}, True),
        ("sequential", {}, True),
        ("moa", {}, True),
        ("toa", {"width": 4}, True),
        ("toa", {}, False),
        ("prs", {}, False),
        (load_example("Search"), {}, True),
    ],
)
def test_which_searches_continue_exactly_with_a_larger_budget(
    tmp_path: Path, search: str, params: dict[str, Any], exact: bool
) -> None:
    given = {"search": search, "search_params": params}
    fresh = rows(sample(None, PROMPTS, budget=24, **given))
    sample(tmp_path, PROMPTS, budget=12, **given)
    if exact:
        assert rows(sample(tmp_path, PROMPTS, budget=24, extend=True, **given)) == fresh
        return
    before = rows(Rollouts.load(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot continue exactly.*--extend given") as error:
        sample(tmp_path, PROMPTS, budget=24, extend=True, **given)
    assert ("width follows from the budget (12 -> 24): 4 -> 8" in str(error.value)) == (
        search == "toa"
    )
    assert ("--extend keep_width" in str(error.value)) == (search == "toa")
    assert "\n" not in str(error.value)
    assert rows(Rollouts.load(tmp_path)) == before


def sample(run_dir: Path | None, prompts: Sequence[Any], **changes: Any) -> Rollouts:
    """Sample, and close the journal of a run on disk."""
    extend: Extend = changes.pop("extend", False)
    given = {
        "agents": [Dying("a"), Dying("b")],
        "reward_model": TextReward(),
        "search": "best_of_n",
        "budget": 6,
        "progress": False,
        "prompts_in_flight": 1,
        **changes,
    }
    rollouts = TOASampler(**given).sample(prompts, run_dir, extend=extend)
    if run_dir is not None:
        rollouts._journal.close()
        return Rollouts.load(run_dir)
    return rollouts


def rows(rollouts: Rollouts) -> list[tuple[str, Play]]:
    return [(rollout.prompt.id, play) for rollout in rollouts for play in rollout.plays]


def agents(*names: str, dies_at: int | None = None) -> list[Dying]:
    made = [Dying(name) for name in names]
    for agent in made:
        agent.dies_at = dies_at
    return made


GROWN: list[tuple[dict[str, Any], dict[str, Any], Sequence[str]]] = [
    ({"search": "toa", "search_params": {"width": 4}}, {"budget": 12}, PROMPTS),
    ({"search": "toa"}, {"budget": 12, "extend": "keep_width"}, PROMPTS),
    ({"search": "toa"}, {"budget": 12, "extend": "given"}, PROMPTS),
    ({"search": "toa"}, {}, [*PROMPTS, "Four?"]),
    ({"search": "prs"}, {"budget": 9, "extend": "given"}, [*PROMPTS, "Four?"]),
    ({"search": "parallel"}, {"agents": "abc", "budget": 12}, PROMPTS),
    ({"search": "toa", "search_params": {"width": 4}}, {"agents": "abc", "budget": 9}, PROMPTS),
]


@pytest.mark.parametrize(("given", "growth", "prompts"), GROWN)
def test_a_run_grows_and_a_kill_meanwhile_changes_nothing(
    tmp_path: Path, given: dict[str, Any], growth: dict[str, Any], prompts: Sequence[str]
) -> None:
    growth = {"extend": True, **given, **growth}
    names = growth.pop("agents", "ab")
    for folder in ("whole", "killed"):
        sample(tmp_path / folder, PROMPTS, **given)
    paid = rows(Rollouts.load(tmp_path / "whole"))

    def grow(folder: str, dies_at: int | None = None) -> Rollouts:
        return sample(
            tmp_path / folder, prompts, **{**growth, "agents": agents(*names, dies_at=dies_at)}
        )

    whole = grow("whole")
    assert [row for row in rows(whole) if row in paid] == paid
    assert whole.unfinished == 0
    assert whole.identity["budget"] == growth.get("budget", 6)
    with pytest.raises((Killed, BaseExceptionGroup)):
        grow("killed", dies_at=1)
    assert len(paid) < len(rows(Rollouts.load(tmp_path / "killed"))) < len(rows(whole))
    assert rows(grow("killed")) == rows(whole)
    if growth["extend"] == "keep_width":
        assert all("width" not in key for key in given.get("search_params", {}))
        recorded = yaml.safe_load((tmp_path / "whole/run.yaml").read_text())
        assert recorded["search_params"] == {"width": 2}
    if len(names) == 3:
        assert "c" in {play.action.agent for _, play in rows(whole)}


@pytest.mark.parametrize(
    ("changes", "prompts", "named"),
    [
        ({"budget": 5}, PROMPTS, "budget: must be >= 6"),
        ({"seed": 1}, PROMPTS, "seed: 0 -> 1"),
        ({"sampling": {"temperature": 0.1}}, PROMPTS, "sampling.temperature: 0.7 -> 0.1"),
        ({"search": "parallel"}, PROMPTS, "search: "),
        ({"search_params": {"agent": "b"}}, PROMPTS, "search_params.agent"),
        ({"agents": agents("b", "a")}, PROMPTS, "agents: the first must be a, b"),
        ({"agents": agents("a")}, PROMPTS, "agents: the first must be a, b"),
        ({"agents": agents("c", "a", "b")}, PROMPTS, "agents: the first must be a, b"),
        ({"agents": [EchoAgent("a"), Dying("b")]}, PROMPTS, "agents.a"),
        ({}, PROMPTS[:2], "the first 3 prompts"),
        ({}, ["Zero?", *PROMPTS], "the first 3 prompts"),
        ({"extend": "keep_width", "budget": 9}, PROMPTS, "has no width"),
        ({"extend": "somehow"}, PROMPTS, "extend"),
    ],
)
def test_what_is_no_growth_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], prompts: Sequence[str], named: str
) -> None:
    before = rows(sample(tmp_path, PROMPTS))
    with pytest.raises(ConfigError, match=named) as error:
        sample(tmp_path, prompts, **{"extend": True, **changes})
    assert "\n" not in str(error.value)
    assert rows(Rollouts.load(tmp_path)) == before


def test_without_extend_growth_is_refused_and_the_option_named(tmp_path: Path) -> None:
    sample(tmp_path, PROMPTS)
    for changes, prompts in (({"budget": 7}, PROMPTS), ({}, [*PROMPTS, "Four?"])):
        with pytest.raises(ConfigError, match="let the run grow with --extend"):
            sample(tmp_path, prompts, **changes)


def test_a_folder_without_a_run_cannot_grow(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        sample(tmp_path / "none", PROMPTS, extend=True)


def test_extending_by_nothing_changes_nothing(tmp_path: Path) -> None:
    before = rows(sample(tmp_path, PROMPTS))
    assert rows(sample(tmp_path, PROMPTS, extend=True)) == before
    assert Rollouts.load(tmp_path)._journal.extensions == []


def test_an_agent_without_budget_left_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sample(tmp_path, PROMPTS)
    with caplog.at_level(logging.WARNING):
        sample(tmp_path, PROMPTS, agents=agents("a", "b", "c"), extend=True)
    assert "chosen without the agents c" in caplog.text
    assert "raise the budget" in caplog.text
    assert "is not known" not in caplog.text  # of the content of an agent that is new


def test_run_yaml_lists_the_extensions(tmp_path: Path) -> None:
    sample(tmp_path, PROMPTS)
    sample(tmp_path, [*PROMPTS, "Four?"], budget=8, extend=True)
    recorded = yaml.safe_load((tmp_path / "run.yaml").read_text())
    (extension,) = recorded["extended"]
    assert extension["changes"][:2] == ["budget: 6 -> 8", "prompts.number: 3 -> 4"]


def test_the_first_difference_of_two_searches() -> None:
    def searching(budget: int) -> Any:
        return lambda: make_search("prs", ["a"], budget)

    assert first_difference(searching(8), searching(8), 8) is None
    assert first_difference(searching(8), searching(12), 8) == 4


def test_killed_at_any_file_operation_an_extension_can_be_repeated(tmp_path: Path) -> None:
    before, whole = tmp_path / "before", tmp_path / "whole"
    sample(before, PROMPTS[:2])
    shutil.copytree(before, whole)

    def grow(folder: Path) -> Rollouts:
        return sample(folder, PROMPTS, budget=7, extend=True)

    expected = rows(grow(whole))
    number, ended = 0, False
    while not ended:
        number += 1
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        ended = not killed_at(number, folder, partial(grow, folder))
        assert rows(grow(folder)) == expected
        assert yaml.safe_load((folder / "run.yaml").read_text())["budget"] == 7
    assert number > 5
