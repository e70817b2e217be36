"""Drive the searches of many prompts against agents and a reward model.

A play: search.ask -> task.render -> agent.generate -> reward_model.score -> journal -> search.tell.
The journal is written before the search is told, so that a search never knows more
than a resume restores.
"""

import asyncio
import gc
import hashlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import monotonic

from toa_trl.agents import Agent
from toa_trl.agents.completions import ask, checked, whole_text
from toa_trl.errors import AgentError, RewardError, ToaError, Unavailable
from toa_trl.rewards import RewardModel
from toa_trl.sampling.journal import Journal, Writer
from toa_trl.sampling.turns import Turn, Turns, UniformTurns
from toa_trl.search import Search
from toa_trl.tasks import Task
from toa_trl.types import Action, Play, Prompt, Sampling, Score
from toa_trl.utils.aio import gather_or_cancel
from toa_trl.utils.redaction import without_secrets

MAX_GIVEN_UP = 50  # abort after this many consecutive prompts fail
MAX_KEPT = 100_000  # plays of searches that are kept for their next turn; 0.5 GB at 5 KB each
LOOK_S = 0.5  # polling interval for agent recovery
# New objects between two collections of garbage, and collections of young and of older objects
# between two of the next generation; the last is as rare as by default.
COLLECTIONS = (50_000, 2, 5)
RECENT = 100  # plays of an agent over which the latency is measured
NOBODY = frozenset[str]()


class Observer:
    """Callbacks of a run."""

    def played(self, prompt: Prompt, play: Play) -> None:
        """Handle a play that was scored or failed and is in the journal."""

    def finished(self, prompt: Prompt) -> None:
        """Handle a prompt that gets no more plays in this run; not called where turns repeat."""


