"""Which search is worth its compute? Every search at every budget on the same problems, with the same models.

python recipes/compare.py --config recipes/configs/demo/compare.yaml

Prints and writes "searches" of results.json, and draws the paper's figures: reward against FLOPs, and over N. With `train`
also its "data_table": students learn what each search found at equal budgets. Killed and started again, it goes on.
"""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toa_trl.agents import make_agent, make_sampling
from toa_trl.cli.arguments import parse, structure, user_errors
from toa_trl.cli.config import SamplingArguments, make_verifier, structured
from toa_trl.errors import ConfigError
from toa_trl.evaluation.comparison import RememberingAgent, RememberingReward, Run, summarize_search
from toa_trl.evaluation.outputs import closing_all
from toa_trl.evaluation.results import markdown_table, update_results
from toa_trl.evaluation.students import Judge, Lesson, TrainingConfig, data_table
from toa_trl.report.audit import Index
from toa_trl.report.figures import save_figures
from toa_trl.rewards import make_reward
from toa_trl.sampling.progress import Progress
from toa_trl.tasks import make_task
from toa_trl.types import Sampling
from toa_trl.utils.aio import run_until_signal
from toa_trl.utils.config import validate

SHOWN = (
    "name",
    "budget",
    "accuracy",
    "interval",
    "oracle_accuracy",
    "mean_best_reward",
    "mean_top10_reward",
    "flops",
)
SHOWN_OF_STUDENTS = (
    "search",
    "accuracy",
    "interval",
    "accuracy_std",
    "gap_interval",
    "data_accuracy",
    "flops",
)


@dataclass
class ComparisonArguments(SamplingArguments):
    searches: str = structured(
        "{}", "Searches to compare, each with its parameters: {toa: {tau: 0.1}, parallel: {}}."
    )
    budgets: list[int] = field(
        default_factory=lambda: [8, 16, 32], metadata={"help": "Plays per problem; may be []."}
    )
    verifier: str = structured(
        "", "1 right, 0 wrong: {kind: math} or a TRL reward function, package.module:name."
    )
    train: str = structured("{}", "For the data table: {command, base, heldout, budget, seeds}.")
    results: str = field(
        default="results.json", metadata={"help": "File whose parts are replaced."}
    )
    output_dir: str = field(
        default="", metadata={"help": "Folder of the runs, the figures and the students."}
    )


async def compare(config: Any) -> None:
    searches, train = structure("searches", config.searches), structure("train", config.train)
    if (
        not isinstance(searches, dict)
        or not searches
        or not config.output_dir
        or not (config.budgets or train)
    ):
        raise ConfigError(
            "searches (a mapping of names to parameters), output_dir, and budgets or train are needed"
        )
    output, results = Path(config.output_dir), Path(config.results)
    prompts, task = config.load_prompts(), make_task(config.task)
    verifier = make_verifier(config.verifier, task, prompts)
    if verifier is None:
        raise ConfigError(
            "verifier: what says whether a response is right? The task has no verifier of its own"
        )
    agents = [RememberingAgent(make_agent(entry), entry) for entry in config.agents]
    reward_model = RememberingReward(make_reward(config.reward), config.reward)
    compared = [
        Run(name, budget, config.seed) for name in searches for budget in sorted(config.budgets)
    ]
    training = validate(TrainingConfig, train, "train") if train else None
    taught = (
        [Run(name, training.budget, seed) for name in searches for seed in training.seeds]
        if training
        else []
    )
    if training:
        problems = replace(config, prompts=training.heldout, num_prompts=None).load_prompts()
        judge = Judge(
            problems,
            task,
            verifier,
            make_sampling("sampling", Sampling(), config.sampling),
            config.verifier,
        )
        judge.check_new(prompts)
        index = Index([file for file in [training.heldout] if Path(file).is_file()])
        near = (
            sum(any(index.search(task.question(p), prompt=True)) for p in prompts)
            if index.sets
            else None
        )
    # every sampler, and the student to begin with, before any sampling: a mistake shall not show after an hour
    runs = {
        run: replace(config, seed=run.seed).sampler(
            agents, reward_model, run.search, run.budget, searches[run.search]
        )
        for run in dict.fromkeys(compared + taught)
    }
    folders = {run: output / run.folder(config.seed) for run in runs}
    async with closing_all(*agents, reward_model):
        untrained = await judge.verdicts("untrained", training.base, output) if training else []
        # all at once: batches are full, and a play that two searches share to the letter is generated once
        total = sum(run.budget for run in runs) * len(prompts)
        with Progress(
            total, [agent.name for agent in agents], title=f"{len(runs)} runs"
        ) as progress:
            sampling = (
                sampler.asample(prompts, folders[run], progress) for run, sampler in runs.items()
            )
            rollouts = dict(zip(runs, await asyncio.gather(*sampling), strict=True))
    del agents, reward_model, runs  # a training needs their memory
    summaries = {
        run: await summarize_search(found, task, verifier) for run, found in rollouts.items()
    }
    if compared:
        rows = [{"name": run.search, "budget": run.budget, **summaries[run]} for run in compared]
        update_results(results, "searches", rows)
        print(markdown_table([{key: row[key] for key in SHOWN} for row in rows]))
        save_figures(rows, output)
    if training:
        lessons = [
            Lesson(run, folders[run], rollouts[run].to_sft().to_list(), summaries[run])
            for run in taught
        ]
        found = await data_table(training, lessons, judge, untrained, prompts)
        update_results(
            results, "data_table", rows := [{**row, "num_overlapping": near} for row in found]
        )
        print(markdown_table([{key: row.get(key) for key in SHOWN_OF_STUDENTS} for row in rows]))


def main() -> None:
    from trl import TrlParser

    run_until_signal(compare(*parse(TrlParser(ComparisonArguments, description=__doc__))))


if __name__ == "__main__":
    with user_errors():
        main()
