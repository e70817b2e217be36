"""Which search is worth its compute? Every search at every budget on the same problems, with the same models.

python recipes/compare.py --config recipes/configs/demo/compare.yaml

Prints a table, writes it under "searches" into results.json, and draws the paper's figure, reward against FLOPs. Each
(search, budget) is a run with a journal of its own: killed and started again, it goes on.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toa_trl.agents import make_agent
from toa_trl.cli import parse, structure, user_errors
from toa_trl.config import SamplingArguments, structured
from toa_trl.errors import ConfigError
from toa_trl.evaluation.comparison import RememberingAgent, RememberingReward, summarize
from toa_trl.evaluation.results import table, update_results
from toa_trl.progress import Progress
from toa_trl.report import comparison_figure
from toa_trl.rewards import make_reward
from toa_trl.sampler import run_until_signal

SHOWN = ("name", "budget", "accuracy", "interval", "oracle_accuracy", "mean_best_reward", "mean_top10_reward", "flops")


@dataclass
class ComparisonArguments(SamplingArguments):
    searches: str = structured("{}", "Searches to compare, each with its parameters: {toa: {tau: 0.1}, parallel: {}}.")
    budgets: list[int] = field(default_factory=lambda: [8, 16, 32], metadata={"help": "Plays per problem."})
    verifier: str = field(
        default="", metadata={"help": "package.module:name of a TRL reward function: 1 right, 0 wrong."}
    )
    results: str = field(default="results.json", metadata={"help": "File whose part 'searches' is replaced."})
    output_dir: str = field(default="", metadata={"help": "Folder of the runs and of the figure."})


def main() -> None:
    from trl import TrlParser

    (config,) = parse(TrlParser(ComparisonArguments, description=__doc__))
    searches = structure("searches", config.searches)
    if not isinstance(searches, dict) or not searches or not config.output_dir:
        raise ConfigError("searches (a mapping of names to parameters) and output_dir are needed")
    prompts = config.load_prompts()
    verifier = make_reward({"kind": "function", "function": config.verifier})
    agents = [RememberingAgent(make_agent(entry), entry) for entry in config.agents]
    reward_model = RememberingReward(make_reward(config.reward), config.reward)
    # every sampler before any sampling: a mistake in the last search shall not show after an hour
    runs = [
        (name, budget, config.sampler(agents, reward_model, name, budget, params))
        for name, params in searches.items()
        for budget in sorted(config.budgets)
    ]

    async def compare() -> list[dict[str, Any]]:
        # all at once: batches are full, and a play that two searches share to the letter is generated once
        total = sum(budget for _, budget, _ in runs) * len(prompts)
        with Progress(total, [agent.name for agent in agents], title=f"{len(runs)} runs") as progress:
            sampling = (
                s.asample(prompts, Path(config.output_dir) / f"{name}-{budget}", progress) for name, budget, s in runs
            )
            rollouts = await asyncio.gather(*sampling)
        await asyncio.gather(*(agent.aclose() for agent in agents), reward_model.aclose())
        return [
            {"name": name, "budget": budget, **await summarize(found, verifier)}
            for (name, budget, _), found in zip(runs, rollouts, strict=True)
        ]

    rows = run_until_signal(compare())
    update_results(Path(config.results), "searches", rows)
    print(table([{key: row[key] for key in SHOWN} for row in rows]))
    for suffix in ("png", "svg"):
        comparison_figure(rows).savefig(Path(config.output_dir) / f"reward_against_flops.{suffix}", dpi=150)


if __name__ == "__main__":
    with user_errors():
        main()
