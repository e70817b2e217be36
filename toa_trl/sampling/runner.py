"""Drives many prompts' searches at once against agents and reward model. The heart; one screen.

A play flows: search.ask -> task.render -> agent.generate -> reward_model.score -> journal -> search.tell. The journal is
written before the search is told, so that what a search knows is never more than what a resume would find.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from toa_trl.agents import Agent
from toa_trl.agents.base import storable, whole_text
from toa_trl.errors import AgentError, RewardError, ToaError, Unavailable
from toa_trl.rewards import RewardModel
from toa_trl.rewards.base import check_scores
from toa_trl.sampling.journal import Journal, Writer
from toa_trl.search import Search
from toa_trl.tasks import Task
from toa_trl.types import Action, Completion, Play, Prompt, Sampling
from toa_trl.utils.aio import gather_or_cancel

MAX_GIVEN_UP = (
    50  # prompts in a row: then nothing works any more, and asking on would only burn money
)
NOBODY = frozenset[str]()
LOOK_S = 0.5  # between two looks whether an agent is back


class Observer:
    """Hears of every play: asked, and then either played (it is in the journal) or dropped (it was never made)."""

    def asked(self, agent: str) -> None:
        """A play is in flight."""

    def played(self, prompt: Prompt, play: Play) -> None:
        """It was scored, or failed."""

    def dropped(self, agent: str) -> None:
        """It was cancelled, or its agent was not there."""


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
        patience_s: how long the run waits, without a single play, while no agent that it needs is there.
        observer: hears of every play.
        enough: true once nothing more is to be asked; what is in flight is waited for.
    """

    make_search: Callable[[int], Search]
    agents: Mapping[str, Agent]
    reward_model: RewardModel
    journal: Journal
    task: Task
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    plays_in_flight: int = 1
    prompts_in_flight: int = 256
    patience_s: float = 900.0
    observer: Observer = field(default_factory=Observer)
    enough: Callable[[], bool] = lambda: False
    _num_searching: int = field(default=0, init=False)  # prompts under way
    _num_given_up: int = field(default=0, init=False)  # prompts since the last scored play
    _last_error: str = field(default="", init=False)
    _waiting_since_s: float | None = field(
        default=None, init=False
    )  # loop time; no play was scored since

    async def run(self, prompts: Iterable[Prompt]) -> list[str]:
        """Spend the budget of every prompt, going on where the journal ends.

        Returns:
            The ids of prompts that were given up because every agent kept failing; a later run tries them again.

        Raises:
            ToaError: MAX_GIVEN_UP prompts in a row were given up, or no agent was there for `patience_s`.
            Unavailable: none of the reward model's servers answers any more.
            JournalError: a play could not be written.
        """
        waiting, given_up = iter(prompts), list[str]()
        writer = Writer(self.journal)

        async def work() -> None:
            for prompt in waiting:  # shared by all workers: each takes the next prompt
                self._num_searching += 1
                done = await self._search(prompt, writer)
                self._num_searching -= 1
                if done:
                    continue
                given_up.append(prompt.id)
                self._num_given_up += 1
                # failures are quick, and plays may be slow: as long as one is under way, it may still be scored
                while self._num_given_up >= MAX_GIVEN_UP and self._num_searching:
                    await asyncio.sleep(LOOK_S)
                if self._num_given_up >= MAX_GIVEN_UP:
                    raise ToaError(
                        f"every agent failed on {MAX_GIVEN_UP} prompts in a row, the last time with: {self._last_error}"
                    )

        try:
            await gather_or_cancel(work() for _ in range(self.prompts_in_flight))
        finally:
            await writer.aclose()
        return given_up

    async def _search(self, prompt: Prompt, writer: Writer) -> bool:
        """One prompt to its end, or to that of the run; False where it was given up."""
        if self.enough():
            return True
        search = self.make_search(derive_seed(self.seed, prompt.id))
        recorded = self.journal.plays(prompt.id)
        search.restore(recorded)
        plays = {play.index: play for play in recorded}
        num_running, told = 0, asyncio.Event()

        async def lane() -> None:
            """One of the prompt's plays in flight, again and again."""
            nonlocal num_running
            while not (search.done or self.enough()):
                search.away = self._away()
                asked = [] if search.all_failing else search.ask()
                if not asked:
                    if num_running:
                        await told.wait()
                    elif search.away and not search.all_failing:
                        await self._wait_for_agents(search.away)
                    else:
                        return
                    continue
                ((index, action),) = asked
                num_running += 1
                play = await self._play(prompt, index, action, plays, writer)
                num_running -= 1
                if play is None:
                    search.withdraw(index)
                    if (
                        not self._away()
                    ):  # back in this very moment, or an agent that says one thing and does another
                        await asyncio.sleep(LOOK_S)
                else:
                    plays[index] = play
                    if play.reward is None:
                        search.fail(index)
                    else:
                        search.tell(index, play.reward)
                told.set()  # whoever waits now looks again
                told.clear()

        if self.plays_in_flight == 1:
            await lane()
        else:
            await gather_or_cancel(lane() for _ in range(self.plays_in_flight))
        return search.done or self.enough()

    async def _play(
        self, prompt: Prompt, index: int, action: Action, plays: Mapping[int, Play], writer: Writer
    ) -> Play | None:
        """One play, from its prompt to the journal; None where its agent was not there."""
        self.observer.asked(action.agent)
        written = False
        try:
            play = await self._make(prompt, index, action, plays)
            if play is not None:
                await writer.append(prompt.id, play)
                written = True
                self.observer.played(prompt, play)
        finally:
            if not written:
                self.observer.dropped(action.agent)
        return play

    async def _make(
        self, prompt: Prompt, index: int, action: Action, plays: Mapping[int, Play]
    ) -> Play | None:
        """Generate and score. A failure is a recorded fact with its reason, never a reward."""
        seed, agent = derive_seed(self.seed, prompt.id, index), self.agents[action.agent]
        completion, score, error = None, None, None
        try:
            messages = self.task.render(prompt, action, plays)
            completion = storable(await agent.generate(messages, sampling=self.sampling, seed=seed))
            completion = _with_text(completion, self.task.parse(prompt, completion.text))
            judged = self.task.judged(prompt)
            scores = await self.reward_model.score_details(judged, [completion.text])
            check_scores("the reward model", [each.value for each in scores], 1)
            (score,) = scores
            self._num_given_up, self._waiting_since_s = 0, None
        except Unavailable as failure:
            if completion is not None:
                raise  # nothing can be scored any more
            if agent.can_be_away:
                return None
            error = str(failure)
        except (AgentError, RewardError) as failure:
            paid = getattr(failure, "completion", None)
            completion, error = storable(paid) if paid else completion, str(failure)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            error = "cancelled by the agent or the reward model itself"
        except Exception as failure:  # of an agent or a reward model that is not ours: its prompt fails, not the run
            error = f"{type(failure).__name__}: {failure}"
        self._last_error = error or self._last_error
        return Play(
            index,
            action,
            completion,
            score.value if score else None,
            None if error is None else whole_text(error),
            seed,
            score.flops if score else None,
            score.second if score else None,
        )

    def _away(self) -> frozenset[str]:
        gone = [name for name, agent in self.agents.items() if agent.away]
        return frozenset(gone) if gone else NOBODY

    async def _wait_for_agents(self, away: frozenset[str]) -> None:
        """Until another set of agents is away.

        Raises:
            ToaError: nothing was scored for `patience_s`.
        """
        loop = asyncio.get_running_loop()
        self._waiting_since_s = self._waiting_since_s or loop.time()
        while self._away() == away and not self.enough():
            if loop.time() - (self._waiting_since_s or loop.time()) > self.patience_s:
                reasons = "; ".join(sorted(str(self.agents[name].away) for name in away))
                raise ToaError(f"no agent has answered for {self.patience_s:g} s: {reasons}")
            await asyncio.sleep(LOOK_S)


def _with_text(done: Completion, text: str) -> Completion:
    return done if text == done.text else replace(done, text=text)


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**31), from everything that names its place; the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
