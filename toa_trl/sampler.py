"""The public face: `TOASampler` samples, and returns `Rollouts`."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import signal
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from toa_trl.agents import Agent, as_agent, make_agent, make_sampling
from toa_trl.data.prompts import as_prompts
from toa_trl.errors import ConfigError, ToaError
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.limits import Meter
from toa_trl.sampling.progress import Progress
from toa_trl.sampling.reward_checks import RewardWatch
from toa_trl.sampling.runner import Observer, Runner
from toa_trl.search import Search, make_search
from toa_trl.tasks import Task, make_task
from toa_trl.types import Play, Prompt, Sampling, as_dicts
from toa_trl.utils.registry import check_number, check_whole

T = TypeVar("T")
logger = logging.getLogger(__name__)

# keys of an agent or reward entry that say where, how fast and for how much, not what: a run may go on with others
OPERATIONAL = {
    "base_url",
    "url",
    "api_key_env",
    "device",
    "max_batch_size",
    "max_batch_tokens",
    "max_concurrency",
    "max_attempts",
    "timeout_s",
    "wait_s",
    "latency_s",
    "price",
}


class TOASampler:
    """Several models work on each prompt together, guided by a reward model.

    Args:
        agents: entries {name, engine, model, ...}, or objects with a name and `generate`. An entry may have a price:
            {prompt: 0.1, completion: 0.4} per million tokens.
        reward_model: an entry {kind, model, ...}, an object with `score`, or a function in TRL's reward signature.
        search: best_of_n, parallel, prs, sequential, moa or toa.
        budget: scored plays per prompt, >= 1 (paper: 160).
        search_params: of the search, e.g. {"width": 53, "alpha": 0.01, "tau": 0.1} of toa.
        seed: of the run.
        plays_in_flight: per prompt; with 1 a run is reproducible whatever the scheduling.
        prompts_in_flight: prompts worked on at once; they fill the batches of in-process models and the slots of servers.
        sampling: of all agents; an agent's own entry may change it.
        task: how prompts are read, asked and refined: alignment, translation or math, a folder of templates, a mapping
            {name, ...}, "package.module:name" of a `toa_trl.tasks.Task`, or such an object.
        limits: {"max_tokens": ..., "max_flops": ..., "max_cost": ...} of the run; when one is reached it ends in order.
        patience_s: how long the run waits, without a single play, while no agent that it needs answers.
        progress: show how the run goes on.

    Raises:
        ConfigError: anything of this is not as it should be; the message names it.
    """

    def __init__(
        self,
        agents: Sequence[Agent | Mapping[str, Any]],
        reward_model: RewardModel | Mapping[str, Any] | Callable[..., Any],
        search: str = "toa",
        budget: int = 160,
        search_params: Mapping[str, Any] | None = None,
        seed: int = 0,
        plays_in_flight: int = 1,
        prompts_in_flight: int = 256,
        sampling: Sampling | Mapping[str, Any] | None = None,
        task: str | Mapping[str, Any] | Task = "alignment",
        limits: Mapping[str, Any] | None = None,
        patience_s: float = 900.0,
        progress: bool = True,
    ) -> None:
        for name, value in {
            "plays_in_flight": plays_in_flight,
            "prompts_in_flight": prompts_in_flight,
        }.items():
            check_whole(name, value, at_least=1)
        check_whole("seed", seed, at_least=0)
        check_number("patience_s", patience_s, at_least=0)
        for name, mapping in {"search_params": search_params, "limits": limits}.items():
            if not isinstance(mapping or {}, Mapping):
                raise ConfigError(f"{name}: a mapping of keys to values is needed, not {mapping!r}")
        names = [
            str(agent["name"] if isinstance(agent, Mapping) else agent.name)
            for agent in _named(agents)
        ]
        params = dict(search_params or {})

        def new_search(seed: int) -> Search:
            return make_search(search, names, budget, seed, **params)

        squashing = new_search(0)  # a mistake in its parameters shall show before models are loaded
        self._tau: float | None = getattr(squashing, "tau", None)
        self._new_search = new_search
        self._task = make_task(task)
        self._sampling = (
            sampling
            if isinstance(sampling, Sampling)
            else make_sampling("sampling", Sampling(), sampling or {})
        )
        self._limits = dict(limits or {})
        self._prices = {
            name: agent["price"]
            for name, agent in zip(names, agents, strict=True)
            if isinstance(agent, Mapping) and "price" in agent
        }
        Meter(self._limits, self._prices)
        self._budget, self._seed, self._patience_s, self._progress = (
            budget,
            seed,
            patience_s,
            progress,
        )
        self._plays_in_flight, self._prompts_in_flight = plays_in_flight, prompts_in_flight
        self._agents: dict[str, Agent] = {}
        for name, agent in zip(names, agents, strict=True):
            self._agents[name] = (
                make_agent(agent) if isinstance(agent, Mapping) else as_agent(agent)
            )
        self._reward_model = make_reward(reward_model)
        given = (*agents, reward_model)
        self._parts: list[Agent | RewardModel] = [*self._agents.values(), self._reward_model]
        # what was given as an object is its owner's to close
        self._own = [
            part
            for part, entry in zip(self._parts, given, strict=True)
            if isinstance(entry, Mapping)
        ]
        # what decides the result, but for the prompts, as JSON values
        self.identity: dict[str, Any] = {
            "search": search,
            "search_params": params,
            "budget": budget,
            "seed": seed,
            "plays_in_flight": plays_in_flight,
            "sampling": asdict(self._sampling),
            "task": self._task.identity,
            "agents": {name: _identity(agent) for name, agent in zip(names, agents, strict=True)},
            "reward": _identity(reward_model),
        }
        if self._reward_model.texts is not None:  # contents of files that the entry names
            self.identity["reward_words"] = self._reward_model.texts

    def sample(self, prompts: Iterable[Any], output_dir: str | Path | None = None) -> Rollouts:
        """Spend the budget on every prompt. Called again with the same output_dir it goes on where the journal ends.

        Args:
            prompts: `Prompt`s, texts, or mappings with the columns of the task (a prompt, text or messages), optionally
                an id, and further columns; a `datasets.Dataset` is such a sequence.
            output_dir: folder of the run; its journal.sqlite is all that a resume needs. Without one, plays are in memory.

        Raises:
            ConfigError: a prompt is none, a server cannot be reached, or the journal there is of another configuration
                (the difference is shown).
            ToaError: nothing works any more; what was scored is in the journal.
            KeyboardInterrupt: on Ctrl-C, once everything is in order.
        """
        gc.freeze()  # modules and models: every full collection of a run would look through them again
        try:
            return run_until_signal(self.asample(prompts, output_dir))
        finally:
            gc.unfreeze()

    async def asample(
        self,
        prompts: Iterable[Any],
        output_dir: str | Path | None = None,
        progress: Progress | None = None,
        part: bool = False,
    ) -> Rollouts:
        """`sample` as a coroutine; several may run at once, and share a progress display that is open already.

        With `part`, the prompts are a part of a larger run, and it is no error that every one of them was given up.
        """
        rows = ((f"prompt {number}", prompt) for number, prompt in enumerate(prompts))
        known = as_prompts(rows, read=self._task.read)
        if not known:
            raise ConfigError("prompts: there is none")
        for prompt in known:  # `Prompt`s were not read by the task
            self._task.check(
                f"prompt {prompt.id!r}", {"prompt": prompt.messages[-1].content, **prompt.metadata}
            )
        resumed = output_dir is not None and (Path(output_dir) / "journal.sqlite").exists()
        try:
            if not resumed:  # a server that is not there shall leave nothing behind
                await self._check()
            journal = self.begin(known, output_dir)
            try:
                scored = journal.num_scored()
                unfinished = [prompt for prompt in known if scored.get(prompt.id, 0) < self._budget]
                unfinished.sort(
                    key=lambda prompt: scored.get(prompt.id) == 0
                )  # those that only failed come last
                if resumed and unfinished:
                    await self._check()
                given_up, limit = await self._sample(
                    unfinished, len(known), journal, progress, part
                )
            except BaseException:
                journal.close()
                raise
        finally:
            for each in self._own:
                await each.aclose()
        journal.unlock()
        return Rollouts(journal, given_up, limit)

    async def _check(self) -> None:
        await asyncio.gather(*(part.check() for part in self._parts))

    def begin(self, prompts: Sequence[Prompt], output_dir: str | Path | None) -> Journal:
        """The journal of a run over these prompts, new or to go on with, locked for this process.

        Raises:
            ConfigError: the journal there is of another configuration, or another process writes it.
        """
        if output_dir is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
        journal = Journal(
            ":memory:" if output_dir is None else Path(output_dir) / "journal.sqlite", create=True
        )
        try:
            journal.begin(identity_of_run(self.identity, prompts), prompts)
        except BaseException:
            journal.close()
            raise
        return journal

    async def _sample(
        self,
        unfinished: list[Prompt],
        num_prompts: int,
        journal: Journal,
        progress: Progress | None,
        part: bool,
    ) -> tuple[list[str], str | None]:
        counts = journal.agent_counts()
        meter = Meter(self._limits, self._prices)
        meter.resume(counts, journal.counts().reward_flops)
        cost = (lambda: meter.cost) if self._prices else (lambda: None)
        own = Progress(
            num_prompts * self._budget, list(self._agents), cost=cost, enabled=self._progress
        )
        failures = Counter[str]()
        with own if progress is None else nullcontext(progress) as shown:
            shown.resume(counts, journal.best_rewards())
            runner = Runner(
                self._new_search,
                self._agents,
                self._reward_model,
                journal,
                self._task,
                self._sampling,
                self._seed,
                self._plays_in_flight,
                self._prompts_in_flight,
                self._patience_s,
                _Watch(shown, meter, RewardWatch(self._tau), failures),
                lambda: meter.reached is not None,
            )
            given_up = await runner.run(unfinished)
        for reason, count in failures.most_common(5):
            logger.warning("%d plays failed: %s", count, reason)
        if len(given_up) == num_prompts and not part:
            reason = failures.most_common(1)[0][0]
            raise ToaError(f"every agent failed on every prompt, most often with: {reason}")
        return given_up, meter.reached


class _Watch(Observer):
    """Shows, counts and judges the plays of one run."""

    def __init__(
        self, progress: Progress, meter: Meter, rewards: RewardWatch, failures: Counter[str]
    ) -> None:
        self._progress, self._meter, self._rewards, self._failures = (
            progress,
            meter,
            rewards,
            failures,
        )

    def asked(self, agent: str) -> None:
        self._progress.asked(agent)

    def dropped(self, agent: str) -> None:
        self._progress.dropped(agent)

    def played(self, prompt: Prompt, play: Play) -> None:
        self._meter.add(play)
        self._progress.played(prompt.id, play)
        if play.reward is not None and play.completion is not None:
            self._rewards.see(play.completion.text, play.reward)
        elif play.error is not None and (
            play.error in self._failures or len(self._failures) < 1000
        ):
            self._failures[play.error] += 1


def _named(agents: Sequence[Agent | Mapping[str, Any]]) -> Sequence[Any]:
    for agent in agents:
        if (isinstance(agent, Mapping) and "name" not in agent) or not (
            isinstance(agent, Mapping) or hasattr(agent, "name")
        ):
            raise ConfigError(f"agents: an entry needs a name and an engine, not {agent!r}")
    return agents


def _identity(part: Any) -> Any:
    """What decides a part's answers: its entry, the `identity` that an object may have, or its name."""
    part = getattr(part, "identity", part)
    if isinstance(part, Mapping):
        return decisive(part)
    return getattr(part, "__qualname__", type(part).__qualname__)


