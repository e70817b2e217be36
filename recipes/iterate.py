"""Rounds of sampling, training and evaluation, each with the student of the round before.

python recipes/iterate.py --config recipes/configs/demo/iterate.yaml --rounds 2

Prints, and writes into results.json, how good the student is after every round; report.html shows
it. Every stage is a command in a process of its own, with a log beside its folder; `toa-trl status
<output_dir>/round-1/synthesis --watch 5` follows a sampling. Interrupted at any moment, the same
command resumes; with more --rounds it continues after the last one.
"""

from toa_trl.cli.arguments import user_errors
from toa_trl.cli.options import read_config
from toa_trl.pipeline import run_plan
from toa_trl.pipeline.iteration import IterationConfig, iteration_plan
from toa_trl.utils.aio import run_until_signal
from toa_trl.utils.escape import say


def main() -> None:
    """Run the rounds of an iteration."""
    config = read_config(IterationConfig, description=__doc__)
    plan = iteration_plan(config)
    run_until_signal(run_plan(plan))
    say(f"Done. The student is in {plan.model(config.rounds)}; see {config.output_dir}/report.html")


if __name__ == "__main__":
    with user_errors():
        main()
