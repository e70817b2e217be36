"""The comparison of searches: every search at every budget, and what students learn from each."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from toa_trl.agents import make_agent, make_sampling
from toa_trl.cli.comparison_config import ComparisonConfig
from toa_trl.data.tables import is_table
from toa_trl.errors import ConfigError
from toa_trl.evaluation.comparison import (
    COSTS,
    RememberingAgent,
    RememberingReward,
    Run,
    SearchResult,
    check_verifier,
    measure_search,
    summarize,
)
from toa_trl.evaluation.costs import Costs
from toa_trl.evaluation.differences import paired_differences, student_differences
from toa_trl.evaluation.judges import kept_judge, kept_reward
from toa_trl.evaluation.outputs import check_all, closing_all
from toa_trl.evaluation.results import check_results, of_columns, terminal_tables, update_results
from toa_trl.evaluation.selected import add_second_rewards, selected_win_rates, with_win_rates
from toa_trl.evaluation.students import Judge, Lesson, TrainingConfig, table_rows, teach
from toa_trl.evaluation.verifier import make_verifier
from toa_trl.models.devices import free_memory
from toa_trl.report.audit import Index
from toa_trl.report.figures import FIGURE_FILES, is_figure, save_figures
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.limits import Meter, prices_of
from toa_trl.sampling.progress import Progress
from toa_trl.tasks import Task, make_task
from toa_trl.types import Prompt, Sampling
from toa_trl.utils.config import validate
from toa_trl.utils.escape import say
from toa_trl.utils.files import expand_paths
from toa_trl.utils.stage import stage
from toa_trl.utils.targets import check_folder, check_not_in_run, check_ours

logger = logging.getLogger(__name__)

OF_SEARCHES = """name budget accuracy interval oracle_accuracy verifier_score
    verifier_score_interval mean_best_reward mean_top10_reward second_reward second_reward_interval
    win_rate win_rate_interval"""
OF_COSTS = "name budget plays tokens flops reward_flops cost"
OF_DIFFERENCES = """name budget baseline baseline_budget measure difference interval
    smallest_visible"""
OF_WIN_RATES = """name budget baseline baseline_budget by win_rate interval
    win_rate_matched_length mean_length"""
OF_STUDENTS = "search budget accuracy interval accuracy_std gap_interval data_accuracy plays flops"
OF_STUDENT_DIFFERENCES = """search budget baseline baseline_budget difference interval
    smallest_visible flops_ratio"""


async def compare_searches(config: ComparisonConfig, say: Callable[[str], None] = say) -> None:
    """Sample with every search at every budget, and write "searches" of results.json.

    With `baseline` also its "search_differences", paired over the prompts, and with a judge or a
    second reward its "search_win_rates"; with `train` also its "data_table": students learn what
    each search found, and with `baseline` its "student_differences".

    Raises:
        ConfigError: the configuration is invalid, or `train` has no verifier that decides.
        ToaError: sampling or a training failed.
    """
    output, results = Path(config.output_dir), Path(config.results)
    check_folder(output, "output_dir")
    check_not_in_run(output, "output_dir")
    check_ours({output / name: is_figure for name in FIGURE_FILES})
    check_results(results)
    prompts, task = config.load_prompts(), make_task(config.task)
    async with closing_all(make_verifier(config.verifier, task, prompts)) as (verifier,):
        await _compare(config, prompts, task, verifier, say)


async def _compare(
    config: ComparisonConfig,
    prompts: list[Prompt],
    task: Task,
    verifier: RewardModel | None,
    say: Callable[[str], None],
) -> None:
    output, results = Path(config.output_dir), Path(config.results)
    if config.train and (verifier is None or verifier.graded):
        raise ConfigError(
            "verifier: train needs one that says 1 for correct and 0 for wrong, and the task has "
            "none of its own; set verifier, or remove train"
        )
    cells = config.cells
    seeds = config.seeds or [config.seed]
    compared = [Run(*cell, seed) for cell, seed in product(cells, seeds)]
    training, taught, judge = None, list[Run](), None
    if config.train:
        training = validate(TrainingConfig, config.train, "train")
        taught = [Run(*cell, seed) for cell, seed in product(config.taught, training.seeds)]
        heldout = {"prompts": training.heldout, "num_prompts": None, "prompts_shuffle_seed": None}
        if Path(expand_paths(training.heldout)).is_file():
            heldout["prompts_config"] = None
        problems = config.model_copy(update=heldout).load_prompts()
        sampling = make_sampling("sampling", Sampling(), config.sampling)
        assert verifier is not None  # checked above
        judge = Judge(problems, task, verifier, sampling, config.verifier, training.student)
        judge.check_new(prompts)
    folders = {run: output / run.folder(config.seed) for run in dict.fromkeys(compared + taught)}
    if training is not None:
        check_ours({folders[run] / training.data: is_table for run in taught})
    if verifier is not None:
        await check_verifier(verifier, task, prompts[0])
    judges = _Judges(config)
    async with closing_all(judges.second_reward, judges.pairs):
        await check_all([], judges.second_reward, judges.pairs)
        rollouts, costs, untrained = await _sample_all(config, prompts, folders, judge, training)
        free_memory()  # the models of the sampling are gone: judges and a training need it
        measured = {}
        with stage("measuring runs", len(rollouts)) as advance:
            for run, done in rollouts.items():
                measured[run] = await measure_search(done, task, verifier, costs)
                advance()
        rates = await judges.measure({run: measured[run] for run in compared}, prompts, task)
    del judges
    against = (config.baseline, config.baseline_budget)
    if compared:
        by_cell = {cell: [measured[Run(*cell, seed)] for seed in seeds] for cell in cells}
        rows = []
        for cell, results_of in by_cell.items():
            equal_plays = config.compared[cell[0]].allocation["kind"] == "uniform"
            summary = summarize(results_of, equal_plays)
            rows.append({"name": cell[0], "budget": cell[1], **summary})
        rows = with_win_rates(rows, rates)
        update_results(results, "searches", rows)
        say(_tables(rows, OF_SEARCHES))
        say(_tables(rows, OF_COSTS))
        save_figures(rows, output)
        if config.baseline:
            differences = paired_differences(by_cell, *against)
            update_results(results, "search_differences", differences)
            say(_tables(differences, OF_DIFFERENCES))
        if rates:
            update_results(results, "search_win_rates", rates)
            say(_tables(rates, OF_WIN_RATES))
    if training is not None and judge is not None:
        lessons = []
        for run in taught:
            done = rollouts[run]
            rows = done.to_sft() if training.data == "sft" else done.to_preference()
            lessons.append(Lesson(run, folders[run], rows.to_list(), summarize([measured[run]])))
        accuracies = {of.run: await judge.accuracy(of.rows, prompts) for of in lessons}
        right = await teach(training, lessons, judge)
        overlapping = _num_overlapping(prompts, training.heldout, task.question)
        students = table_rows(lessons, accuracies, untrained, right)
        rows = [{**row, "num_overlapping": overlapping} for row in students]
        update_results(results, "data_table", rows)
        say(_tables(rows, OF_STUDENTS))
        if config.baseline:
            differences = student_differences(rows, right, *against)
            update_results(results, "student_differences", differences)
            say(_tables(differences, OF_STUDENT_DIFFERENCES))
    say(f"{results} is written")


class _Judges:
    """Judge the selected responses; scores and verdicts are kept in output_dir."""

    def __init__(self, config: ComparisonConfig) -> None:
        self._baseline, self._baseline_budget = config.baseline, config.baseline_budget
        folder = Path(config.output_dir)  # both are loaded after the sampling
        self.second_reward = kept_reward(config.second_reward, "second_reward", folder)
        self.pairs = kept_judge(config.judge, folder)

    async def measure(
        self, results: Mapping[Run, SearchResult], prompts: Sequence[Prompt], task: Task
    ) -> list[dict[str, Any]]:
        """Add the second rewards to the results, and return the win rates over the baseline."""
        by_id = {prompt.id: prompt for prompt in prompts}
        if self.second_reward is not None:
            await add_second_rewards(results, by_id, task, self.second_reward)
            await self.second_reward.aclose()  # the judge needs its memory
        if not self._baseline:
            return []
        against = (self._baseline, self._baseline_budget)
        return await selected_win_rates(results, by_id, task, *against, self.pairs)


async def _sample_all(
    config: ComparisonConfig,
    prompts: list[Prompt],
    folders: Mapping[Run, Path],
    judge: Judge | None,
    training: TrainingConfig | None,
) -> tuple[dict[Run, Rollouts], Costs, Any]:
    """Return the rollouts of every run, how their costs are counted, and the untrained student."""
    untrained: Any = []
    if judge is not None and training is not None:  # before the agents need the memory
        untrained = await judge.verdicts("untrained", training.base, Path(config.output_dir))
    agents = [RememberingAgent(make_agent(entry), entry) for entry in config.agents]
    reward_model = RememberingReward(make_reward(config.reward), config.reward)
    samplers = {
        run: config.sampler(
            config.compared[run.search].name,
            run.budget,
            search_params=config.compared[run.search].params,
            allocation=config.compared[run.search].allocation,
            seed=run.seed,
            agents=agents,
            reward_model=reward_model,
        )
        for run in folders
    }
    total = sum(run.budget for run in folders) * len(prompts)
    async with closing_all(*agents, reward_model):
        # all runs at once: batches are full, and a play that two searches share is generated once
        names = [agent.name for agent in agents]
        title, num_prompts = f"{len(folders)} runs", len(folders) * len(prompts)
        with Progress(total, names, title=title, num_prompts=num_prompts) as progress:
            sampling = [
                sampler.asample(prompts, folders[run], progress)
                for run, sampler in samplers.items()
            ]
            rollouts = await asyncio.gather(*sampling)
    costs = Costs(
        Meter({}, prices_of(config.agents)).prices,
        {agent.name: agent.compute for agent in agents},
        config.flops_context,
    )
    for name, model in costs.models.items():
        if config.flops_context is not None and model is None:
            logger.warning("flops_context: the size of agent %r is unknown; add `config`", name)
    return dict(zip(folders, rollouts, strict=True)), costs, untrained


def _num_overlapping(
    prompts: Sequence[Prompt], heldout: str, question: Callable[[Prompt], str]
) -> int | None:
    """Return how many prompts overlap with the held-out problems, if these are in a file."""
    index = Index([heldout] if Path(heldout).is_file() else [])
    if not index.sets:
        return None
    overlaps = [any(index.search(question(prompt), prompt=True)) for prompt in prompts]
    return sum(overlaps)


def _tables(rows: Sequence[Mapping[str, Any]], keys: str) -> str:
    """Return tables of these keys, without those that no row has."""
    measured = []
    for key in keys.split():
        values = [row[key] for row in rows if row.get(key) is not None]
        if any(values) or (values and key not in COSTS):  # costs are often unknown
            measured.append(key)
    return terminal_tables(of_columns(rows, measured))
