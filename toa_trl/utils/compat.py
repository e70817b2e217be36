"""Workarounds for single versions of TRL, transformers, accelerate and DeepSpeed.

Each function names the version in which its reason was last seen; drop it once a later lowest
version in pyproject.toml no longer has it. The libraries are imported inside the functions.

What needs more than a function stands with what uses it, and names its version in the same way:
training/references.py (cached log-probs), training/reference_free.py (ORPO and SimPO) and
rewards/process.py (the cache of older code).
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def ignore_own_default() -> None:
    """Hide warnings of transformers 5.23 about gradient_checkpointing.

    TRL 1.16 sets it, and transformers itself looks at `is_gradient_checkpointing` of a model.
    """
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)


def prepare_cpu_training(training: Any) -> None:
    """Make FSDP and DeepSpeed train in CPU processes; call it before the trainer is created.

    - accelerate 1.15: shards among GPUs only; of CPU processes it makes DDP without a warning.
    - DeepSpeed 0.19: compiles its operations for minutes, and torch waits forever for the lock that
      a killed compilation leaves. Without them DeepSpeed uses gloo, and the Adam of torch.
    """
    if training.device.type != "cpu":
        return
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        state = training.distributed_state
        state.distributed_type = type(state.distributed_type).MULTI_GPU
    if training.deepspeed_plugin is not None:
        # read when DeepSpeed is imported; on a machine with GPUs it would choose one
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        training.deepspeed_plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False


@contextmanager
def loading_whole_models() -> Iterator[None]:
    """Load models beside the one in training as they are, also under DeepSpeed ZeRO-3.

    transformers 5: while a ZeRO-3 training is configured, it shards every model that it loads among
    the processes. One that a single process loads would wait for the others forever.
    """
    from transformers.integrations import deepspeed

    configured = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = configured


def unset_device_map(training: Any, model: Any) -> None:
    """Give a trainer of trl.experimental the quantization of its model, and no device map.

    TRL 1.16: its ORPO and CPO trainers take no `quantization_config`, and load models with the
    device map "auto", with which several processes cannot train.

    Args:
        training: configuration of the trainer; its `model_init_kwargs` are replaced.
        model: TRL's ModelConfig.
    """
    from trl import get_quantization_config

    own = {"device_map": None, "quantization_config": get_quantization_config(model)}
    training.model_init_kwargs = {**(training.model_init_kwargs or {}), **own}


def ignore_boolean_buffers(model: Any) -> None:
    """Exclude boolean buffers from DDP, which cannot broadcast them, as TRL 1.16's own script does.

    torch 2.13: DistributedDataParallel takes this from an attribute of the model only.
    """
    buffers = model.named_buffers()
    names = [name for name, buffer in buffers if str(buffer.dtype) == "torch.bool"]
    model._ddp_params_and_buffers_to_ignore = names


def num_masked_sequences(packed: Any) -> int:
    """Return the number of sequences in packed rows that have no token to learn from.

    TRL 1.16: drops such rows, except where it packs them.

    Args:
        packed: dataset with the columns labels and seq_lengths, as SFTTrainer makes it.
    """
    import numpy as np

    columns = ["labels", "seq_lengths"]
    num_masked = 0
    for batch in packed.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        flat = [batch[name].combine_chunks().flatten() for name in columns]
        labels, lengths = (array.to_numpy(zero_copy_only=False) for array in flat)
        starts = np.cumsum(lengths) - lengths
        num_learned = np.add.reduceat(labels != -100, starts)
        num_masked += int((num_learned == 0).sum())
    return num_masked


def peak_flops_of(gpu: str) -> float | None:
    """Return the peak FLOPs per second of a GPU in dense bfloat16, by TRL's table.

    Returns:
        None if the GPU is not in the table; TRL before 1.16 has no such table.
    """
    try:
        from trl.trainer.utils import get_peak_flops
    except ImportError:
        return None

    peak: float | None = get_peak_flops(gpu, "bfloat16")
    return peak


def undo_rope_parameters(config: Any) -> None:
    """Remove a default scaling of the rotary embedding that config.json does not have.

    transformers 5: adds one, which a repository's older code takes for a kind of scaling.

    Args:
        config: configuration whose class comes from a model's repository.
    """
    if (getattr(config, "rope_scaling", None) or {}).get("rope_type") == "default":
        config.rope_scaling = None


def compute_buffers(model: Any) -> None:
    """Compute the buffers again that no checkpoint holds.

    transformers 5: creates a model without values, and leaves such buffers uninitialized unless it
    knows their class. The rotary embedding of a repository's older code, and with it every score,
    would be noise.

    Args:
        model: loaded model whose class comes from its repository.
    """
    from torch import nn

    register = nn.Module.register_parameter

    def without_values(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = without_values  # type: ignore[assignment, method-assign]
    try:
        twin = type(model)(model.config)  # only its buffers take memory
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
    for name, module in twin.named_modules():
        for buffer in module._non_persistent_buffers_set:
            value = getattr(module, buffer)
            model.get_submodule(name).register_buffer(buffer, value, persistent=False)


def restore_removed_names() -> None:
    """Define the docstring that ArmoRM's own code imports; transformers 5 has removed it."""
    from transformers.models.llama import modeling_llama

    if not hasattr(modeling_llama, "LLAMA_INPUTS_DOCSTRING"):
        modeling_llama.LLAMA_INPUTS_DOCSTRING = ""
