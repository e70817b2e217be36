"""Calls of agents and reward models, timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers import EchoAgent, TextReward, wait
from toa_trl.agents import Agent
from toa_trl.agents.base import DelegatingAgent, Price
from toa_trl.errors import AgentError
from toa_trl.rewards import RewardModel
from toa_trl.rewards.spending import listening, spend
from toa_trl.sampling.timing import (
    FILE,
    Call,
    Stopwatch,
    TimedAgent,
    TimedReward,
    is_timings,
    read_calls,
)
from toa_trl.types import Message, Prompt, Sampling, Spending

HELLO = (Message("user", "hello"),)


class Clock:
    """A clock on which a second passes whenever it is read."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


class PaidReward(TextReward):
    """A reward model on a server."""

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        spend(10, 2, Price(prompt=1e6))
        return await super().score(prompt, responses)


def test_calls_are_recorded_also_those_that_fail(tmp_path: Path) -> None:
    path = tmp_path / FILE
    stopwatch = Stopwatch(path, Clock())
    agent = TimedAgent(EchoAgent("a", fails=1.0), stopwatch)
    reward, heard = TimedReward(PaidReward(), stopwatch), list[Spending]()
    assert not path.exists()  # no call yet
    with pytest.raises(AgentError):
        wait(agent.generate(HELLO, sampling=Sampling(), seed=7))
    with listening(heard.append):
        (score,) = wait(reward.score(Prompt("p", "hello"), ["text"]))  # type: ignore[arg-type]
    stopwatch.close()
    assert score == wait(TextReward().score(Prompt("p", "hello"), ["text"]))[0]  # type: ignore[arg-type]
    assert heard == [Spending(12, 10.0)]  # the run hears it too
    assert read_calls(path) == [
        Call(0, "a", 1.0, 2.0, seed=7),
        Call(0, None, 3.0, 4.0, prompt_id="p", tokens=12, cost=10.0),
    ]


def test_a_killed_session_loses_its_last_line_only(tmp_path: Path) -> None:
    path = tmp_path / FILE
    for name in "ab":
        stopwatch = Stopwatch(path, Clock())
        with stopwatch.timing(name, seed=0):
            pass
        stopwatch.close()
        with path.open("a") as file:
            file.write('{"agent": "cut", "sta')
    assert [(call.session, call.agent) for call in read_calls(path)] == [(0, "a"), (1, "b")]
    assert is_timings(path)


@pytest.mark.parametrize("text", ["", "mine\n", '{"agent": 1}\n', "[]", "\n\n"])
def test_files_of_others_are_told_apart(text: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    assert not is_timings(path)
    assert read_calls(path) == []
    path.write_text(text)
    assert not is_timings(path)


COPIED = ("name", "price")  # attributes of an instance


@pytest.mark.parametrize(
    ("wrapper", "protocol", "inherited"),
    [
        (DelegatingAgent, Agent, {*COPIED, "generate", "identity"}),  # which a subclass defines
        (TimedAgent, Agent, {*COPIED, *vars(DelegatingAgent)}),
        (TimedReward, RewardModel, {"score"}),
    ],
)
def test_wrappers_delegate_every_capability(
    wrapper: type, protocol: type, inherited: set[str]
) -> None:
    public = {name for name in vars(protocol) if not name.startswith("_")}
    assert public - inherited <= vars(wrapper).keys()


def test_a_wrapper_has_the_name_and_the_price_of_its_agent(tmp_path: Path) -> None:
    agent = EchoAgent("a")
    agent.price = {"prompt": 1.0}  # type: ignore[attr-defined]
    timed = TimedAgent(agent, Stopwatch(tmp_path / FILE))
    assert (timed.name, timed.price) == ("a", agent.price)  # type: ignore[attr-defined]
