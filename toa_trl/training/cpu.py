"""Training in CPU processes, where accelerate and DeepSpeed need a word said; nothing here changes a training on GPUs."""

from __future__ import annotations

import os
from typing import Any


def prepare_cpu(training: Any) -> None:
    """Have FSDP and DeepSpeed do on CPUs what they do on GPUs; call it before the trainer is made.

    Args:
        training: the trainer's configuration.
    """
    if training.device.type != "cpu":
        return
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate (1.15) shards among GPUs only: of CPU processes it would make DDP, and not say so
        state = training.distributed_state
        state.distributed_type = type(state.distributed_type).MULTI_GPU
    if training.deepspeed_plugin is not None:
        os.environ["DS_ACCELERATOR"] = (
            "cpu"  # on a machine with GPUs it would take one; it looks when it is imported
        )
        import deepspeed.ops

        # DeepSpeed (0.19) would compile for minutes, and torch waits forever for the lock that a killed compilation
        # leaves. Without its shared-memory operation DeepSpeed uses gloo, without its Adam the one of torch.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        training.deepspeed_plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False
