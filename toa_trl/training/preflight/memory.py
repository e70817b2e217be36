"""Whether a training fits the memory of its GPUs, as toa_trl.training.estimate counts it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.training.estimate.fit import remedies
from toa_trl.training.estimate.memory import estimate, states
from toa_trl.training.estimate.model import model_config_of
from toa_trl.training.estimate.plan import SAMPLING, SEQUENCES, inputs_of
from toa_trl.training.estimate.sizes import GIB, Sharding
from toa_trl.training.estimate.text import USABLE, devices
from toa_trl.training.findings import Finding


def memory_finding(
    method: str,
    training: Any,
    model: Any,
    sharding: Sharding,
    gpu_memory: float | None,
    on_cpu: bool = False,
    reward_bytes: float = 0.0,
) -> Finding:
    """Return what a training needs of each device, and whether that fits.

    Args:
        method: name of the method, such as "SFT".
        training: configuration of the trainer.
        model: TRL's ModelConfig.
        sharding: of the model's states.
        gpu_memory: GiB of each GPU; None: unknown.
        on_cpu: whether it trains on CPUs.
        reward_bytes: of the reward models that GRPO and RLOO load on the device.
    """
    recipe = "reward" if method == "reward modeling" else method.lower()
    if recipe not in SEQUENCES:
        return Finding("fine", "memory", f"there is no estimate for {method}")
    try:
        given = (recipe, training, model, model_config_of(None, model), sharding, on_cpu)
        shape, plan = inputs_of(*given, gpu_memory, reward_bytes)
    except ConfigError as error:
        return Finding("fine", "memory", f"there is no estimate: {error}")
    peak = estimate(shape, plan, sharding).total / GIB
    each = "each of " if sharding.num_devices > 1 else ""
    assumed = "where a row fills max_length"
    if recipe in SAMPLING:
        assumed = f"with prompts of {plan.prompt_length} tokens"
    need = f"{peak:,.1f} GiB on {each}{devices(sharding, on_cpu)}, {assumed}"
    if gpu_memory is None:
        return Finding("fine", "memory", f"needs {need}")
    if peak <= USABLE * gpu_memory:
        return Finding("fine", "memory", f"needs {need}, of {gpu_memory:,.0f} GiB")
    kept = sum(states(shape, plan, sharding)[0].values()) / GIB
    smallest = replace(
        plan, num_sequences=SEQUENCES[recipe], accumulates=training.gradient_accumulation_steps > 1
    )
    room = USABLE * gpu_memory * GIB
    sizes = {"--per_device_train_batch_size 1": estimate(shape, smallest, sharding).total}
    sizes |= dict(remedies(shape, smallest, sharding))
    helpful = [change for change, size in sizes.items() if size <= room]
    remedy = f"any of these makes it fit: {'; '.join(helpful)}" if helpful else "use more GPUs"
    if kept > gpu_memory:
        what = f"weights, gradients and optimizer alone need {kept:,.1f} GiB of {gpu_memory:,.0f}"
        return Finding("error", "memory", what, remedy)
    what = f"needs {need}, and {gpu_memory:,.0f} GiB are available"
    return Finding("warning", "memory", what, remedy)


def running_sharding(environment: Mapping[str, str] = os.environ) -> Sharding:
    """Return how `accelerate launch` has told this process to spread the states."""
    number = int(environment.get("WORLD_SIZE", 1))
    if environment.get("ACCELERATE_USE_DEEPSPEED") == "true":
        stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
        offloads = [
            environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{of}_DEVICE", "none") != "none"
            for of in ("OPTIMIZER", "PARAM")
        ]
        return Sharding(f"zero{stage}" if stage else "ddp", number, *offloads)
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        offload = environment.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
        return Sharding("fsdp2", number, offload, offload)
    return Sharding("ddp" if number > 1 else "none", number)


def gpu_memory_here() -> float | None:
    """Return the GiB of this process's GPU; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB)
