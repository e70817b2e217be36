"""Inputs of the arithmetic of memory.py, read from TRL's and accelerate's configurations."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toa_trl.cli.arguments import config_of, option_of
from toa_trl.errors import ConfigError
from toa_trl.training.estimate.memory import Sharding, Training
from toa_trl.utils.files import read_yaml

SEQUENCES = {"sft": 1, "dpo": 2, "reward": 2}  # of a row
ACCELERATE_CONFIGS = Path(__file__).parents[2] / "accelerate_configs"
RECIPE = re.compile(r"recipes/(\w+)\.py|\btoa[-_]trl (\w+)")
ACCELERATE_CONFIG = re.compile(r"--(?:config_file|accelerate_config)[ =](\S+)")
OFFLOADS = ("offload_optimizer", "offload_param")


def launch_of(arguments: list[str]) -> tuple[str, str | None, str | None]:
    """Return what is launched, by the options or the command in the first line of --config.

    Returns:
        Recipe; accelerate configuration; accelerate configuration of the command, for whose number
        of devices the batch size is written.

    Raises:
        ConfigError: the recipe is unknown, or has no estimate.
    """
    path, _ = config_of(arguments)
    recipe = recipe_of(arguments)
    if recipe not in SEQUENCES:
        known = ", ".join(SEQUENCES)
        if recipe:
            problem = f"there is no estimate of {recipe!r}"
        else:
            problem = f"the first line of {path} names none" if path else "there is no --config"
        raise ConfigError(f"recipe: {problem}; give --recipe, one of {known}")
    launch_config = accelerate_config_of(path)
    return recipe, option_of(arguments, "accelerate_config") or launch_config, launch_config


def recipe_of(arguments: list[str]) -> str | None:
    """Return the recipe of --recipe, or of the command in the first line of --config."""
    path, _ = config_of(arguments)
    command = RECIPE.search(_first_line(path))
    named = option_of(arguments, "recipe")
    if named is not None or command is None:
        return None if named is None else str(named)
    return command[1] or command[2]


def _first_line(path: Path | None) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0] if path else ""


def accelerate_config_of(path: Path | None) -> str | None:
    """Return the accelerate configuration of the command in a file's first line, if it has one."""
    named = ACCELERATE_CONFIG.search(_first_line(path))
    return named[1] if named else None


def sharding_of(path: str | None) -> Sharding:
    """Return the devices of an accelerate configuration, and how states are spread over them.

    Args:
        path: file, or name of a configuration of the package, such as zero3; None: one device.

    Raises:
        ConfigError: it cannot be read, or is of a kind without an estimate.
    """
    if path is None:
        return Sharding()
    name = path.removeprefix("accelerate_configs/").removesuffix(".yaml")
    bundled = ACCELERATE_CONFIGS / f"{name}.yaml"
    use_bundled = bundled.is_file() and not Path(path).exists()
    content = read_yaml(bundled if use_bundled else Path(path), place="accelerate_config: ")
    number = int(content.get("num_processes") or 1)
    kind = str(content.get("distributed_type", "NO"))
    if kind == "DEEPSPEED":
        return _deepspeed_sharding(content.get("deepspeed_config") or {}, number)
    if kind == "FSDP":
        settings = content.get("fsdp_config") or {}
        offload = str(settings.get("fsdp_offload_params", False)).lower() == "true"
        return Sharding("fsdp2", number, offload, offload)
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return Sharding("ddp" if number > 1 else "none", number)
    raise ConfigError(f"accelerate_config: {path}: there is no estimate for {kind}")


def _deepspeed_sharding(plugin: Mapping[str, Any], number: int) -> Sharding:
    stage = plugin.get("zero_stage", 2)
    offload_to = [plugin.get(f"{key}_device") for key in OFFLOADS]
    if plugin.get("deepspeed_config_file"):
        content = json.loads(Path(plugin["deepspeed_config_file"]).read_text(encoding="utf-8"))
        zero = content.get("zero_optimization", {})
        stage = zero.get("stage", 0)
        offload_to = [(zero.get(key) or {}).get("device") for key in OFFLOADS]
    offloads = [str(device or "none") != "none" for device in offload_to]
    return Sharding(f"zero{stage}" if int(stage) else "ddp", number, *offloads)


def training_of(recipe: str, training: Any, model: Any, trained: int, on_cpu: bool) -> Training:
    """Return the inputs of the arithmetic; every sequence is assumed to fill max_length.

    Args:
        recipe: sft, dpo or reward.
        training: configuration of the trainer.
        model: TRL's ModelConfig.
        trained: number of parameters that are trained.
        on_cpu: whether the training runs on CPUs.

    Raises:
        ConfigError: max_length is not set.
    """
    if not training.max_length:
        raise ConfigError(
            "max_length: a number is needed, because the longest sequence decides what fits"
        )
    num_sequences = SEQUENCES[recipe] * training.per_device_train_batch_size
    is_packed = recipe == "sft" and training.packing and training.packing_strategy != "wrapped"
    has_flash = "flash" in (model.attn_implementation or "")
    drops_out = not vars(training).get("disable_dropout", False)
    own_reference = recipe == "dpo" and not model.use_peft
    return Training(
        num_sequences=num_sequences,
        length=training.max_length,
        num_trained=trained,
        lora_rank=model.lora_r if model.use_peft else 0,
        lora_dropout=model.lora_dropout > 0 and drops_out,
        weight_bytes=2 if model.dtype in ("bfloat16", "float16") else 4,
        bf16=training.bf16 or training.fp16,
        checkpointing=training.gradient_checkpointing,
        accumulates=training.gradient_accumulation_steps > 1,
        has_reference=own_reference and not training.precompute_ref_log_probs,
        has_head=recipe != "reward",
        repeats_keys=not has_flash and (is_packed or num_sequences > 1),
        on_cpu=on_cpu,
    )
