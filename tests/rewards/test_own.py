"""Rewards and tasks of the user's own: by module path and by entry point."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest

import toa_trl.utils.registry
from tests.helpers import wait
from toa_trl.errors import ConfigError
from toa_trl.rewards import KINDS, RewardModel, make_reward
from toa_trl.tasks import TASKS, Task, make_task
from toa_trl.tasks.alignment import Alignment
from toa_trl.types import Message, Prompt
from toa_trl.utils.config import PositiveFloat

PROMPT = Prompt("p", (Message("user", "x"),))


class Shout(RewardModel):
    """Count exclamation marks."""

    def __init__(self, factor: PositiveFloat = 1.0) -> None:
        self._factor = factor

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        return [self._factor * response.count("!") for response in responses]


class Poem(Alignment):
    """A task that differs in its name and templates' folder only."""

    def __init__(self) -> None:
        super().__init__(toa_trl.tasks.base.BUILT_IN / "alignment")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another package had declared entry points."""

    def declared(group: str) -> list[EntryPoint]:
        targets = {
            "toa_trl.rewards": [("shout", "Shout"), ("length", "Shout")],
            "toa_trl.tasks": [("poem", "Poem")],
        }
        return [EntryPoint(name, f"{__name__}:{cls}", group) for name, cls in targets[group]]

    monkeypatch.setattr(toa_trl.utils.registry, "entry_points", declared)
    for registry in (KINDS, TASKS):
        registry.__dict__.pop("targets", None)
        compute = vars(type(registry))["targets"].func
        monkeypatch.setitem(registry.__dict__, "targets", compute(registry))


def score(entry: Any, text: str) -> list[float]:
    return wait(make_reward(entry).score(PROMPT, [text]))


def test_a_reward_by_module_path() -> None:
    kind = f"{__name__}:Shout"
    assert score({"kind": kind, "factor": 2.0}, "a!!") == [4.0]
    with pytest.raises(ConfigError, match=r"^reward\.factor: must be > 0"):
        make_reward({"kind": kind, "factor": -1.0})
    nested = {"kind": "minimum", "rewards": [{"reward": {"kind": kind, "facto": 1}}]}
    with pytest.raises(ConfigError, match=r"^reward\.rewards\[0\]\.reward: unknown key 'facto'"):
        make_reward(nested)


@pytest.mark.usefixtures("installed")
def test_a_reward_and_a_task_by_entry_point() -> None:
    assert score({"kind": "shout"}, "a!!") == [2.0]
    assert score({"kind": "length"}, "a b") == [2.0]  # built-in names cannot be replaced
    task = make_task("poem")
    assert isinstance(task, Poem)
    assert isinstance(task, Task)
