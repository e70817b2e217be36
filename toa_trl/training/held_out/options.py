"""Options of the evaluation during training, and checks of them before a model is loaded."""

import os
from dataclasses import dataclass
from typing import Any, ClassVar

from toa_trl.errors import ConfigError
from toa_trl.training.options import Options, option
from toa_trl.utils.config import NonNegativeFloat, NonNegativeInt, PositiveInt

PREFIX = "held_out_"
FIGURES = ("reward", "accuracy", "verifier_score", "truncated", "words")


@dataclass
class HeldOutArguments(Options):
    """Options of the evaluation on held-out prompts, at every evaluation of the trainer."""

    ranges: ClassVar = {
        "held_out_samples": NonNegativeInt,
        "held_out_max_tokens": PositiveInt | None,
        "held_out_temperature": NonNegativeFloat,
        "held_out_batch_size": PositiveInt | None,
        "early_stopping_patience": PositiveInt | None,
        "early_stopping_threshold": NonNegativeFloat,
    }
    takes_entries: ClassVar = ("held_out_reward", "held_out_verifier")
    held_out_samples: int = option("Held-out prompts that the model answers and is scored on.", 0)
    held_out_reward: str | None = option("Entry of the reward model. Default: that of the run.")
    held_out_verifier: str | None = option(
        "Function or entry that says what is correct. Default: the task's."
    )
    held_out_max_tokens: int | None = option("Of a response. Default: the run's, or 1024.")
    held_out_temperature: float = option("0: greedy.", 0.0)
    held_out_batch_size: int | None = option("Default: per_device_eval_batch_size.")
    held_out_trust: bool = option("Run the code that run.yaml names (reward, task).", False)
    early_stopping_patience: int | None = option(
        "Stop after so many evaluations without a better metric_for_best_model."
    )
    early_stopping_threshold: float = option("Least change of the metric that is better.", 0.0)


def check_options(options: HeldOutArguments, training: Any, method: str) -> None:
    """Check the options together with the trainer's.

    Raises:
        ConfigError: the trainer's options do not allow a value.
    """
    evaluates = str(getattr(training.eval_strategy, "value", training.eval_strategy)) != "no"
    if options.held_out_samples:
        if method == "reward modeling":
            raise ConfigError("held_out_samples: a reward model writes no responses")
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise ConfigError(
                "held_out_samples: a model that FSDP shards cannot be sampled during training; "
                "take ddp or a DeepSpeed configuration, or leave it out"
            )
        if not evaluates:
            raise ConfigError(
                "held_out_samples: eval_strategy decides when; give eval_strategy: steps and "
                "eval_steps"
            )
    metric = (training.metric_for_best_model or "").removeprefix("eval_")
    if metric.startswith(PREFIX):
        known = [PREFIX + figure for figure in FIGURES]
        if metric not in known:
            raise ConfigError(
                f"metric_for_best_model: {metric!r} is not measured; there are {', '.join(known)}"
            )
        if not options.held_out_samples:
            raise ConfigError(
                f"metric_for_best_model: {metric} is measured on the responses of "
                "held_out_samples; give their number"
            )
    if options.early_stopping_patience is not None and not (evaluates and metric):
        raise ConfigError(
            "early_stopping_patience: eval_strategy and metric_for_best_model are needed, such as "
            "eval_strategy: steps and metric_for_best_model: held_out_reward"
        )
