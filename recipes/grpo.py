"""Reinforcement learning with the reward model of a run, with TRL's GRPOTrainer or RLOOTrainer.

accelerate launch recipes/grpo.py --config recipes/configs/demo/grpo.yaml

method: grpo (arXiv 2402.03300) or rloo (2402.14740). Every option of GRPOConfig or RLOOConfig
works. --dataset_name takes a run's folder: its prompts, and unless --reward names another, its
reward model; or any dataset with a column prompt, whose other columns the reward model finds
(kind math: answer). The student starts from --model_name_or_path, such as the result of
recipes/sft.py. LoRA: --use_peft. With --resume_from_checkpoint true the same command starts a
training and resumes it.
"""

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from toa_trl.cli.arguments import option_of, user_errors
from toa_trl.errors import ConfigError
from toa_trl.training import run_training, take_one_gpu
from toa_trl.training.data import TrainingData
from toa_trl.training.options import Options, option
from toa_trl.training.reward_signal import RewardFunc, rewards_of
from toa_trl.utils.config_errors import nearest


@dataclass
class RewardArguments(Options):
    """The options that TRL's configurations do not have."""

    takes_entries: ClassVar = ("reward",)
    method: str = option("grpo or rloo; --help shows the options of the given method.", "grpo")
    reward: str | None = option(
        "Entry of the reward model, such as {kind: classifier, model: ...}, a list of entries "
        "(weighted by reward_weights), or the folder of a run. Default: the reward model of the "
        "run in dataset_name."
    )
    reward_failures: str = option(
        "raise: a completion that cannot be scored ends the training, which can be resumed; skip: "
        "it is left out of its group.",
        "raise",
    )
    trust: bool = option("Run the code that run.yaml names.", False)


def grpo() -> tuple[str, Any, Any]:
    """Return the name, trainer and configuration of GRPO."""
    from trl import GRPOConfig, GRPOTrainer

    return "GRPO", GRPOTrainer, GRPOConfig


def rloo() -> tuple[str, Any, Any]:
    """Return the name, trainer and configuration of RLOO."""
    from trl import RLOOConfig, RLOOTrainer

    return "RLOO", RLOOTrainer, RLOOConfig


METHODS = {"grpo": grpo, "rloo": rloo}


def main() -> None:
    """Train with the method of --method."""
    take_one_gpu()  # before TRL, whose imports look at the devices
    method = option_of(sys.argv[1:], "method") or "grpo"
    if method not in METHODS:
        known = " or ".join(METHODS)
        raise ConfigError(f"method: must be {known}, not {method!r}{nearest(method, METHODS)}")
    name, trainer_class, config_class = METHODS[method]()

    def rewards(data: TrainingData, given: RewardArguments) -> list[RewardFunc]:
        datasets = [str(source["dataset"]) for source in data.sources]
        return rewards_of(given.reward, datasets, given.reward_failures, given.trust)

    run_training(
        name,
        trainer_class,
        config_class,
        data="rollouts",
        description=__doc__,
        further_options=[RewardArguments],
        rewards=rewards,
    )


if __name__ == "__main__":
    with user_errors():
        main()