def decisive(value: Any) -> Any:
    """An entry without the keys that say where and how fast; rewards may hold entries of rewards and agents."""
    if isinstance(value, Mapping):
        return {key: decisive(inner) for key, inner in value.items() if key not in OPERATIONAL}
    if isinstance(value, list | tuple):
        return [decisive(inner) for inner in value]
    return value


def identity_of_run(identity: Mapping[str, Any], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """A sampler's identity and its prompts: what a journal is begun with."""
    return {**identity, "prompts": {"number": len(prompts), "digest": digest(prompts)}}


def digest(prompts: Iterable[Prompt]) -> str:
    """What tells one list of prompts from another; their further columns decide rewards."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(
            json.dumps(
                [prompt.id, as_dicts(prompt.messages), dict(prompt.metadata)], default=str
            ).encode()
        )
    return found.hexdigest()[:16]


def run_until_signal(sampling: Coroutine[Any, Any, T]) -> T:
    """Run to the end, in a thread of its own where this one has an event loop already (a notebook)."""

    async def main() -> T:
        task = asyncio.current_task()
        if task is not None and threading.current_thread() is threading.main_thread():
            # SIGTERM ends a run in order, as asyncio.run does for Ctrl-C; a background job may have that one ignored
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await sampling

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        try:
            return asyncio.run(main())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T] | None]] = []

    async def in_thread() -> T:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await sampling

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(asyncio.run, in_thread())
        try:
            return result.result()
        except KeyboardInterrupt:
            for loop, task in running:
                if task is not None:
                    loop.call_soon_threadsafe(task.cancel)
            raise
