"""How long agents and the reward model take: one line per call in timings.jsonl of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from toa_trl.agents import Agent
from toa_trl.agents.base import DelegatingAgent, Price
from toa_trl.rewards import RewardModel
from toa_trl.rewards.base import DetailedReward
from toa_trl.rewards.spending import also_listening
from toa_trl.types import Completion, Message, Prompt, Sampling, Score, Spending
from toa_trl.utils.targets import marked

FILE = "timings.jsonl"


@dataclass(frozen=True, slots=True)
class Call:
    """One call, also one that failed or was cancelled."""

    session: int  # of the run: 0, 1, ...; each has a clock of its own
    agent: str | None  # None: the reward model
    start_s: float
    end_s: float
    seed: int | None = None  # of the play, which an agent is told
    prompt_id: str | None = None  # which a reward model is told
    tokens: int = 0  # that a reward model on servers has spent
    cost: float = 0.0


class Stopwatch:
    """Records calls in a file, to which every session of a run appends.

    Args:
        path: the file; created with the first call, in a folder that exists then.
        clock: returns the time in seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._file: TextIO | None = None

    @contextmanager
    def timing(self, agent: str | None, **about: Any) -> Iterator[dict[str, Any]]:
        """Record one call.

        Args:
            agent: name of the agent; None: the reward model.
            about: further fields of `Call`.

        Yields:
            These fields, to be completed during the call.
        """
        start_s = self._clock()
        try:
            yield about
        finally:
            times = {"agent": agent, "start_s": start_s, "end_s": self._clock()}
            with suppress(OSError):  # a full disk must not fail a play
                self._append(times | about)

    def _append(self, call: Mapping[str, Any]) -> None:
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8", buffering=1)  # by lines
            # a new line, because the last one of a killed process may be cut
            self._file.write(f"\n{json.dumps(marked({}))}\n")
        self._file.write(json.dumps(call) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def read_calls(path: Path) -> list[Call]:
    """Return the calls of all sessions; lines that a killed process has cut are skipped."""
    if not path.is_file():
        return []
    calls, session = list[Call](), -1
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
            if "toa_trl" in content:
                session += 1
            else:
                calls.append(Call(session, **content))
        except (ValueError, TypeError):
            continue
    return calls


def is_timings(path: Path) -> bool:
    """Return whether a file is one that a `Stopwatch` wrote."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline() + file.readline()
        content = json.loads(first)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "toa_trl" in content


class TimedAgent(DelegatingAgent):
    """An agent whose calls are timed."""

    def __init__(self, agent: Agent, stopwatch: Stopwatch) -> None:
        """See the class."""
        super().__init__(agent)
        self._stopwatch = stopwatch

    @property
    def identity(self) -> Any:
        """See `Agent`."""
        return self._agent.identity

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`."""
        with self._stopwatch.timing(self.name, seed=seed):
            return await self._agent.generate(messages, sampling=sampling, seed=seed)


class TimedReward(DetailedReward):
    """A reward model whose calls are timed, with what each of them spends."""

    def __init__(self, reward_model: RewardModel, stopwatch: Stopwatch) -> None:
        """See the class."""
        self._reward_model, self._stopwatch = reward_model, stopwatch

    @property
    def graded(self) -> bool:
        """See `RewardModel`."""
        return self._reward_model.graded

    @property
    def identity(self) -> Any:
        """See `RewardModel`."""
        return self._reward_model.identity

    @property
    def texts(self) -> Any:
        """See `RewardModel`."""
        return self._reward_model.texts

    @property
    def parts(self) -> Mapping[str, Any]:
        """See `RewardModel`."""
        return self._reward_model.parts

    @property
    def prices(self) -> tuple[tuple[str, Price | None], ...]:
        """See `RewardModel`."""
        return self._reward_model.prices

    @property
    def decides_equivalence(self) -> bool:
        """See `RewardModel`."""
        return self._reward_model.decides_equivalence

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        with self._stopwatch.timing(None, prompt_id=prompt.id, tokens=0, cost=0.0) as call:

            def add(spent: Spending) -> None:
                call["tokens"] += spent.tokens
                call["cost"] += spent.cost

            with also_listening(add):
                return await self._reward_model.score_details(prompt, responses)

    async def equivalent(self, answer: str, other: str) -> bool:
        """See `RewardModel`."""
        return await self._reward_model.equivalent(answer, other)

    async def check(self) -> None:
        """See `RewardModel`."""
        await self._reward_model.check()

    async def aclose(self) -> None:
        """See `RewardModel`."""
        await self._reward_model.aclose()
