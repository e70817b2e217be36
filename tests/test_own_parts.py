"""The examples of docs/own_parts.md are short and run, and entry points are found.

The contract tests of searches, agents, rewards and tasks run their examples too.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.own_parts import DOCUMENT, examples, load_example
from toa_trl import TOASampler
from toa_trl.agents import ENGINES, make_agent
from toa_trl.errors import ConfigError
from toa_trl.rewards import KINDS, make_reward
from toa_trl.rewards.base import RewardModel
from toa_trl.search import SEARCHES, make_search
from toa_trl.tasks import TASKS, make_task
from toa_trl.types import Prompt
from toa_trl.utils import registry
from toa_trl.utils.registry import Registry, load_object


class ByLength(RewardModel):
    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(response)) for response in responses]


@pytest.mark.parametrize("section", examples())
def test_examples_have_at_most_15_lines(section: str) -> None:
    _, code = examples()[section]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_every_part_has_an_example() -> None:
    assert examples().keys() == {"Search", "Agent", "Reward", "Task"}


def test_a_run_with_a_search_and_an_agent_by_path(tmp_path: Path) -> None:
    sampler = TOASampler(
        agents=[{"name": "mine", "engine": load_example("Agent"), "suffix": "?"}],
        reward_model=ByLength(),
        search=load_example("Search"),
        search_params={"every": 2},
        budget=4,
        progress=False,
    )
    rollouts = sampler.sample([Prompt("p", "Why is that")], output_dir=tmp_path)  # type: ignore[arg-type]
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


def test_what_builds_no_search_is_refused() -> None:
    def no_search(agents: list[str], budget: int, seed: int) -> Any:
        return agents

    with pytest.raises(ConfigError, match=r"must give a .*Search, not \['a'\]"):
        make_search(no_search, ["a"], 3)


SCRIPT = ["so Answer: because it is, because", "Answer: it is because", "no answer"]


def own_reward_and_task(as_objects: bool) -> dict[str, Any]:
    reward, task = load_example("Reward"), load_example("Task")
    if as_objects:
        return {"reward_model": load_object("", reward)("it"), "task": load_object("", task)()}
    return {"reward_model": {"kind": reward, "word": "it"}, "task": task}


@pytest.mark.parametrize("as_objects", [False, True])
def test_a_run_with_a_reward_and_a_task(tmp_path: Path, as_objects: bool) -> None:
    sampler = TOASampler(
        agents=[{"name": "scripted", "engine": "scripted", "responses": SCRIPT}],
        search="sequential",
        budget=6,
        progress=False,
        **own_reward_and_task(as_objects),
    )
    prompt = {"prompt": "Why is that?"}
    (rollout,) = sampler.sample([prompt], output_dir=tmp_path)
    assert rollout.prompt.messages[-1].content.startswith("Why is that?\n\nEnd with 'Answer:'")
    texts = {play.completion.text for play in rollout.plays if play.completion}
    assert {"because it is, because", "it is because"} <= texts
    assert any(play.reward is None for play in rollout.plays)
    for play in rollout.plays:
        if play.reward is None:  # the script's third text has no answer
            assert play.error == "the output has no 'Answer:'"
        else:
            assert play.completion
            assert play.reward == play.completion.text.split().count("it")


def test_an_own_reward_belongs_to_the_identity_of_a_run() -> None:
    factory = load_object("", load_example("Reward"))
    agents = [{"name": "scripted", "engine": "scripted"}]
    identities = []
    for word in ("it", "that"):
        sampler = TOASampler(agents=agents, reward_model=factory(word), progress=False)
        identities.append(sampler.identity["contents"])
    assert identities[0] != identities[1]


def test_arguments_of_an_own_reward_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"reward\.word: must be .* not 3"):
        make_reward({"kind": load_example("Reward"), "word": 3})
    with pytest.raises(ConfigError, match="did you mean 'word'"):
        make_reward({"kind": load_example("Reward"), "wrd": "it"})


def test_the_entry_point_of_the_page_is_one_of_the_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    ((group, names),) = tomllib.loads(block)["project"]["entry-points"].items()
    assert group == KINDS.group
    ((name, target),) = names.items()
    module = ModuleType("my_package.my_reward")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.MyReward = load_object("", load_example("Reward"))  # type: ignore[attr-defined]
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint(name, target, group)])
    KINDS.__dict__.pop("targets", None)  # cached
    try:
        assert type(make_reward({"kind": "mine"})).__name__ == "MyReward"
    finally:
        KINDS.__dict__.pop("targets", None)


def test_entry_points_of_other_packages_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str) -> list[EntryPoint]:
        sections = {
            "toa_trl.searches": "Search",
            "toa_trl.agents": "Agent",
            "toa_trl.rewards": "Reward",
            "toa_trl.tasks": "Task",
        }
        return [EntryPoint("mine", load_example(sections[group]), group)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    registries: list[Registry[Any]] = [SEARCHES, ENGINES, KINDS, TASKS]
    for parts in registries:
        parts.__dict__.pop("targets", None)  # cached
        assert "mine" in parts
    try:
        assert type(make_search("mine", ["a"], 3)).__name__ == "MySearch"
        assert type(make_agent({"name": "it", "engine": "mine"})).__name__ == "MyAgent"
        assert type(make_reward({"kind": "mine"})).__name__ == "MyReward"
        assert type(make_task("mine")).__name__ == "MyTask"
    finally:
        for parts in registries:
            parts.__dict__.pop("targets", None)
