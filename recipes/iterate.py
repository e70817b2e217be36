"""Rounds of sampling, training and evaluation, each with the student of the round before among the agents.

python recipes/iterate.py --config recipes/configs/demo/iterate.yaml --rounds 2

Prints, and writes into results.json, how good the student is after every round; report.html shows it. The other recipes
run as a person would start them, each with a log beside its folder; `python -m toa_trl status <output_dir>/round-1/synthesis
--watch 5` looks into a sampling. Killed at any moment, the same command goes on; with more --rounds it goes on from the last.
"""

from dataclasses import dataclass, field
from typing import Optional

from toa_trl.cli.arguments import parse, structure, user_errors
from toa_trl.cli.config import structured
from toa_trl.training.iteration import Plan, run_rounds
from toa_trl.utils.aio import run_until_signal


@dataclass
class IterationArguments:
    """How the student becomes better, round after round."""

    rounds: int = field(default=2, metadata={"help": "How many."})
    student: str = structured(
        "{}", "{name, engine: transformers | vllm, model, ...}: an agent, and the model trained."
    )
    synthesize: str = structured(
        "{}", "Keys of recipes/synthesize.py; the student joins the agents."
    )
    train: str = structured(
        "[]",
        "Stages of a training: [{name: sft, data: sft | dpo, command: accelerate launch ...}].",
    )
    evaluate: str = structured("{}", "Keys of recipes/evaluate.py, on held-out prompts.")
    seed: int = field(
        default=0, metadata={"help": "Of round 1; that of each next round is 1 higher."}
    )
    prompts_per_round: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "Every round takes the next so many prompts. Default: all take the same."
        },
    )
    student_from_round: int = field(
        default=1,
        metadata={
            "help": "The first round with the student among the agents; in round 1 it is untrained."
        },
    )
    output_dir: str = field(default="", metadata={"help": "Folder of all rounds."})


def main() -> None:
    from trl import TrlParser

    (config,) = parse(TrlParser(IterationArguments, description=__doc__))
    keys = ("student", "synthesize", "train", "evaluate")
    parts = {key: structure(key, getattr(config, key)) for key in keys}
    settings = {
        key: getattr(config, key)
        for key in ("output_dir", "seed", "prompts_per_round", "student_from_round")
    }
    plan = Plan(**parts, **settings)
    run_until_signal(run_rounds(plan, config.rounds))
    print(
        f"Done. The student is in {plan.model(config.rounds)}; look at {config.output_dir}/report.html"
    )


if __name__ == "__main__":
    with user_errors():
        main()
