"""How good is it? `make_reward` builds a reward model from its configuration entry.

One kind, one file, one line here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.rewards.base import RewardModel, RewardOptions, as_reward_model
from toa_trl.rewards.replicas import ReplicatedReward
from toa_trl.utils.registry import Registry

# Targets are imported when they are used: a reward function does not load torch.
KINDS: Registry[Any] = Registry(
    key="kind",
    built_in={
        "classifier": "toa_trl.rewards.classifier:ClassifierReward",
        "ultrarm": "toa_trl.rewards.ultrarm:UltraRMReward",
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

__all__ = ["KINDS", "RewardModel", "as_reward_model", "make_reward"]


def make_reward(
    entry: Mapping[str, Any] | Callable[..., Any] | RewardModel, place: str = "reward"
) -> RewardModel:
    """Return the reward model that an entry {kind, ...} describes.

    Args:
        entry: `kind` names the class, the further keys are the arguments of its constructor; or
            a function with TRL's reward signature; or an object with `score`.
        place: path of the entry in the configuration, for errors.

    Raises:
        ConfigError: an unknown kind or key, a missing key, an invalid value, or a model that
            cannot be loaded.
    """
    if not isinstance(entry, Mapping):
        return as_reward_model(entry, place)
    devices = entry.get("devices")
    if devices is None:
        return as_reward_model(KINDS.build(place, entry), place)
    checked = KINDS.check(entry, place)
    if "device" in entry or "device" not in type(checked).model_fields:
        raise ConfigError(
            f"{place}.devices: is for kinds that have a device, instead of device; not for "
            f"{dict(entry)!r}"
        )
    made = [KINDS.build(place, {**entry, "device": device}) for device in devices]
    return ReplicatedReward([as_reward_model(replica, place) for replica in made])
