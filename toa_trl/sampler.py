"""The public face: `TOASampler` samples, and returns `Rollouts`."""

from __future__ import annotations

import asyncio
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

from tqdm.auto import tqdm

from toa_trl.agents import Agent, make_agent, make_sampling
from toa_trl.data.prompts import as_prompts
from toa_trl.errors import ConfigError, ToaError
from toa_trl.journal import Journal
from toa_trl.prompts import Templates
from toa_trl.registry import check_whole
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.rollouts import Rollouts
from toa_trl.runner import Runner
from toa_trl.search import Search, make_search
from toa_trl.types import Play, Prompt, Sampling, as_dicts

T = TypeVar("T")
logger = logging.getLogger(__name__)

# keys of an agent or reward entry that say where and how fast, not what: a run may go on with others
OPERATIONAL = {
    "base_url",
    "api_key_env",
    "device",
    "max_batch_size",
    "max_concurrency",
    "max_attempts",
    "timeout_s",
    "latency_s",
}


class TOASampler:
    """Several models work on each prompt together, guided by a reward model.

    Args:
        agents: entries {name, engine, model, ...}, or objects with a name and `generate`.
        reward_model: an entry {kind, model, ...}, an object with `score`, or a function in TRL's reward signature.
        search: best_of_n, parallel, prs, sequential, moa or toa.
        budget: scored plays per prompt, >= 1 (paper: 160).
        search_params: of the search, e.g. {"width": 53, "alpha": 0.01, "tau": 0.1} of toa.
        seed: of the run.
        plays_in_flight: per prompt; with 1 a run is reproducible whatever the scheduling.
        prompts_in_flight: prompts worked on at once; they fill the batches of in-process models.
        sampling: of all agents; an agent's own entry may change it.
        task: whose words ask for refinements: "chat", or a folder with refine.txt, aggregate.txt and draft.txt.
        progress: show a progress bar.

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
        task: str = "chat",
        progress: bool = True,
    ) -> None:
        for name, value in {"plays_in_flight": plays_in_flight, "prompts_in_flight": prompts_in_flight}.items():
            check_whole(name, value, at_least=1)
        names = [str(agent["name"] if isinstance(agent, Mapping) else agent.name) for agent in _named(agents)]
        params = dict(search_params or {})

        def new_search(seed: int) -> Search:
            return make_search(search, names, budget, seed, **params)

        new_search(0)  # a mistake in its parameters shall show before models are loaded
        self._new_search = new_search
        self._templates = Templates.load(task)
        self._sampling = (
            sampling if isinstance(sampling, Sampling) else make_sampling("sampling", Sampling(), sampling or {})
        )
        self._budget, self._seed, self._progress = budget, seed, progress
        self._plays_in_flight, self._prompts_in_flight = plays_in_flight, prompts_in_flight
        self._agents = {
            name: make_agent(agent) if isinstance(agent, Mapping) else agent
            for name, agent in zip(names, agents, strict=True)
        }
        if isinstance(reward_model, Mapping):
            self._reward_model = make_reward(reward_model)
        elif hasattr(reward_model, "score"):
            self._reward_model = reward_model
        else:
            self._reward_model = make_reward({"kind": "function", "function": reward_model})
        given = (*agents, reward_model)
        built = (*self._agents.values(), self._reward_model)
        # what was given as an object is its owner's to close
        self._own: list[Any] = [b for b, g in zip(built, given, strict=True) if b is not g and hasattr(b, "aclose")]
        self._identity = {
            "search": search,
            "search_params": params,
            "budget": budget,
            "seed": seed,
            "plays_in_flight": plays_in_flight,
            "sampling": asdict(self._sampling),
            "templates": asdict(self._templates),
            "agents": {name: _identity(agent) for name, agent in zip(names, agents, strict=True)},
            "reward": _identity(reward_model),
        }

    def sample(self, prompts: Iterable[Any], output_dir: str | Path | None = None) -> Rollouts:
        """Spend the budget on every prompt. Called again with the same output_dir it goes on where the journal ends.

        Args:
            prompts: `Prompt`s, texts, or mappings with a prompt (text or messages), optionally an id, and further
                columns; a `datasets.Dataset` is such a sequence.
            output_dir: folder of the run; its journal.sqlite is all that a resume needs. Without one, plays are in memory.

        Raises:
            ConfigError: a prompt is none, or the journal there is of another configuration (the difference is shown).
            ToaError: nothing works any more; what was scored is in the journal.
            KeyboardInterrupt: on Ctrl-C, once everything is in order.
        """
        return run_until_signal(self.asample(prompts, output_dir))

    async def asample(
        self, prompts: Iterable[Any], output_dir: str | Path | None = None, bar: tqdm[Any] | None = None
    ) -> Rollouts:
        """`sample` as a coroutine; several may run at once, and share a progress bar whose total is set already."""
        known = as_prompts((f"prompt {number}", prompt) for number, prompt in enumerate(prompts))
        if not known:
            raise ConfigError("prompts: there is none")
        if output_dir is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
        journal = Journal(":memory:" if output_dir is None else Path(output_dir) / "journal.sqlite", create=True)
        try:
            journal.begin({**self._identity, "prompts": {"number": len(known), "digest": _digest(known)}}, known)
            with nullcontext(bar) if bar is not None else self._bar(len(known) * self._budget) as shown:
                given_up = await self._sample(known, journal, shown)
        except BaseException:
            journal.close()
            raise
        journal.unlock()
        return Rollouts(journal, given_up)

    def _bar(self, total: int) -> tqdm[Any]:
        return tqdm(total=total, desc="plays", unit="play", disable=not self._progress, smoothing=0.05)

    async def _sample(self, prompts: list[Prompt], journal: Journal, bar: tqdm[Any]) -> list[str]:
        scored = journal.num_scored()
        unfinished = [prompt for prompt in prompts if scored.get(prompt.id, 0) < self._budget]
        failures = Counter[str]()
        bar.update(sum(scored.values()))

        def on_play(play: Play) -> None:
            if play.error is None:
                bar.update()
            else:
                failures[play.error] += 1
                bar.set_postfix(failed=failures.total())

        runner = Runner(
            self._new_search,
            self._agents,
            self._reward_model,
            journal,
            self._templates,
            self._sampling,
            self._seed,
            self._plays_in_flight,
            self._prompts_in_flight,
            on_play,
        )
        try:
            given_up = await runner.run(unfinished)
        finally:
            for part in self._own:
                await part.aclose()
        for reason, count in failures.most_common(5):
            logger.warning("%d plays failed: %s", count, reason)
        if given_up and len(given_up) == len(prompts):
            reason = failures.most_common(1)[0][0]
            raise ToaError(f"every agent failed on every prompt, most often with: {reason}")
        return given_up


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
        return {key: value for key, value in part.items() if key not in OPERATIONAL}
    return getattr(part, "__qualname__", type(part).__qualname__)


def _digest(prompts: Iterable[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, as_dicts(prompt.messages)]).encode())
    return digest.hexdigest()[:16]


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
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, main()).result()
