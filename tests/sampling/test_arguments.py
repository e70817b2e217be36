"""A run knows the arguments that objects in Python were built with, and not what they count."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import EchoAgent, TextReward
from toa_trl.agents.openai import OpenAIAgent
from toa_trl.errors import ConfigError
from toa_trl.rewards import RewardModel
from toa_trl.rewards.combine import MinimumPart, MinimumReward
from toa_trl.sampler import TOASampler
from toa_trl.sampling import contents
from toa_trl.sampling.arguments import arguments_of, as_plain, is_plain
from toa_trl.sampling.contents import contents_of
from toa_trl.sampling.identity import check_same_identity
from toa_trl.search.toa import TOA
from toa_trl.tasks.alignment import Alignment
from toa_trl.types import Prompt


class Kind(Enum):
    SHORT = "short"
    LONG = "long"


class MyReward(RewardModel):
    """Keeps its threshold under another name, and counts."""

    def __init__(
        self,
        threshold: float = 0.3,
        words: Sequence[Any] = ("a", "b"),
        inner: Any = None,
        timeout_s: float = 1.0,
        api_key: str = "",
        **more: Any,
    ) -> None:
        self._limit = threshold
        self.num_scored = 0
        self.inner = inner

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        self.num_scored += 1
        return [self._limit * len(text) for text in responses]


class Named(MyReward):
    @property
    def identity(self) -> Any:
        return ["Named"]


class Strict(Named):
    def __init__(self, level: int) -> None:
        super().__init__()


class OnlyScore:
    """Has no base class; `_seen` is a cache, and `size` is kept nowhere."""

    def __init__(self, threshold: float, size: int = 1, client: Any = None) -> None:
        self._threshold = threshold
        self._client = client
        self._seen: list[str] = []

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        self._seen += responses
        return [self._threshold for _ in responses]


@dataclass(frozen=True, slots=True)
class Callable_:
    threshold: float
    calls: list[int] = field(default_factory=list, init=False)

    def __call__(self, completions: Any, **columns: Any) -> list[float]:
        self.calls.append(1)
        return [self.threshold for _ in completions]


class MyTask(Alignment):
    def __init__(self, suffix: str) -> None:
        super().__init__()
        self.ending = suffix


def scored(completions: Any, threshold: float = 0.0, **columns: Any) -> list[float]:
    return [threshold for _ in completions]


def made(threshold: float) -> Callable[..., list[float]]:
    num_calls, cache = 0, list[int]()

    def reward(completions: Any, **columns: Any) -> list[float]:
        nonlocal num_calls
        num_calls += 1
        cache.append(num_calls)
        return [threshold for _ in completions]

    return reward


def search_with(alpha: float) -> Callable[..., TOA]:
    def search(agents: list[str], budget: int, seed: int = 0) -> TOA:
        return TOA(agents, budget, seed, alpha=alpha)

    return search


def reward(make: Callable[[float], Any]) -> Callable[[float], dict[str, Any]]:
    return lambda value: {"reward_model": make(value)}


CHANGED: list[tuple[Callable[[float], dict[str, Any]], str]] = [
    (reward(MyReward), "reward.threshold: the settings have changed"),
    (reward(lambda value: MyReward(words=["a", value])), "reward.words: the settings"),
    (reward(lambda value: MyReward(further=value)), "reward.further: the settings"),
    (reward(lambda value: MyReward(inner=OnlyScore(value))), "reward.inner.threshold: the setti"),
    (reward(lambda value: MyReward(words=[scored, MyReward(value)])), r"reward.words\[1\].thresh"),
    (reward(lambda value: Strict(int(10 * value))), "reward.level: the settings"),
    (reward(OnlyScore), "reward.threshold: the settings"),
    (reward(Callable_), "reward.threshold: the settings"),
    (reward(lambda value: functools.partial(scored, threshold=value)), "reward.threshold: the"),
    (reward(made), "reward.threshold: the settings"),
    (reward(lambda value: OnlyScore(value).score), "reward.threshold: the settings"),
    (
        reward(lambda value: {"kind": "minimum", "rewards": [{"reward": MyReward(value)}]}),
        r"reward\.rewards\[0\]\.reward\.threshold: the settings",
    ),
    (
        reward(lambda value: MinimumReward([MinimumPart(reward=MyReward(value))])),
        r"reward\.rewards\[0\]\.reward\.threshold: the settings",
    ),
    (
        lambda value: {"agents": [OpenAIAgent("a", f"model-{value}", "http://127.0.0.1:9")]},
        r"agents\.a\.model: the settings",
    ),
    (lambda value: {"task": MyTask(str(value))}, r"task\.suffix: the settings"),
    (lambda value: {"search": search_with(value)}, r"search\.alpha: the settings"),
]


@pytest.fixture(autouse=True)
def _no_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the digests of sources, which take most of the time and have tests of their own."""
    monkeypatch.setattr(contents, "digest_of_source", lambda thing: None)


