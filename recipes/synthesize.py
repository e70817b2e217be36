"""From prompts to training data: several models, one search, one reward model.

python recipes/synthesize.py --config recipes/configs/demo/synthesize.yaml

Leaves a folder with the journal, rollouts/, sft/ and dpo/ as parquet, a data set card and report.html. Killed at any
moment, the same command goes on inside its search trees.
"""

from pathlib import Path

from toa_trl.cli import parse, user_errors
from toa_trl.config import SynthesisArguments, now, write_run_yaml
from toa_trl.errors import ConfigError
from toa_trl.report import write_report
from toa_trl.rollouts import Rollouts


def main() -> None:
    from trl import TrlParser

    (config,) = parse(TrlParser(SynthesisArguments, description=__doc__))
    run_dir = Path(config.output_dir)
    if (run_dir / "report.html").exists() and not Rollouts.load(run_dir).unfinished:
        raise ConfigError(f"{run_dir} holds a finished run; choose another output_dir, or delete the folder")

    prompts = config.load_prompts()
    sampler = config.sampler(config.agents, config.reward, config.search, config.budget, config.search_params)
    print(f"{len(prompts)} prompts x {config.budget} plays by {len(config.agents)} agents -> {run_dir}")
    started = now()
    rollouts = sampler.sample(prompts, output_dir=run_dir)

    dropped = rollouts.save(run_dir, sft=config.sft, preference=config.preference)
    write_run_yaml(run_dir / "run.yaml", config, rollouts.identity, started=started, finished=now())
    report = write_report(run_dir)
    for name, reasons in dropped.items():
        for reason, count in reasons.most_common():
            print(f"{name}: {count} of {len(prompts)} prompts give no row: {reason}")
    if rollouts.given_up:
        print(f"{len(rollouts.given_up)} prompts were given up (every agent failed); the same command tries them again")
    print(f"Done. The data are in {run_dir}/sft and {run_dir}/dpo; look at {report}")


if __name__ == "__main__":
    with user_errors():
        main()
