"""From prompts to an evaluated student: run the stages of a pipeline, each in a process of its own.

    toa-trl run pipeline.yaml
    toa-trl run pipeline.yaml --dry_run

Servers are started before the stage that needs them and stopped after it. Interrupted at any
moment, kill -9 included, the same command resumes; `toa-trl status <output_dir>` shows where it is.
"""

import sys
from collections.abc import Sequence

from toa_trl.cli.arguments import user_errors
from toa_trl.cli.options import read_config
from toa_trl.pipeline.checks import check_plan
from toa_trl.pipeline.config import PipelineConfig
from toa_trl.pipeline.dry_run import plan_lines
from toa_trl.pipeline.gpus import check_gpus, visible_gpus
from toa_trl.pipeline.memory import check_trainings
from toa_trl.pipeline.plan import Plan
from toa_trl.pipeline.run import run_plan
from toa_trl.utils.aio import run_until_signal
from toa_trl.utils.escape import say


def main() -> None:
    """Run a pipeline, or print its plan."""
    config = read_config(PipelineConfig, with_option(sys.argv[1:]), __doc__)
    plan = Plan(config)
    check_plan(plan)
    check_trainings(plan, config.dry_run)
    if config.dry_run:
        check_gpus(plan, visible_gpus(), dry_run=True)
        say("\n".join(plan_lines(plan)))
        return
    run_until_signal(run_plan(plan))
    say(f"Done. Everything is in {plan.output}")
    if plan.trainings:
        say(f"The student is in {plan.model(plan.rounds or 1)}")


def with_option(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with --config before a file that comes first."""
    if arguments and not arguments[0].startswith("-"):
        return ["--config", *arguments]
    return list(arguments)


if __name__ == "__main__":
    with user_errors():
        main()
