"""Drives many prompts' searches at once against agents and reward model. The heart; one screen.

A play flows: search.ask -> prompts.render -> agent.generate -> reward_model.score -> journal.append -> search.tell. The
journal is written before the search is told, so that what a search knows is never more than what a resume would find.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from toa_trl.agents import Agent
from toa_trl.errors import AgentError, RewardError, ToaError
from toa_trl.journal import Journal
from toa_trl.prompts import Templates, render
from toa_trl.rewards import RewardModel
from toa_trl.search import Search
from toa_trl.types import Action, Completion, Play, Prompt, Sampling

MAX_GIVEN_UP = 50  # prompts in a row: then nothing works any more, and asking on would only burn money


@dataclass
class Runner:
    """One run over many prompts.

    Args:
        make_search: a fresh search for a seed.
        agents: by name.
        seed: of the run. Everything random comes from (run seed, prompt id, play), so that with one play in flight per
            prompt scheduling never changes a result.
        plays_in_flight: per prompt.
        prompts_in_flight: searches open at once, which feed the batches of agents and reward model.
        on_play: called with every play once it is in the journal.
    """

    make_search: Callable[[int], Search]
    agents: Mapping[str, Agent]
    reward_model: RewardModel
    journal: Journal
    templates: Templates
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    plays_in_flight: int = 1
    prompts_in_flight: int = 256
    on_play: Callable[[Play], None] = lambda play: None
    _num_given_up: int = field(default=0, init=False)  # prompts in a row
    _last_error: str = field(default="", init=False)

    async def run(self, prompts: Iterable[Prompt]) -> list[str]:
        """Spend the budget of every prompt, going on where the journal ends.

        Returns:
            The ids of prompts that were given up because every agent kept failing; a later run tries them again.

        Raises:
            ToaError: MAX_GIVEN_UP prompts in a row were given up.
            JournalError: a play could not be written.
        """
        waiting, given_up = iter(prompts), list[str]()

        async def work() -> None:
            for prompt in waiting:  # shared by all workers: each takes the next prompt
                if await self._search(prompt):
                    self._num_given_up = 0
                    continue
                given_up.append(prompt.id)
                self._num_given_up += 1
                if self._num_given_up >= MAX_GIVEN_UP:
                    raise ToaError(
                        f"every agent failed on {MAX_GIVEN_UP} prompts in a row, the last time with: {self._last_error}"
                    )

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.prompts_in_flight):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first cause; the others were cancelled because of it
        return given_up

    async def _search(self, prompt: Prompt) -> bool:
        """One prompt to its end; False where it was given up."""
        search = self.make_search(derive_seed(self.seed, prompt.id))
        recorded = self.journal.plays(prompt.id)
        search.restore(recorded)
        plays = {play.index: play for play in recorded}
        running: set[asyncio.Task[Play]] = set()
        try:
            while not search.done:
                if not search.stuck:
                    for index, action in search.ask(self.plays_in_flight - len(running)):
                        running.add(asyncio.create_task(self._play(prompt, index, action, plays)))
                if not running:
                    break
                finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for play in sorted((task.result() for task in finished), key=lambda play: play.index):
                    plays[play.index] = play
                    if play.reward is None:
                        search.fail(play.index)
                    else:
                        search.tell(play.index, play.reward)
        finally:
            for task in running:
                task.cancel()
        return search.done

    async def _play(self, prompt: Prompt, index: int, action: Action, plays: Mapping[int, Play]) -> Play:
        """One play, from its prompt to the journal. A failure is a recorded fact with its reason, never a reward."""
        seed = derive_seed(self.seed, prompt.id, index)
        completion, reward, error = None, None, None
        try:
            messages = render(prompt, action, plays, self.templates)
            completion = await self.agents[action.agent].generate(messages, sampling=self.sampling, seed=seed)
            # a server that cuts an emoji in two sends half a surrogate pair, which no file can hold
            completion = replace(completion, text=completion.text.encode("utf-8", "replace").decode("utf-8"))
            reward = await self._score(prompt, completion)
        except (AgentError, RewardError) as failure:
            error = str(failure)
        except Exception as failure:  # of an agent or a reward model that is not ours: its prompt fails, not the run
            error = f"{type(failure).__name__}: {failure}"
        play = Play(index, action, completion, reward, error, seed, getattr(reward, "flops", None))
        self.journal.append(prompt.id, play)
        self._last_error = error or self._last_error
        self.on_play(play)
        return play

    async def _score(self, prompt: Prompt, completion: Completion) -> float:
        scores: Sequence[float] = await self.reward_model.score(prompt, [completion.text])
        if len(scores) != 1 or scores[0] is None or not math.isfinite(scores[0]):
            raise RewardError(f"one finite reward was needed, not {scores!r}")
        return scores[0]


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**31), from everything that names its place; the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
