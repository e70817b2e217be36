"""The comparison of searches: every search at every budget, and what students learn from each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from toa_trl.agents import make_agent, make_sampling
from toa_trl.cli.comparison_config import ComparisonConfig
from toa_trl.data.tables import is_table
from toa_trl.errors import ConfigError
from toa_trl.evaluation.comparison import (
    RememberingAgent,
    RememberingReward,
    Run,
    measure_search,
    paired_differences,
    summarize,
)
from toa_trl.evaluation.outputs import closing_all
from toa_trl.evaluation.results import check_results, markdown_table, update_results
from toa_trl.evaluation.students import Judge, Lesson, TrainingConfig, data_table
from toa_trl.evaluation.verifier import make_verifier
from toa_trl.report.audit import Index
from toa_trl.report.figures import FIGURE_FILES, is_figure, save_figures
from toa_trl.rewards import make_reward
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.progress import Progress
from toa_trl.tasks import make_task
from toa_trl.types import Prompt, Sampling
from toa_trl.utils.config import validate
from toa_trl.utils.files import expand_home
from toa_trl.utils.targets import check_folder, check_not_in_run, check_ours

OF_SEARCHES = [
    "name",
    "budget",
    "accuracy",
    "interval",
    "oracle_accuracy",
    "verifier_score",
    "verifier_score_interval",
    "mean_best_reward",
    "mean_top10_reward",
    "flops",
]
OF_DIFFERENCES = [
    "name",
    "baseline",
    "budget",
    "measure",
    "difference",
    "interval",
    "smallest_visible",
]
OF_STUDENTS = [
    "search",
    "accuracy",
    "interval",
    "accuracy_std",
    "gap_interval",
    "data_accuracy",
    "flops",
]


async def compare_searches(config: ComparisonConfig, say: Callable[[str], None] = print) -> None:
    """Sample with every search at every budget, and write "searches" of results.json.

    With `baseline` also its "search_differences", paired over the prompts; with `train` also its
    "data_table": students learn what each search found at equal budgets.

    Args:
        config: of the comparison.
        say: gets the tables.

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
    verifier = make_verifier(config.verifier, task, prompts)
    if config.train and (verifier is None or verifier.graded):
        raise ConfigError(
            "verifier: train needs one that says 1 for correct and 0 for wrong, and the task has "
            "none of its own; set verifier, or remove train"
        )
    cells = list(product(config.compared, sorted(config.budgets)))
    seeds = config.seeds or [config.seed]
    compared = [Run(*cell, seed) for cell, seed in product(cells, seeds)]
    training, taught, judge = None, list[Run](), None
    if config.train:
        training = validate(TrainingConfig, config.train, "train")
        taught = [
            Run(label, training.budget, seed)
            for label, seed in product(config.compared, training.seeds)
        ]
        heldout = {"prompts": training.heldout, "num_prompts": None, "prompts_shuffle_seed": None}
        if Path(expand_home(training.heldout)).is_file():
            heldout["prompts_config"] = None
        problems = config.model_copy(update=heldout).load_prompts()
        sampling = make_sampling("sampling", Sampling(), config.sampling)
        assert verifier is not None  # checked above
        judge = Judge(problems, task, verifier, sampling, config.verifier)
        judge.check_new(prompts)
    folders = {run: output / run.folder(config.seed) for run in dict.fromkeys(compared + taught)}
    check_ours({folders[run] / "sft": is_table for run in taught})
    rollouts, untrained = await _sample_all(config, prompts, folders, judge, training)
    # the models of the sampling are gone: a training needs their memory
    measured = {run: await measure_search(rollouts[run], task, verifier) for run in rollouts}
    if compared:
        by_cell = {cell: [measured[Run(*cell, seed)] for seed in seeds] for cell in cells}
        rows = [{"name": cell[0], "budget": cell[1], **summarize(by_cell[cell])} for cell in cells]
        update_results(results, "searches", rows)
        say(_table(rows, OF_SEARCHES))
        save_figures(rows, output)
        if config.baseline:
            differences = paired_differences(by_cell, config.baseline)
            update_results(results, "search_differences", differences)
            say(_table(differences, OF_DIFFERENCES))
    if training is not None and judge is not None:
        lessons = [
            Lesson(run, folders[run], rollouts[run].to_sft().to_list(), summarize([measured[run]]))
            for run in taught
        ]
        overlapping = _num_overlapping(prompts, training.heldout, task.question)
        students = await data_table(training, lessons, judge, untrained, prompts)
        rows = [{**row, "num_overlapping": overlapping} for row in students]
        update_results(results, "data_table", rows)
        say(_table(rows, OF_STUDENTS))


async def _sample_all(
    config: ComparisonConfig,
    prompts: list[Prompt],
    folders: Mapping[Run, Path],
    judge: Judge | None,
    training: TrainingConfig | None,
) -> tuple[dict[Run, Rollouts], Any]:
    """Return the rollouts of every run, and the verdict on the student before training."""
    agents = [RememberingAgent(make_agent(entry), entry) for entry in config.agents]
    reward_model = RememberingReward(make_reward(config.reward), config.reward)
    samplers = {
        run: config.sampler(
            config.compared[run.search].name,
            run.budget,
            search_params=config.compared[run.search].params,
            seed=run.seed,
            agents=agents,
            reward_model=reward_model,
        )
        for run in folders
    }
    total = sum(run.budget for run in folders) * len(prompts)
    async with closing_all(*agents, reward_model):
        # first the student, then all runs at once: errors show early, batches are full, and a play
        # that two searches share is generated once
        untrained: Any = []
        if judge is not None and training is not None:
            untrained = await judge.verdicts("untrained", training.base, Path(config.output_dir))
        names = [agent.name for agent in agents]
        with Progress(total, names, title=f"{len(folders)} runs") as progress:
            sampling = [
                sampler.asample(prompts, folders[run], progress)
                for run, sampler in samplers.items()
            ]
            rollouts = await asyncio.gather(*sampling)
    return dict(zip(folders, rollouts, strict=True)), untrained


def _num_overlapping(
    prompts: Sequence[Prompt], heldout: str, question: Callable[[Prompt], str]
) -> int | None:
    """Return how many prompts overlap with the held-out problems, if these are in a file."""
    index = Index([heldout] if Path(heldout).is_file() else [])
    if not index.sets:
        return None
    overlaps = [any(index.search(question(prompt), prompt=True)) for prompt in prompts]
    return sum(overlaps)


def _table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    measured = [key for key in keys if any(row.get(key) is not None for row in rows)]
    return markdown_table([{key: row.get(key) for key in measured} for row in rows])
