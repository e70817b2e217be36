"""What a training needs, before it is started: memory of each GPU, tokens and steps, and a batch that fits.

    python toa_trl/training/estimate/command.py --config recipes/configs/llama3-8b/sft_full.yaml --gpu_memory 80 --gpu H100

Takes every option of the recipe that the configuration is for, as the recipe does, and those of `Estimate` below. The recipe
and accelerate's configuration are those of the launch command in the first line of --config. Parameters are counted on a model
without memory, so that a model's config.json is all that is needed of it. The arithmetic is toa_trl/training/estimate/memory.py;
scripts/bench_estimate.py measures how far it is off.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toa_trl.cli.arguments import option_of, parse, user_errors
from toa_trl.errors import ConfigError
from toa_trl.models.flops import Flops
from toa_trl.models.loading import read_config
from toa_trl.training.data import load_training_data
from toa_trl.training.estimate.fit import largest_batch, remedies
from toa_trl.training.estimate.memory import GIB, Memory, Shape, Sharding, Training, estimate
from toa_trl.training.estimate.plan import SEQUENCES, launch_of, sharding_of, training_of
from toa_trl.training.estimate.tokens import lengths, num_steps, padded_tokens, training_flops
from toa_trl.utils.registry import check_number, check_whole

AUTO_CLASS = {"reward": "AutoModelForSequenceClassification"}
USABLE = 0.9  # of a GPU's memory: CUDA's context, NCCL's buffers and fragmentation take the rest


@dataclass
class Estimate:
    """The options of this script, beside those of the recipe."""

    recipe: str | None = field(
        default=None, metadata={"help": "sft, dpo or reward. Default: of --config's first line."}
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Default: of --config's first line."}
    )
    num_gpus: int | None = field(
        default=None, metadata={"help": "Default: num_processes of accelerate_config."}
    )
    gpu_memory: float | None = field(
        default=None, metadata={"help": "GiB of each GPU, to say what fits."}
    )
    gpu: str | None = field(
        default=None, metadata={"help": "Its name, e.g. H100 or A100, to say how many hours."}
    )
    mfu: float = field(
        default=0.4,
        metadata={"help": "Model FLOPs utilisation, of the GPU's peak, that is assumed."},
    )
    model_config: str | None = field(
        default=None, metadata={"help": "A config.json, where no model is at hand."}
    )
    num_rows: int | None = field(
        default=None, metadata={"help": "Of the data set, where none is at hand."}
    )
    mean_tokens: int | None = field(
        default=None, metadata={"help": "Of its sequences, where none is at hand."}
    )
    num_samples: int = field(
        default=2000, metadata={"help": "Rows to tokenize; the others are taken to be like them."}
    )


def main() -> None:
    from trl import (
        DatasetMixtureConfig,
        DPOConfig,
        ModelConfig,
        RewardConfig,
        ScriptArguments,
        SFTConfig,
        TrlParser,
    )

    arguments = sys.argv[1:]
    recipe, accelerate_config, written_with = launch_of(arguments)
    config_class = {"sft": SFTConfig, "dpo": DPOConfig, "reward": RewardConfig}[recipe]
    parser = TrlParser(
        (Estimate, ScriptArguments, config_class, ModelConfig, DatasetMixtureConfig),
        description=__doc__,
    )
    on_cpu = str(option_of(arguments, "use_cpu")).lower() == "true"
    # bf16 is for GPUs, which the machine that this is asked on may not have
    parsed = parse(parser, [*arguments, "--use_cpu", "True"])
    options, _, training, model, _ = parsed
    if model.load_in_4bit or model.load_in_8bit:
        raise ConfigError(
            "load_in_4bit, load_in_8bit: not estimated yet; leave them out for an upper bound"
        )
    check_number("mfu", options.mfu, 0, above=True)
    sharding = sharding_of(accelerate_config)
    if options.num_gpus is not None:
        check_whole("num_gpus", options.num_gpus, 1)
        kind = "ddp" if sharding.kind == "none" and options.num_gpus > 1 else sharding.kind
        sharding = replace(sharding, kind=kind, num_devices=options.num_gpus)
    config = model_config_of(options, model)
    if model.dtype == "auto":
        model.dtype = str(config.dtype or "float32").removeprefix("torch.")
    shape, trained = shape_of(config, model, recipe)
    plan = training_of(recipe, training, model, trained, on_cpu)
    written_for = sharding_of(written_with or accelerate_config).num_devices
    whole = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * written_for
    )  # of a step

    what = (
        "all of them trained"
        if not model.use_peft
        else f"{number_of(trained)} of an adapter trained"
    )
    name = model.model_name_or_path or options.model_config
    print(f"{recipe} of {name}: {number_of(shape.num_parameters)} parameters, {what}")
    print(f"{devices(sharding, on_cpu)}, {accelerate_config or 'no accelerate configuration'}\n")
    say_memory(estimate(shape, plan, sharding), options.gpu_memory)
    if options.gpu_memory is not None:
        say_batch(shape, plan, sharding, options.gpu_memory, whole, recipe)
    say_data(recipe, parsed, Flops.from_config(config), sharding.num_devices, whole)


def model_config_of(options: Estimate, model: Any) -> Any:
    """The configuration of the model, of its folder, the Hub, or --model_config.

    Raises:
        ConfigError: there is none.
    """
    import transformers

    if options.model_config is None:
        if not model.model_name_or_path:
            raise ConfigError(
                "model_name_or_path: the key is missing; name a model, or give --model_config config.json"
            )
        content = read_config("model_name_or_path", model.model_name_or_path, model.model_revision)
    else:
        path = Path(options.model_config)
        path = path / "config.json" if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"model_config: {path} cannot be read: {error}") from error
    if content.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ConfigError(
            f"model_config: model_type {content.get('model_type')!r} is not known to transformers"
        )
    return transformers.AutoConfig.for_model(**content)


def shape_of(config: Any, model: Any, recipe: str) -> tuple[Shape, int]:
    """The sizes of a model that is built without memory, and how many parameters are trained.

    Raises:
        ConfigError: its blocks are not found, or peft knows no layers for its adapter.
    """
    import torch
    import transformers
    from peft import get_peft_model
    from trl import get_peft_config

    text = config.get_text_config()
    Flops.from_config(config)  # refuses what has another shape
    with torch.device("meta"):
        made = getattr(transformers, AUTO_CLASS.get(recipe, "AutoModelForCausalLM")).from_config(
            config
        )
        number = sum(each.numel() for each in made.parameters())
        blocks = [
            each
            for each in made.modules()
            if isinstance(each, torch.nn.ModuleList) and len(each) == text.num_hidden_layers
        ]
        if not blocks:
            raise ConfigError(f"model_config: the blocks of a {type(made).__name__} are not found")
        block = max(sum(each.numel() for each in layer.parameters()) for layer in blocks[0])
        trained = number
        if model.use_peft:
            try:
                adapted = get_peft_model(made, get_peft_config(model))
            except ValueError as error:
                raise ConfigError(f"lora_target_modules: {' '.join(str(error).split())}") from error
            trained = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    experts = getattr(text, "num_experts_per_tok", None) or 1
    inner = (
        (getattr(text, "moe_intermediate_size", None) or text.intermediate_size) * experts
        if experts > 1
        else text.intermediate_size
    )
    shape = Shape(
        number, block, text.num_hidden_layers, text.hidden_size, inner, heads * head,
        (getattr(text, "num_key_value_heads", None) or heads) * head, text.vocab_size, bool(text.tie_word_embeddings),
    )  # fmt: skip
    return shape, trained


def number_of(count: float) -> str:
    """In millions or billions."""
    return f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.2f} M"


def devices(sharding: Sharding, on_cpu: bool) -> str:
    """In words."""
    kinds = {"none": "", "ddp": ", DDP", "fsdp2": ", FSDP2"}
    said = kinds.get(sharding.kind, f", ZeRO-{sharding.kind[-1]}")
    said += " with offload" if sharding.offload_optimizer or sharding.offload_weights else ""
    number, what = sharding.num_devices, "CPU process" if on_cpu else "GPU"
    return f"{number} {what}{'' if number == 1 else 'es' if on_cpu else 's'}{said}"


def say_memory(memory: Memory, gpu_memory: float | None) -> None:
    """The parts, and whether their sum fits."""
    unit, name = (GIB, "GiB") if memory.total >= GIB else (2**20, "MiB")
    print(f"| {name} on each | |\n| --- | ---: |")
    for part, size in memory.parts.items():
        print(f"| {part} | {size / unit:,.2f} |")
    print(f"| **at the peak, {memory.peak}** | **{memory.total / unit:,.2f}** |")
    if memory.host:
        print(f"| of the host's memory, for each | {memory.host / unit:,.2f} |")
    if gpu_memory is not None:
        fits = memory.total <= USABLE * gpu_memory * GIB
        print(
            f"\n{'Fits' if fits else 'Does not fit'} {gpu_memory:g} GiB, of which {USABLE:.0%} are taken to be usable."
        )


def say_batch(
    shape: Shape, plan: Training, sharding: Sharding, gpu_memory: float, whole: int, recipe: str
) -> None:
    """The largest batch that fits and keeps the global one; else what would make one fit."""
    room, share, per = USABLE * gpu_memory * GIB, whole // sharding.num_devices, SEQUENCES[recipe]
    if whole % sharding.num_devices:
        print(
            f"The global batch of {whole} cannot be divided among {sharding.num_devices} devices; change one of them."
        )
    elif batch := largest_batch(shape, plan, sharding, room, share, per):
        print(
            f"With a global batch of {whole} the largest that fits: --per_device_train_batch_size {batch} "
            f"--gradient_accumulation_steps {share // batch}"
        )
    else:
        print("Not even one row at a time fits. What would make it fit, each by itself:")
        least = replace(plan, num_sequences=per, accumulates=share > 1)
        said = [
            f"- {name}: {size / GIB:,.1f} GiB"
            for name, size in remedies(shape, least, sharding)
            if size <= room
        ]
        print(
            "\n".join(said)
            or "- nothing that this script knows: take more or larger GPUs, or a smaller model"
        )


def say_data(
    recipe: str, parsed: tuple[Any, ...], forward: Flops, num_devices: int, whole: int
) -> None:
    """Tokens, steps and hours."""
    options, _, training, model, _ = parsed
    rows, number, said = lengths_of(recipe, parsed)
    if rows is None:
        print(
            f"\nTokens and steps are not known: {said}. --num_rows and --mean_tokens say how many to reckon with."
        )
        return
    limit = training.max_length
    cut = sum(any(length > limit for length in row) for row in rows) / len(rows)
    rows = [[min(length, limit) for length in row] for row in rows]
    scale = number / len(rows)
    tokens = sum(map(sum, rows)) * scale
    print(
        f"\nData: {said}; {number_of(tokens)} tokens an epoch, {cut:.1%} of the rows cut at max_length {limit}"
    )
    if recipe == "sft" and training.packing:
        num_packed = packed_rows([row[0] for row in rows], limit, training.packing_strategy)
        filled, number = sum(map(sum, rows)) / (num_packed * limit), math.ceil(num_packed * scale)
        print(f"Packed: {number:,} rows of {limit}, {filled:.1%} of them filled")
        computed = 1.0  # what is not filled is not there
    else:
        batch = training.per_device_train_batch_size
        filled = sum(map(sum, rows)) / padded_tokens(rows, batch)
        computed = 1 / filled
        print(f"Padded: {filled:.1%} of a batch of {batch} are tokens, the rest is padding")
    steps = num_steps(number, whole, training.num_train_epochs, training.max_steps)
    epochs = steps * whole / number
    precomputed = getattr(training, "precompute_ref_log_probs", False)
    flops = computed * epochs * scale * training_flops(
        rows, forward, frozen=model.use_peft,
        reference_passes=0 if recipe != "dpo" else 1 / epochs if precomputed else 1,
    )  # fmt: skip
    print(f"Steps: {steps:,} with a global batch of {whole}; {flops:.2e} FLOPs", end="")
    if options.gpu:
        hours = flops / (peak_flops(options.gpu) * options.mfu * num_devices) / 3600
        print(
            f", {hours:,.1f} hours on {num_devices} x {options.gpu} at {options.mfu:.0%} of their peak",
            end="",
        )
    print()


def lengths_of(recipe: str, parsed: tuple[Any, ...]) -> tuple[list[list[int]] | None, int, str]:
    """Tokens of the sequences of some rows, how many rows there are, and where this is from (None: why not)."""
    from transformers import AutoTokenizer
    from trl.data_utils import maybe_convert_to_chatml

    options, script, training, model, mixture = parsed
    if options.num_rows is not None and options.mean_tokens is not None:
        check_whole("num_rows", options.num_rows, 1)
        check_whole("mean_tokens", options.mean_tokens, 1)
        row = [options.mean_tokens] * SEQUENCES[recipe]
        return (
            [row] * min(options.num_rows, 100),
            options.num_rows,
            f"{options.num_rows:,} rows as given",
        )
    training.eval_strategy = "no"
    try:
        name = model.model_name_or_path or str(options.model_config)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=model.model_revision)
        data = load_training_data(
            "sft" if recipe == "sft" else "dpo", script, training, mixture
        ).train
    except (ConfigError, OSError, ValueError) as error:
        return None, 0, str(error).splitlines()[0].rstrip(".")
    if script.dataset_streaming:
        return None, 0, "the data set is streamed"
    sample = data.shuffle(seed=0).select(range(min(len(data), options.num_samples)))
    text = getattr(training, "dataset_text_field", "text")
    rows = [lengths(maybe_convert_to_chatml(row), tokenizer, text) for row in sample]
    counted = "all" if len(rows) == len(data) else f"{len(rows):,}"
    return rows, len(data), f"{len(data):,} rows, {counted} of them tokenized"


def packed_rows(lengths: list[int], max_length: int, strategy: str) -> int:
    """How many rows TRL packs sequences of these lengths into."""
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    return len(
        pack_dataset(
            Dataset.from_dict({"input_ids": [[0] * length for length in lengths]}),
            max_length,
            strategy,
        )
    )


def peak_flops(gpu: str) -> float:
    """Of TRL's table, dense bfloat16.

    Raises:
        ConfigError: it is not in there, or there is no table.
    """
    try:
        from trl.trainer.utils import get_peak_flops
    except ImportError as error:
        raise ConfigError(
            "gpu: the table of peak FLOPs is TRL's, from 1.16 on; leave the key out"
        ) from error
    if (peak := get_peak_flops(gpu, "bfloat16")) is None:
        raise ConfigError(
            f"gpu: {gpu!r} is not in TRL's table of peak FLOPs; for example H100, H200, A100, L40S, L4, A10G"
        )
    return float(peak)


if __name__ == "__main__":
    with user_errors():
        main()
