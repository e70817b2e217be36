"""Small parts that several test files share."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from toa_trl.agents import Agent
from toa_trl.errors import AgentError
from toa_trl.rewards import RewardModel
from toa_trl.types import Action, Completion, Message, Play, Prompt, Rollout, Sampling

P = ParamSpec("P")
T = TypeVar("T")
IDENTITY = {  # of a run, as far as its card needs it
    "search": "toa",
    "search_params": {},
    "budget": 3,
    "seed": 0,
    "agents": {"a": {"model": "m"}},
    "reward": "length",
    "sampling": {"temperature": 0.7, "top_p": 1.0, "max_tokens": 9},
}


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine; a test that hangs is a test that fails."""
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def closed(part: Agent | RewardModel, asking: Coroutine[Any, Any, T]) -> T:
    """The result of asking an agent or a reward model, which is closed then."""

    async def once() -> T:
        async with aclosing(part):
            return await asking

    return wait(once())


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test that is a coroutine function in an event loop of its own."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        wait(test(*args, **kwargs))

    return run


def number(*parts: object) -> float:
    """A number in [0, 1) that only the parts decide."""
    return int(hashlib.md5(repr(parts).encode()).hexdigest()[:8], 16) / 2**32


class EchoAgent(Agent):
    """Answers with its name and the seed; fails, or dies, where it is told to."""

    def __init__(self, name: str, fails: float = 0.0, raises: Exception | None = None) -> None:
        self.name = name
        self.fails = fails
        self.raises = raises
        self.asked: list[tuple[tuple[Message, ...], int]] = []

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        self.asked.append((tuple(messages), seed))
        await asyncio.sleep(0)
        if number("fails", self.name, seed) < self.fails:
            raise self.raises or AgentError(f"{self.name} failed")
        return Completion(f"{self.name} {seed}", "stop", 3, 2, 10.0)


class TextReward(RewardModel):
    """A reward that only the prompt and the text decide."""

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        await asyncio.sleep(0)
        return [number(prompt.id, text) for text in responses]


def completion_of(play: Play) -> Completion:
    """Return the completion of a play that has one."""
    assert play.completion is not None
    return play.completion


def play(
    index: int,
    reward: float | None,
    text: str | None = None,
    *,
    agent: str = "a",
    parent: int | None = None,
    finish_reason: str = "stop",
    tokens: tuple[int, int] = (10, 5),
    flops: float | None = 1.0,
) -> Play:
    """A play as the journal returns it."""
    action = Action(agent) if parent is None else Action(agent, "refine", (parent,), parent, 1)
    if reward is None:
        return Play(index, action, error="failed", seed=index)
    text = f"text {index}" if text is None else text
    return Play(
        index, action, Completion(text, finish_reason, *tokens, flops), reward, None, index, 2.0
    )


def rollout(*plays: Play, id: str = "p", **metadata: Any) -> Rollout:
    """A rollout of one prompt."""
    return Rollout(Prompt(id, "What?", metadata), plays)  # type: ignore[arg-type]


def _die_at(number: int, folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that ends the process at that file operation below a folder."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "sqlite3.connect", "os.mkdir", "os.remove", "os.rename"):
            seen += str(folder) in str(arguments[0])
            if seen == number:
                os._exit(9)

    return hook


def killed_at(number: int, folder: Path, call: Callable[[], Any]) -> bool:
    """Run a call in a child that dies at a file operation in a folder; False if it ended before."""
    child = os.fork()
    if not child:
        sys.addaudithook(_die_at(number, folder))
        call()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def wait_until_ended(pid: int, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still running"
        time.sleep(0.02)
