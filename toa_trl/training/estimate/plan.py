"""Inputs of the arithmetic of memory.py, read from TRL's and accelerate's configurations."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toa_trl.cli.arguments import config_of, option_of
from toa_trl.errors import ConfigError
from toa_trl.training.estimate.head import WHOLE_LOGITS
from toa_trl.training.estimate.model import shape_of
from toa_trl.training.estimate.sizes import GIB, Generation, Shape, Sharding, Training
from toa_trl.utils.files import read_yaml
from toa_trl.utils.methods import BY_RECIPE

# sequences of a row, in one forward pass: TRL's trainers concatenate chosen and rejected responses
SEQUENCES = {"sft": 1, "dpo": 2, "reward": 2, "kto": 1, "orpo": 2, "simpo": 2, "grpo": 1, "rloo": 1}
SAMPLING = BY_RECIPE["grpo"]
PROMPT_TOKENS = 512  # of the longest prompt, where nobody says how many
# bytes of a quantized weight. QLoRA (arXiv 2305.14314), section 3: 4 bits, and 0.5 bits of a
# float32 scale for 64 weights, with double quantization 0.127; LLM.int8() has a scale per row
NF4, NESTED_NF4, INT8 = 4.5 / 8, 4.127 / 8, 1.0
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
    if recipe in BY_RECIPE:
        default = "grpo" if recipe == "grpo" else None
        method = str(option_of(arguments, "method") or default)
        if method not in BY_RECIPE[recipe]:
            raise ConfigError(
                f"method: must be one of {', '.join(BY_RECIPE[recipe])}, not {method}"
            )
        recipe = method
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


def inputs_of(
    recipe: str,
    training: Any,
    model: Any,
    config: Any,
    sharding: Sharding,
    on_cpu: bool,
    gpu_memory: float | None = None,
    reward_bytes: float = 0.0,
    prompt_tokens: int | None = None,
) -> tuple[Shape, Training]:
    """Return the inputs of the arithmetic; every sequence is assumed to fill max_length.

    TRL has a reference model, besides the policy, in DPO and KTO without precomputed
    log-probabilities, and in GRPO and RLOO with beta > 0; never with an adapter, which is switched
    off instead. ORPO, SimPO, SFT and reward modeling have none.

    Args:
        recipe: one of SEQUENCES.
        training: configuration of the trainer.
        model: TRL's ModelConfig.
        config: transformers configuration of the model.
        sharding: of the states.
        on_cpu: whether the training runs on CPUs.
        gpu_memory: GiB of each GPU; None: unknown.
        reward_bytes: of reward models on the device, for GRPO and RLOO.
        prompt_tokens: of the longest prompt, for GRPO and RLOO.

    Raises:
        ConfigError: max_length is not set, or there is no estimate of the model; see `shape_of`,
            `check_sharding` and `quantized_bytes_of`.
    """
    shape, trained = shape_of(config, model, recipe)
    check_sharding(model, sharding)
    samples = recipe in SAMPLING
    length = length_of(training, prompt_tokens) if samples else training.max_length
    if not length:
        raise ConfigError(
            "max_length: a number is needed, because the longest sequence decides what fits"
        )
    num_sequences = SEQUENCES[recipe] * training.per_device_train_batch_size
    is_packed = recipe == "sft" and training.packing and training.packing_strategy != "wrapped"
    has_flash = "flash" in (model.attn_implementation or "")
    drops_out = not vars(training).get("disable_dropout", False)
    dtype = config.dtype if model.dtype == "auto" else model.dtype
    weight_bytes = 2 if str(dtype).removeprefix("torch.") in ("bfloat16", "float16") else 4
    quantized = quantized_bytes_of(model)
    adapter_bytes = 4
    if quantized and recipe in ("orpo", "simpo") and not (model.load_in_4bit and training.bf16):
        weight_bytes = 4  # peft's prepare_model_for_kbit_training
    elif quantized:
        adapter_bytes = 2  # as TRL casts it
    plan = Training(
        num_sequences=num_sequences,
        length=length,
        num_trained=trained,
        lora_rank=model.lora_r if model.use_peft else 0,
        lora_dropout=model.lora_dropout > 0 and drops_out,
        weight_bytes=weight_bytes,
        quantized_bytes=quantized,
        adapter_bytes=adapter_bytes,
        bf16=training.bf16 or training.fp16,
        checkpointing=training.gradient_checkpointing,
        accumulates=training.gradient_accumulation_steps > 1,
        has_reference=_has_reference(recipe, training, model),
        has_head=recipe != "reward",
        whole_logits=_whole_logits(recipe, training),
        prompt_length=length - (training.max_completion_length or 512) if samples else 0,
        generation=generation_of(training, length) if samples else None,
        reward_bytes=reward_bytes,
        device_bytes=None if gpu_memory is None else gpu_memory * GIB,
        repeats_keys=not has_flash and (is_packed or num_sequences > 1),
        on_cpu=on_cpu,
    )
    return shape, plan


def length_of(training: Any, prompt_tokens: int | None) -> int:
    """Return the tokens of the longest prompt with its completion, for GRPO and RLOO."""
    completion = training.max_completion_length or 512
    limit = vars(training).get("vllm_max_model_length")
    return int(prompt_tokens + completion if prompt_tokens else limit or PROMPT_TOKENS + completion)


def generation_of(training: Any, length: int) -> Generation | None:
    """Return what is sampled on the device; None with a vLLM server."""
    if training.use_vllm and training.vllm_mode == "server":
        return None
    return Generation(
        num_sequences=training.per_device_train_batch_size * training.steps_per_generation,
        length=length,
        in_vllm=training.use_vllm,
        vllm_share=training.vllm_gpu_memory_utilization,
        vllm_devices=training.vllm_tensor_parallel_size,
        vllm_sleeps=training.vllm_enable_sleep_mode,
    )


def quantized_bytes_of(model: Any) -> float:
    """Return the bytes of a weight of a quantized linear layer; 0 if none is quantized.

    Raises:
        ConfigError: it is quantized, and trained whole.
    """
    if not (model.load_in_4bit or model.load_in_8bit):
        return 0.0
    if not model.use_peft:
        key = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
        raise ConfigError(f"{key}: a quantized model is trained with an adapter; add --use_peft")
    if model.load_in_8bit:
        return INT8
    return NESTED_NF4 if model.use_bnb_nested_quant else NF4


def check_sharding(model: Any, sharding: Sharding) -> None:
    """Check that there is an estimate of a quantized model on these devices.

    Raises:
        ConfigError: there is none.
    """
    if quantized_bytes_of(model) and sharding.kind in ("zero3", "fsdp2"):
        kind = "ZeRO-3" if sharding.kind == "zero3" else "FSDP"
        raise ConfigError(
            f"load_in_4bit, load_in_8bit: there is no estimate of a quantized model with {kind}, "
            "which spreads its weights only in some storage types; use ddp"
        )


def _has_reference(recipe: str, training: Any, model: Any) -> bool:
    if model.use_peft:
        return False
    if recipe in ("dpo", "kto"):
        return not training.precompute_ref_log_probs
    return recipe in SAMPLING and bool(training.beta)


def _whole_logits(recipe: str, training: Any) -> float:
    if recipe == "simpo" and training.cpo_alpha:
        recipe = "orpo"  # with the same cross entropy
    return WHOLE_LOGITS.get(recipe, 0.0)
