"""From prompts to training data: several models, one search, one reward model.

python recipes/synthesize.py --config recipes/configs/demo/synthesize.yaml

Leaves a folder with the journal, rollouts/, sft/ and dpo/ as parquet, a data set card and report.html. Killed at any
moment, the same command goes on inside its search trees.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from toa_trl.cli.arguments import parse, user_errors
from toa_trl.cli.config import SynthesisArguments
from toa_trl.distributed.ray import sample_on_ray
from toa_trl.distributed.shards import check_not_sharded
from toa_trl.errors import ConfigError
from toa_trl.hub.push import check_push, push_folder
from toa_trl.report.page import write_report
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.progress import Progress
from toa_trl.sampling.run_file import finish_run_file, start_run_file
from toa_trl.types import Prompt


def sample(config: SynthesisArguments, prompts: list[Prompt], run_dir: Path) -> Rollouts:
    """Spend the budget on every prompt, in this process or over a Ray cluster."""
    plan = f"{len(prompts)} prompts x {config.budget} plays by {len(config.agents)} agents -> {run_dir}"
    if config.runner == "local":
        check_not_sharded(run_dir)
        sampler = config.new_sampler()
        print(plan)
        sampler.configuration = asdict(config)
        return sampler.sample(prompts, output_dir=run_dir)
    print(plan)
    start_run_file(run_dir, asdict(config), identity=None)
    with Progress(len(prompts) * config.budget, ["all agents"]) as progress:
        rollouts = sample_on_ray(
            partial(SynthesisArguments.new_sampler, config),
            prompts,
            run_dir,
            num_shards=config.num_shards,
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            address=config.ray_address,
            on_progress=partial(progress.total, "all agents"),
        )
    finish_run_file(run_dir, rollouts.identity)
    return rollouts


def main() -> None:
    from trl import TrlParser

    (config,) = parse(TrlParser(SynthesisArguments, description=__doc__))
    run_dir = Path(config.output_dir)
    if (run_dir / "report.html").exists() and not Rollouts.load(run_dir).unfinished:
        raise ConfigError(
            f"{run_dir} holds a finished run; choose another output_dir, or delete the folder"
        )

    prompts = config.load_prompts()
    if config.push_to_hub:  # what is in its way shall show before the sampling
        check_push(config.push_to_hub, config.hub_private_repo)
    rollouts = sample(config, prompts, run_dir)

    dropped = rollouts.save(run_dir)  # as run.yaml has it
    report = write_report(run_dir)
    for name, reasons in dropped.items():
        for reason, count in reasons.most_common():
            print(f"{name}: {count} of {len(prompts)} prompts give no row: {reason}")
    if rollouts.limit:
        print(
            f"{rollouts.limit}: {rollouts.unfinished} of {len(prompts)} prompts are unfinished; with a higher limit the same "
            "command goes on"
        )
    if rollouts.given_up:
        print(
            f"{len(rollouts.given_up)} prompts were given up (every agent failed); the same command tries them again"
        )
    print(f"Done. The data are in {run_dir}/sft and {run_dir}/dpo; look at {report}")
    if config.push_to_hub:
        print(
            f"Pushed to {push_folder(run_dir, config.push_to_hub, private=config.hub_private_repo)}"
        )


if __name__ == "__main__":
    with user_errors():
        main()
