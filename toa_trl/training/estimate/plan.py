"""What the arithmetic of memory.py needs, read from TRL's and accelerate's configurations of a training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from toa_trl.cli.arguments import config_of, option_of
from toa_trl.errors import ConfigError
from toa_trl.training.estimate.memory import Sharding, Training
from toa_trl.utils.files import read_yaml

SEQUENCES = {"sft": 1, "dpo": 2, "reward": 2}  # of a row


def launch_of(arguments: list[str]) -> tuple[str, str | None, str | None]:
    """Recipe and accelerate configuration, of the options or of the launch command in the first line of --config; and the
    accelerate configuration of that line, for whose devices the batch is written.

    Raises:
        ConfigError: no recipe is known, or it trains nothing.
    """
    path, _ = config_of(arguments)
    first = path.read_text(encoding="utf-8").partition("\n")[0] if path else ""
    found = re.search(r"recipes/(\w+)\.py", first)
    recipe = option_of(arguments, "recipe") or (found and found.group(1))
    if recipe not in SEQUENCES:
        none = f"{path} names none in its first line" if path else "no --config, and none is named"
        said = f"{recipe!r} is no training that is estimated" if recipe else none
        raise ConfigError(f"recipe: {said}; give --recipe, one of {', '.join(SEQUENCES)}")
    named = re.search(r"--config_file (\S+)", first)
    written_with = named.group(1) if named else None
    return recipe, option_of(arguments, "accelerate_config") or written_with, written_with


def sharding_of(path: str | None) -> Sharding:
    """What accelerate's configuration says of the devices, and of what they share.

    Raises:
        ConfigError: it cannot be read, or is of a kind that is not estimated.
    """
    if path is None:
        return Sharding()
    content = read_yaml(Path(path), place="accelerate_config: ")
    number = int(content.get("num_processes") or 1)
    kind = str(content.get("distributed_type", "NO"))
    if kind == "DEEPSPEED":
        plugin = content.get("deepspeed_config") or {}
        if file := plugin.get("deepspeed_config_file"):
            zero = json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {})
            plugin = {"zero_stage": zero.get("stage", 0)} | {
                f"{key}_device": (zero.get(key) or {}).get("device")
                for key in ("offload_optimizer", "offload_param")
            }
        offloads = [
            str(plugin.get(f"{key}_device") or "none") != "none"
            for key in ("offload_optimizer", "offload_param")
        ]
        stage = int(plugin.get("zero_stage", 2))
        return Sharding(f"zero{stage}" if stage else "ddp", number, *offloads)
    if kind == "FSDP":
        offload = (
            str((content.get("fsdp_config") or {}).get("fsdp_offload_params", False)).lower()
            == "true"
        )
        return Sharding("fsdp2", number, offload, offload)
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return Sharding("ddp" if number > 1 else "none", number)
    raise ConfigError(f"accelerate_config: {path}: distributed_type {kind} is not estimated")


def training_of(recipe: str, training: Any, model: Any, trained: int, on_cpu: bool) -> Training:
    """What the arithmetic needs of TRL's configurations; every sequence is taken to fill max_length."""
    if not training.max_length:
        raise ConfigError(
            "max_length: a number is needed, or the longest sequence decides what fits"
        )
    flash = "flash" in (model.attn_implementation or "")
    packed = recipe == "sft" and training.packing and training.packing_strategy != "wrapped"
    return Training(
        num_sequences=SEQUENCES[recipe] * training.per_device_train_batch_size,
        length=training.max_length,
        num_trained=trained,
        lora_rank=model.lora_r if model.use_peft else 0,
        lora_dropout=model.lora_dropout > 0 and not getattr(training, "disable_dropout", False),
        weight_bytes=2 if model.dtype in ("bfloat16", "float16") else 4,
        bf16=training.bf16 or training.fp16,
        checkpointing=training.gradient_checkpointing,
        accumulates=training.gradient_accumulation_steps > 1,
        has_reference=recipe == "dpo"
        and not model.use_peft
        and not training.precompute_ref_log_probs,
        has_head=recipe != "reward",
        repeats_keys=not flash
        and (packed or SEQUENCES[recipe] * training.per_device_train_batch_size > 1),
        on_cpu=on_cpu,
    )