@dataclass(slots=True)
class Load:
    """How busy one agent is."""

    in_flight: int = 0
    took_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Seconds from asking to the journal, of recent plays."""


@dataclass(kw_only=True)
class Runner:
    """One run over many prompts.

    Args:
        make_search: returns a new search for a seed.
        agents: agents by name.
        reward_model: scores every response.
        journal: record of the run, locked for this process.
        task: renders prompts and parses responses.
        sampling: sampling parameters of all agents.
        seed: seed of the run. Everything random comes from (run seed, prompt id, play), so with one
            play in flight per prompt scheduling never changes a result.
        plays_in_flight: plays per prompt at the same time, >= 1.
        prompts_in_flight: searches open at once, >= 1; they fill the batches of agents and reward
            model.
        patience_s: seconds that the run waits, without a single play, while every agent that it
            needs is away.
        observers: are told of every play, in this order.
        loads: load of each agent, kept up to date for whoever shows it.
        enough: returns True to stop scheduling; plays in flight finish.
        cost_of: returns what a search is told as the cost of a play.
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
    observers: Sequence[Observer] = ()
    loads: dict[str, Load] = field(default_factory=lambda: defaultdict(Load))
    enough: Callable[[], bool] = lambda: False
    cost_of: Callable[[Play], float] = lambda play: 1.0
    _num_searching: int = field(default=0, init=False)  # prompts in progress
    _num_given_up: int = field(default=0, init=False)  # prompts since the last scored play
    _last_error: str = field(default="", init=False)
    _waiting_since_s: float | None = field(default=None, init=False)  # loop time without any score
    # searches that may have another turn, the one that was left longest ago first
    _kept: OrderedDict[str, tuple[Search, dict[int, Play]]] = field(
        default_factory=OrderedDict, init=False
    )
    _num_kept: int = field(default=0, init=False)  # their plays

    async def run(self, prompts: Sequence[Prompt], turns: Turns | None = None) -> list[str]:
        """Spend the budget of every prompt, resuming from the journal.

        Args:
            prompts: to work on.
            turns: how the budget is divided among them; None: every prompt until its search is
                done.

        Returns:
            The ids of prompts that were given up because every agent kept failing; a later run
            retries them.

        Raises:
            ToaError: MAX_GIVEN_UP consecutive prompts were given up, or all agents were away for
                `patience_s`.
            Unavailable: none of the reward model's servers answers.
            JournalError: a play could not be written.
        """
        given_up = list[str]()
        queue = turns or UniformTurns(prompts)
        writer = Writer(self.journal)

        async def work() -> None:
            while (turn := await queue.next()) is not None:  # shared by all workers
                self._num_searching += 1
                ended = await self._take(turn, queue, writer)
                self._num_searching -= 1
                if ended:
                    continue
                given_up.append(turn.prompt.id)
                self._num_given_up += 1
                # A slow play that is still in flight may yet be scored.
                while self._num_given_up >= MAX_GIVEN_UP and self._num_searching:
                    await asyncio.sleep(LOOK_S)
                if self._num_given_up >= MAX_GIVEN_UP:
                    raise ToaError(
                        f"every agent failed on {MAX_GIVEN_UP} prompts in a row; the last error: "
                        f"{self._last_error}"
                    )

        try:
            with rare_collections():
                num_workers = min(self.prompts_in_flight, len(prompts))
                await gather_or_cancel(work() for _ in range(num_workers))
        finally:
            await writer.aclose()
        return given_up

    async def _take(self, turn: Turn, turns: Turns, writer: Writer) -> bool:
        """Search one prompt until its turn or the run ends; False if it was given up."""
        if self.enough():
            turns.stop()
            return True
        search, plays = self._opened(turn.prompt)
        plays_wanted = turn.plays or search.budget
        completed = await self._search(turn.prompt, search, plays, plays_wanted, writer)
        if self.enough():
            turns.stop()
            return True
        if turns.repeated and completed:
            self._keep(turn.prompt, search, plays)
        elif completed:
            for observer in self.observers:
                observer.finished(turn.prompt)
        await turns.ended(turn, plays, given_up=not completed)
        return completed

    def _opened(self, prompt: Prompt) -> tuple[Search, dict[int, Play]]:
        """Return a prompt's search and plays, as they were left or from the journal."""
        kept = self._kept.pop(prompt.id, None)
        if kept is not None:
            self._num_kept -= len(kept[1])
            return kept
        search = self.make_search(derive_seed(self.seed, prompt.id))
        recorded = self.journal.plays(prompt.id)
        search.restore(recorded, self.cost_of)
        return search, {play.index: play for play in recorded}

    def _keep(self, prompt: Prompt, search: Search, plays: dict[int, Play]) -> None:
        """Keep a search for its next turn; the oldest are forgotten, so that memory is flat."""
        self._kept[prompt.id] = (search, plays)
        self._num_kept += len(plays)
        while self._num_kept > MAX_KEPT:
            _, forgotten = self._kept.popitem(last=False)
            self._num_kept -= len(forgotten[1])

    async def _search(
        self,
        prompt: Prompt,
        search: Search,
        plays: dict[int, Play],
        plays_wanted: int,
        writer: Writer,
    ) -> bool:
        """Make plays until there are so many scored ones; False if the search cannot go on."""
        num_running, play_ended = 0, asyncio.Event()

        def is_done() -> bool:
            return search.done or len(search.rewards) >= plays_wanted

        async def lane() -> None:
            """Make one play after another."""
            nonlocal num_running
            while not (is_done() or self.enough()):
                search.away = self._away()
                is_asking = len(search.actions) < plays_wanted and not search.all_failing
                requested = search.ask() if is_asking else []
                if not requested:
                    if num_running:
                        await play_ended.wait()
                    elif search.away and not search.all_failing:
                        await self._wait_for_agents(search.away)
                    else:
                        return
                    continue
                ((index, action),) = requested
                num_running += 1
                play = await self._play(prompt, index, action, plays, writer)
                num_running -= 1
                if play is None:
                    search.withdraw(index)
                    if not self._away():  # recovered already, or the agent's state is inconsistent
                        await asyncio.sleep(LOOK_S)
                else:
                    plays[index] = play
                    if play.reward is None:
                        search.fail(index)
                    else:
                        search.tell(index, play.reward, self.cost_of(play))
                play_ended.set()  # wakes the lanes that wait now
                play_ended.clear()

        num_lanes = min(self.plays_in_flight, plays_wanted)
        if num_lanes == 1:
            await lane()
        else:
            await gather_or_cancel(lane() for _ in range(num_lanes))
        return is_done()

    async def _play(
        self, prompt: Prompt, index: int, action: Action, plays: Mapping[int, Play], writer: Writer
    ) -> Play | None:
        """Make one play and write it to the journal; None if its agent was away."""
        load, began_s = self.loads[action.agent], monotonic()
        load.in_flight += 1
        try:
            play = await self._make(prompt, index, action, plays)
            if play is None:
                return None
            await writer.append(prompt.id, play)
            load.took_s.append(monotonic() - began_s)
        finally:
            load.in_flight -= 1
        for observer in self.observers:
            observer.played(prompt, play)
        return play

    async def _make(
        self, prompt: Prompt, index: int, action: Action, plays: Mapping[int, Play]
    ) -> Play | None:
        """Generate and score; a failure is recorded with its reason, never as a reward."""
        seed, agent = derive_seed(self.seed, prompt.id, index), self.agents[action.agent]
        completion, score, error = None, None, None
        try:
            messages = self.task.render(prompt, action, plays)
            completion = await ask(agent, messages, sampling=self.sampling, seed=seed)
            text = self.task.parse(prompt, completion.text)
            if text != completion.text:
                completion = checked("the task", replace(completion, text=text))
            judged = self.task.judged(prompt)
            scores = await self.reward_model.score_details(judged, [completion.text])
            if len(scores) != 1 or not isinstance(scores[0], Score):
                raise RewardError(f"the reward model: one Score is needed, not {scores!r}")
            score = scores[0]
            self._num_given_up, self._waiting_since_s = 0, None
        except Unavailable as failure:
            if completion is not None:
                raise  # without the reward model no play can be scored
            if agent.can_be_away:
                return None
            error = str(failure)
        except (AgentError, RewardError) as failure:
            if isinstance(failure, AgentError) and failure.completion is not None:
                completion = failure.completion
            error = str(failure)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            error = "cancelled by the agent or the reward model itself"
        except (
            Exception
        ) as failure:  # in a user's agent or reward model: fails the play, not the run
            error = f"{type(failure).__name__}: {failure}"
        if error is not None:
            self._last_error = error = without_secrets(whole_text(error))
        return Play(
            index,
            action,
            completion,
            reward=score.value if score else None,
            error=error,
            seed=seed,
            reward_flops=score.flops if score else None,
            second_reward=score.second if score else None,
        )

    def _away(self) -> frozenset[str]:
        names = [name for name, agent in self.agents.items() if agent.away]
        return frozenset(names) if names else NOBODY

    async def _wait_for_agents(self, away: frozenset[str]) -> None:
        """Wait until the set of agents that are away changes.

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


def derive_seed(*parts: object) -> int:
    """Return a seed in [0, 2**31) that depends only on the parts; the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage less often: plays stay, and leave hardly any cycles to be found."""
    before = gc.get_threshold()
    if 0 < before[0] < COLLECTIONS[0]:  # 0: the user has switched it off
        gc.set_threshold(*COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Leave modules and models out of garbage collections: every full one would visit them."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
