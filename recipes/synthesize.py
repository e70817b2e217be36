"""From prompts to training data: several models, one search, one reward model.

python recipes/synthesize.py --config recipes/configs/demo/synthesize.yaml

Leaves a folder with the journal, rollouts/, sft/ and dpo/ as parquet, a dataset card and
report.html. Interrupted at any moment, the same command resumes inside its search trees. --extend
lets a finished run grow: more prompts, a larger budget, further agents.
"""

from functools import partial
from pathlib import Path

from toa_trl.cli.arguments import user_errors
from toa_trl.cli.config import SynthesisConfig
from toa_trl.cli.options import read_config
from toa_trl.distributed.ray import sample_on_ray
from toa_trl.distributed.shards import check_not_sharded
from toa_trl.errors import ConfigError
from toa_trl.hub.push import check_push, push_folder
from toa_trl.rollouts import Rollouts, check_run_target, is_complete
from toa_trl.sampling.budget import is_adaptive
from toa_trl.sampling.progress import Progress
from toa_trl.sampling.run_file import finish_run_file, run_file_of_shards
from toa_trl.types import Prompt
from toa_trl.utils.escape import say


def sample(config: SynthesisConfig, prompts: list[Prompt], run_dir: Path) -> Rollouts:
    """Spend the budget on every prompt, in this process or over a Ray cluster."""
    mean = "on average " if is_adaptive(config.settings()) else ""
    plan = f"{len(prompts)} prompts x {config.budget} plays {mean}by {len(config.agents)} agents"
    if config.runner == "local":
        check_not_sharded(run_dir)
        sampler = config.new_sampler()
        sampler.configuration = config.settings()
        say(f"{plan} -> {run_dir}")
        return sampler.sample(prompts, run_dir, config.extend, export=False)  # see main
    say(f"{plan} -> {run_dir}")
    progress = Progress(len(prompts) * config.budget, ["all agents"])
    with run_file_of_shards(run_dir, config.settings()), progress:
        rollouts = sample_on_ray(
            partial(SynthesisConfig.new_sampler, config),
            prompts,
            run_dir,
            num_shards=config.num_shards,
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            address=config.ray_address,
            on_progress=partial(progress.total, "all agents"),
            extend=config.extend,
        )
    finish_run_file(run_dir, rollouts.identity, rollouts.extensions)
    return rollouts


def main() -> None:
    """Sample a run, and write its data sets and its report."""
    config = read_config(SynthesisConfig, description=__doc__)
    run_dir = Path(config.output_dir)
    check_run_target(run_dir)
    if not config.extend and is_complete(run_dir):
        raise ConfigError(
            f"output_dir: {run_dir} holds a finished run; --extend lets it grow (more prompts, a "
            "larger budget, further agents); choose another folder for another run"
        )

    prompts = config.load_prompts()
    if config.push_to_hub:  # find obstacles before anything is sampled
        check_push(config.push_to_hub, config.hub_private_repo)
    rollouts = sample(config, prompts, run_dir)

    for name, reasons in rollouts.export().items():
        for reason, count in reasons.most_common():
            say(f"{name}: {count} of {len(prompts)} prompts give no row: {reason}")
    if rollouts.limit:
        say(
            f"{rollouts.limit}: {rollouts.unfinished} of {len(prompts)} prompts are unfinished; "
            "repeat the command with a higher limit to resume"
        )
    if rollouts.given_up:
        say(
            f"{len(rollouts.given_up)} prompts were given up because every agent failed; repeat "
            "the command to retry them"
        )
    say(f"Done. The datasets are in {run_dir}/sft and {run_dir}/dpo; see {run_dir}/report.html")
    if config.push_to_hub:
        name = push_folder(run_dir, config.push_to_hub, private=config.hub_private_repo)
        say(f"Pushed to {name}")


if __name__ == "__main__":
    with user_errors():
        main()
