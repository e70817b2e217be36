"""How good is it? `make_reward` builds a reward model from its configuration entry; one kind, one file, one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.rewards.base import RewardModel
from toa_trl.utils.registry import choose, construct

KINDS = {  # imported when asked for: torch is not loaded for a reward function
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
}

__all__ = ["KINDS", "RewardModel", "make_reward"]


def make_reward(entry: Mapping[str, Any]) -> RewardModel:
    """A reward model from an entry {kind, ...}; the further keys are the arguments of the kind's class.

    Raises:
        ConfigError: an unknown kind or key, a missing one, or a model that cannot be loaded.
    """
    if not isinstance(entry, Mapping) or "kind" not in entry:
        raise ConfigError(f"reward: an entry needs a kind ({', '.join(KINDS)}), not {entry!r}")
    module, _, attribute = choose("reward", "kind", KINDS, entry["kind"]).partition(":")
    factory: Callable[..., RewardModel] = getattr(import_module(module), attribute)
    place = f"reward {entry['kind']!r}"
    return construct(place, factory, params={key: value for key, value in entry.items() if key != "kind"})
