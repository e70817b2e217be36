"""`TOASampler`: the public way to sample."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toa_trl.agents import Agent, make_sampling
from toa_trl.data.preference import check_rank, preference_rows
from toa_trl.data.prompts import as_prompts
from toa_trl.data.sft import sft_rows
from toa_trl.errors import ConfigError, ToaError
from toa_trl.rewards import RewardModel
from toa_trl.rollouts import Rollouts, check_run_target
from toa_trl.rollouts.views import settings_table, settings_text
from toa_trl.sampling.allocation import make_allocation
from toa_trl.sampling.costs import check_costs, cost_of, identity_of_costs
from toa_trl.sampling.extension import Extend, begin_or_extend
from toa_trl.sampling.identity import identity_of_run
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.limits import Meter, has_price, prices_of, warn_of_silent
from toa_trl.sampling.observer import Failures, RewardWatch
from toa_trl.sampling.parts import Parts, check_parts
from toa_trl.sampling.progress import Progress
from toa_trl.sampling.run_file import configuration_of, finish_run_file, is_finished, start_run_file
from toa_trl.sampling.runner import Runner, frozen_objects
from toa_trl.search import Search, make_search
from toa_trl.tasks import Task, make_task
from toa_trl.types import Prompt, Sampling
from toa_trl.utils.aio import run_until_signal
from toa_trl.utils.config import NonNegativeFloat, NonNegativeInt, PositiveInt, model_of, validate
from toa_trl.utils.targets import check_run_folder

logger = logging.getLogger(__name__)


class TOASampler:
    """Several models work on each prompt together, guided by a reward model.

    Args:
        agents: entries {name, engine, model, ...}, or objects with a name and `generate`. An entry
            may have a price: {prompt: 0.1, completion: 0.4} per million tokens.
        reward_model: an entry {kind, model, ...}, an object with `score`, or a function in TRL's
            reward signature.
        search: best_of_n, parallel, prs, sequential, moa, toa, greedy or ab_mcts;
            "package.module:name" of your own; or a class or function that returns a
            `toa_trl.search.Search`.
        budget: scored plays per prompt, >= 1 (paper: 160); the mean with an adaptive allocation.
        search_params: parameters of the search, e.g. {"width": 53, "alpha": 0.01, "tau": 0.1}.
        seed: seed of the run, >= 0; everything random comes from it.
        plays_in_flight: plays per prompt at the same time; with 1 a run is reproducible.
        prompts_in_flight: prompts worked on at the same time; they fill the batches of in-process
            models and the slots of servers.
        sampling: sampling parameters of all agents; an agent's own entry overrides them.
        task: how prompts are read, asked and refined: alignment, translation or math, a folder of
            templates, a mapping {name, ...}, "package.module:name" of a `toa_trl.tasks.Task`, or
            such an object.
        limits: {"max_tokens": ..., "max_flops": ..., "max_cost": ...} of the run; it stops
            gracefully when a limit is reached.
        patience_s: seconds that the run waits, without a single play, while no agent is available.
        progress: whether to show progress.
        sft: how SFT rows are made, recorded in run.yaml for `Rollouts.save`, the report and
            `toa-trl data`.
        preference: how preference pairs are made, recorded likewise.
        allocation: how the budget is divided among the prompts: {"kind": "uniform"} (the default),
            or {"kind": "adaptive", ...}, see `toa_trl.sampling.allocation.adaptive.Adaptive`.

    Raises:
        ConfigError: an argument is invalid; the message names it.
    """

    def __init__(
        self,
        agents: Sequence[Agent | Mapping[str, Any]],
        reward_model: RewardModel | Mapping[str, Any] | Callable[..., Any],
        search: str | Callable[..., Search] = "toa",
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
        sft: Mapping[str, Any] | None = None,
        preference: Mapping[str, Any] | None = None,
        allocation: Mapping[str, Any] | None = None,
    ) -> None:
        validate(PositiveInt, budget, "budget")
        validate(NonNegativeInt, seed, "seed")
        validate(PositiveInt, plays_in_flight, "plays_in_flight")
        validate(PositiveInt, prompts_in_flight, "prompts_in_flight")
        validate(NonNegativeFloat, patience_s, "patience_s")
        self._allocation = make_allocation(allocation)
        params = self._allocation.search_params(
            search, validate(dict[str, Any], search_params or {}, "search_params")
        )
        validate(model_of(sft_rows, skip=1), sft or {}, "sft")
        validate(model_of(preference_rows, skip=1), preference or {}, "preference")
        check_rank(preference or {}, budget)
        names = check_parts(agents, reward_model)

        self._search, self._params = search, params
        # validates the search parameters before models are loaded
        self._example = make_search(search, names, budget, **params)
        self._allocation.check(
            budget, lambda plays: self._search_of(names, plays, params), preference or {}
        )
        self._task = make_task(task)
        self._sampling = (
            sampling
            if isinstance(sampling, Sampling)
            else make_sampling("sampling", Sampling(), sampling or {})
        )
        self._limits = limits or {}
        self._prices = prices_of(agents)
        self._reward_price = has_price(reward_model)
        prices = Meter(self._limits, self._prices, self._reward_price).prices  # validates them
        self._budget, self._seed = budget, seed
        self._patience_s, self._progress = patience_s, progress
        self._plays_in_flight, self._prompts_in_flight = plays_in_flight, prompts_in_flight
        self._parts = Parts(agents, reward_model)
        self._agents, self._reward_model = self._parts.agents, self._parts.reward
        self._allocation.check_costs(self._agents, prices)
        check_costs("search_params.cost", self._example.cost, self._agents, prices)
        # What decides the result, except for the prompts, as JSON values.
        self.identity: dict[str, Any] = self._allocation.identified(
            {
                "search": search if isinstance(search, str) else search.__qualname__,
                "search_params": params,
                "budget": budget,
                "seed": seed,
                "plays_in_flight": plays_in_flight,
                "sampling": asdict(self._sampling),
                "task": self._task.identity,
                **identity_of_costs(self._example.cost, prices),
                **self._parts.identity(search, task),
            }
        )
        # What run.yaml records; a recipe replaces it with its whole configuration.
        self.configuration: Mapping[str, Any] = configuration_of(
            self.identity,
            agents,
            task,
            allocation=dict(allocation or {"kind": "uniform"}),
            prompts_in_flight=prompts_in_flight,
            patience_s=patience_s,
            limits=dict(self._limits),
            sft=dict(sft or {}),
            preference=dict(preference or {}),
        )

    def __repr__(self) -> str:
        """Return the settings of the search."""
        return f"TOASampler({settings_text(self.identity)})"

    def _repr_html_(self) -> str:
        return settings_table(self.identity)

    def sample(
        self,
        prompts: Iterable[Any],
        output_dir: str | Path | None = None,
        extend: Extend = False,
        export: bool = True,
    ) -> Rollouts:
        """Spend the budget on every prompt; with the output_dir of an earlier call, resume it.

        Args:
            prompts: `Prompt`s, texts, or mappings with the columns of the task (a prompt, text or
                messages), optionally an id, and further columns; a `datasets.Dataset` is such a
                sequence.
            output_dir: folder of the run, as `toa-trl synthesize` leaves it: run.yaml, the journal,
                data sets, card, audit and report. None: plays are kept in memory.
            extend: whether the run in output_dir may grow: prompts appended, a larger budget,
                agents appended. True: if the search continues exactly; "keep_width": keep the width
                that it had; "given": take the plays that were made as they are.
            export: False leaves run.yaml and the journal alone, which is all that a resume needs.

        Raises:
            ConfigError: a prompt is invalid, a server cannot be reached, or the journal was created
                with a different configuration (the differences are shown).
            ToaError: the run cannot continue; what was scored is in the journal.
            KeyboardInterrupt: on Ctrl-C, after the run has stopped gracefully.
        """
        export = export and output_dir is not None
        if export:
            check_run_target(Path(str(output_dir)).expanduser())
        with frozen_objects():
            rollouts = run_until_signal(self.asample(prompts, output_dir, extend=extend))
        if export:
            rollouts.export()
        return rollouts

    async def asample(
        self,
        prompts: Iterable[Any],
        output_dir: str | Path | None = None,
        progress: Progress | None = None,
        part: bool = False,
        extend: Extend = False,
    ) -> Rollouts:
        """Sample as a coroutine; see `sample`. Several may run at once.

        Args:
            prompts: see `sample`.
            output_dir: see `sample`.
            progress: a progress display that is open already and may be shared.
            part: the prompts are a part of a larger run: run.yaml is not written, and it is no
                error when every one of them was given up.
            extend: see `sample`.
        """
        rows = ((f"prompt {number}", prompt) for number, prompt in enumerate(prompts))
        checked = as_prompts(rows, read=self._task.read)
        if not checked:
            raise ConfigError("prompts: the list is empty")
        for prompt in checked:  # `Prompt`s were not read by the task
            columns = {"prompt": prompt.messages[-1].content, **prompt.metadata}
            self._task.check(f"prompt {prompt.id!r}", columns)
        if output_dir == "":
            raise ConfigError('output_dir: must not be empty; "." is the current folder')
        run_dir = None if output_dir is None else Path(output_dir).expanduser()
        if run_dir is not None and not part:
            check_run_folder(run_dir)
        resumed = run_dir is not None and (run_dir / "journal.sqlite").exists()
        if extend and not resumed:
            raise ConfigError(f"--extend: there is no run in {run_dir}")
        try:
            if not resumed:  # an unreachable server must leave nothing behind
                await self._parts.check()
            journal = self.begin(checked, run_dir, extend)
            try:
                unfinished = self._allocation.unfinished(checked, journal)
                writes_run_file = (
                    run_dir is not None
                    and not part
                    and (bool(unfinished) or not is_finished(run_dir))
                )
                if run_dir is not None and writes_run_file:
                    times = journal.times() or (None,)
                    start_run_file(
                        run_dir, self.configuration, journal.identity, times[0], journal.extensions
                    )
                if resumed and unfinished:
                    await self._parts.check()
                given_up, limit = await self._sample(
                    unfinished, len(checked), journal, progress, part
                )
                if run_dir is not None and writes_run_file:
                    finish_run_file(run_dir, journal.identity)
            except BaseException:
                journal.close()
                raise
        finally:
            await self._parts.aclose()
        journal.unlock()
        return Rollouts(journal, given_up, limit)

    def _search_of(
        self, agents: Sequence[str], budget: int, params: Mapping[str, Any], seed: int = 0
    ) -> Search:
        return make_search(self._search, agents, budget, seed, **params)

    def begin(
        self,
        prompts: Sequence[Prompt],
        output_dir: str | Path | None,
        extend: Extend = False,
    ) -> Journal:
        """Return the journal of a run over these prompts, new or resumed, locked for this process.

        Raises:
            ConfigError: the journal was created with a different configuration, or another process
                writes it.
        """
        if output_dir is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
        path = ":memory:" if output_dir is None else Path(output_dir) / "journal.sqlite"
        journal = Journal(path, create=True)
        try:
            identity = identity_of_run(self.identity, prompts)
            begin_or_extend(journal, identity, prompts, extend, self._search_of)
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
        # an extended run may have kept its width
        params = {**journal.identity["search_params"], **self._params}
        counts = journal.agent_counts()
        meter = Meter(self._limits, self._prices, self._reward_price)
        meter.resume(counts, journal.counts().reward_flops)
        meter.add_reward(journal.reward_spending)
        if unfinished:
            meter.warn_at_start(self._agents, self._reward_model, counts)
        own_progress = Progress(
            num_prompts * self._budget,
            list(self._agents),
            cost=(lambda: meter.cost) if self._prices or self._reward_price else (lambda: None),
            enabled=self._progress,
            num_prompts=num_prompts,
        )
        failures, most = Failures(), self._allocation.most_plays
        turns = self._allocation.turns(unfinished, journal, meter.prices)
        with own_progress if progress is None else nullcontext(progress) as display:
            display.resume(counts, journal.best_rewards())
            display.add_finished(num_prompts - len(unfinished))
            runner = Runner(
                make_search=lambda seed: self._search_of(list(self._agents), most, params, seed),
                agents=self._agents,
                reward_model=self._reward_model,
                journal=journal,
                task=self._task,
                sampling=self._sampling,
                seed=self._seed,
                plays_in_flight=self._plays_in_flight,
                prompts_in_flight=self._prompts_in_flight,
                patience_s=self._patience_s,
                observers=[meter, display, RewardWatch(self._example.tau), failures],
                loads=display.loads,
                enough=meter.is_reached,
                cost_of=cost_of(self._example.cost, meter.prices),
            )
            with meter.counting_rewards(journal):
                given_up = await runner.run(unfinished, turns)
            if turns is not None and meter.reached is None and not given_up:
                # an adaptive run may end before its budget is spent
                num_scored = sum(count.num_scored for count in journal.agent_counts().values())
                display.unneeded(num_prompts * self._budget - num_scored)
                display.add_finished(len(unfinished))
        for reason, count in failures.reasons.most_common(5):
            logger.warning("%d plays failed: %s", count, reason)
        if not part:
            warn_of_silent(self._agents, journal.agent_counts())
        if len(given_up) == num_prompts and not part:
            reason = failures.reasons.most_common(1)[0][0]
            raise ToaError(f"every agent failed on every prompt, most often with: {reason}")
        return given_up, meter.reached
