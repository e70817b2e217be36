"""How good is it? `make_reward` builds a reward model from its configuration entry; one kind, one file, one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.rewards.base import RewardModel, RewardOptions, as_reward_model
from toa_trl.utils.registry import Registry

KINDS: Registry[Any] = (
    Registry(  # imported when asked for: torch is not loaded for a reward function
        key="kind",
        built_in={
            "classifier": "toa_trl.rewards.classifier:ClassifierReward",
            "likelihood": "toa_trl.rewards.likelihood:LikelihoodReward",
            "vllm": "toa_trl.rewards.vllm:VLLMReward",
            "http": "toa_trl.rewards.http:HTTPReward",
            "function": "toa_trl.rewards.function:FunctionReward",
            "process": "toa_trl.rewards.process:ProcessReward",
            "math": "toa_trl.rewards.math:MathReward",
            "chrf": "toa_trl.rewards.overlap:ChrfReward",
            "bleu": "toa_trl.rewards.overlap:BleuReward",
            "length": "toa_trl.rewards.length:LengthReward",
            "judge": "toa_trl.rewards.judge:JudgeReward",
            "weighted_sum": "toa_trl.rewards.combine:WeightedSumReward",
            "minimum": "toa_trl.rewards.combine:MinimumReward",
            "held_out": "toa_trl.rewards.combine:HeldOutReward",
        },
        group="toa_trl.rewards",
        common=RewardOptions,
    )
)

__all__ = ["KINDS", "RewardModel", "as_reward_model", "make_reward"]


def make_reward(
    entry: Mapping[str, Any] | Callable[..., Any] | RewardModel,
) -> RewardModel:
    """Return the reward model that an entry {kind, ...} describes.

    Args:
        entry: `kind` names the class, the further keys are the arguments of its constructor; or a function with
            TRL's reward signature; or an object with `score`.

    Raises:
        ConfigError: an unknown kind or key, a missing one, or a model that cannot be loaded.
    """
    if not isinstance(entry, Mapping):
        return as_reward_model(entry)
    if "kind" not in entry:
        raise ConfigError(
            f"reward: an entry needs a kind ({', '.join(KINDS.targets)}), not {entry!r}"
        )
    return as_reward_model(KINDS.build(f"reward {entry['kind']!r}", entry))