def begin(folder: Path, given: dict[str, Any]) -> None:
    complete = {"agents": [EchoAgent("a")], "reward_model": TextReward(), "budget": 2, **given}
    TOASampler(**complete, progress=False).begin([Prompt("p", "One?")], folder).close()  # type: ignore[arg-type]


@pytest.mark.parametrize(("make", "named"), CHANGED)
def test_another_argument_of_an_object_is_refused_and_named(
    tmp_path: Path, make: Callable[[float], dict[str, Any]], named: str
) -> None:
    begin(tmp_path, make(0.3))
    begin(tmp_path, make(0.3))  # nothing has changed
    with pytest.raises(ConfigError, match=named):
        begin(tmp_path, make(0.5))


@pytest.mark.parametrize("make", [MyReward, OnlyScore, Callable_, made])
def test_what_an_object_counts_and_caches_does_not_count(
    tmp_path: Path, make: Callable[[float], Any]
) -> None:
    given = make(0.3)
    sampler = {"agents": [EchoAgent("a")], "search": "best_of_n", "budget": 2, "progress": False}
    TOASampler(reward_model=given, **sampler).sample(["One?"], tmp_path)  # type: ignore[arg-type]
    if make is MyReward:
        assert given.num_scored == 2
    for again in (given, make(0.3)):
        rollouts = TOASampler(reward_model=again, **sampler).sample(["One?"], tmp_path)  # type: ignore[arg-type]
        assert len(rollouts) == 1


def test_operational_arguments_keys_and_those_of_an_object_with_an_identity_may_change() -> None:
    plain = contents_of({"reward": MyReward()})
    assert contents_of({"reward": MyReward(timeout_s=9.0, api_key="sk-1")}) == plain
    assert arguments_of(Named(0.3)) == arguments_of(Named(0.5)) == {}


def test_what_cannot_be_read_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        contents_of({"reward": MyReward(inner=object())})
        contents_of({"reward": OnlyScore(0.3)})
        contents_of({"reward": Named(inner=object())})  # says by itself what it is
    places = [message.partition(":")[0] for message in caplog.messages]
    assert places == ["reward.inner", "reward.size"]
    assert "define the property `identity`" in caplog.text


def test_a_journal_from_before_is_resumed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    now = {"contents": contents_of({"reward": MyReward()})}
    check_same_identity("journal", {}, now)
    assert "whether the content of reward.inner, reward.threshold, reward.words" in caplog.text


def test_an_identity_counts_also_without_a_base_class(tmp_path: Path) -> None:
    class Identified(OnlyScore):
        @property
        def identity(self) -> Any:
            return ["Identified", self._threshold]

    begin(tmp_path, {"reward_model": Identified(0.3)})
    with pytest.raises(ConfigError, match=r'reward: \["Identified", 0.3\] -> \["Identified", 0.5'):
        begin(tmp_path, {"reward_model": Identified(0.5)})


def test_objects_that_hold_each_other_have_an_end() -> None:
    one, other = OnlyScore(0.3), OnlyScore(0.5)
    one._client, other._client = other, one
    assert "reward.client.threshold" in contents_of({"reward": one})


def test_values_become_plain() -> None:
    given = {"kind": Kind.LONG, "path": Path("a") / "b", "words": {"b", "a"}, "pair": (1, None)}
    plain = {"kind": "long", "path": "a/b", "words": ["a", "b"], "pair": [1, None]}
    assert as_plain(given) == plain
    assert is_plain(plain)
    assert not is_plain({"a": [object()]})
