"""The examples of docs/own_parts.md are short and run, and entry points are found.

The contract tests of searches and agents run their examples too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.own_parts import examples, load_example
from toa_trl import TOASampler
from toa_trl.agents import ENGINES, make_agent
from toa_trl.errors import ConfigError
from toa_trl.rewards.base import RewardModel
from toa_trl.search import SEARCHES, make_search
from toa_trl.types import Prompt
from toa_trl.utils import registry


class ByLength(RewardModel):
    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(response)) for response in responses]


@pytest.mark.parametrize("section", examples())
def test_examples_have_at_most_15_lines(section: str) -> None:
    _, code = examples()[section]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_search_and_agent_have_examples() -> None:
    assert {"Search", "Agent"} <= examples().keys()


def test_a_run_with_a_search_and_an_agent_by_path(tmp_path: Path) -> None:
    sampler = TOASampler(
        agents=[{"name": "mine", "engine": load_example("Agent"), "suffix": "?"}],
        reward_model=ByLength(),
        search=load_example("Search"),
        search_params={"every": 2},
        budget=4,
        progress=False,
    )
    rollouts = sampler.sample([Prompt("p", "Why is that")], output_dir=tmp_path)
    (rollout,) = rollouts
    assert [play.action.kind for play in rollout.plays] == ["answer", "answer", "refine", "answer"]
    assert all(play.completion and play.completion.text.endswith("?") for play in rollout.plays)


def test_a_search_is_accepted_as_a_class_and_its_parameters_are_checked() -> None:
    path = load_example("Search")
    factory = SEARCHES.load(path)
    assert type(make_search(factory, ["a"], 3)) is factory
    with pytest.raises(ConfigError, match=r"search_params\.every: must be >= 1, not 0"):
        make_search(path, ["a"], 3, every=0)
    with pytest.raises(ConfigError, match="did you mean 'every'"):
        make_search(path, ["a"], 3, evry=2)


def test_entry_points_of_other_packages_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str) -> list[EntryPoint]:
        sections = {"toa_trl.searches": "Search", "toa_trl.agents": "Agent"}
        return [EntryPoint("mine", load_example(sections[group]), group)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    for found in (SEARCHES, ENGINES):
        known: dict[str, Any] = found.__dict__
        monkeypatch.delitem(known, "targets", raising=False)
        assert "mine" in found
    try:
        assert type(make_search("mine", ["a"], 3)).__name__ == "MySearch"
        assert type(make_agent({"name": "it", "engine": "mine"})).__name__ == "MyAgent"
    finally:
        for found in (SEARCHES, ENGINES):
            found.__dict__.pop("targets", None)
