"""Mistakes that can be seen before a model is loaded: devices, model, adapter, checkpoint."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from toa_trl.cli.arguments import config_of, option_of, parse
from toa_trl.errors import ConfigError
from toa_trl.hub.model_card import model_lineage
from toa_trl.hub.push import identify
from toa_trl.models.loading import (
    STATE,
    is_adapter,
    last_checkpoint,
    module_names,
    num_accelerators,
    read_config,
)
from toa_trl.utils.redaction import public_name
from toa_trl.utils.registry import check_keys

SHAPE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
TRUE = ("true", "yes", "y", "t", "1")  # as HfArgumentParser and accelerate read it


def parse_training(parser: Any, arguments: list[str] | None = None) -> tuple[Any, ...]:
    """`toa_trl.cli.arguments.parse`, after a look at what the configuration asks of this machine.

    Raises:
        ConfigError: an unknown key, also in `datasets`; more processes on this machine than it has GPUs; a value that TRL
            refuses.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _check_devices(option_of(arguments, "use_cpu"))
    path, config = config_of(arguments)
    if parts := config.get("datasets"):
        mixture = next(
            each for each in parser.dataclass_types if "datasets" in each.__dataclass_fields__
        )
        (part_type,) = get_args(get_type_hints(mixture)["datasets"])
        for number, part in enumerate(parts):
            if not isinstance(part, dict) or "path" not in part:
                raise ConfigError(
                    f"{path}: datasets[{number}]: a mapping with a path is needed, not {part!r}"
                )
            check_keys(
                f"{path}: datasets[{number}]", part, [field.name for field in fields(part_type)]
            )
    return parse(parser, arguments)


def _check_devices(use_cpu: Any) -> None:
    """Raises:
    ConfigError: a launcher has started more processes on this machine than it has GPUs.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    on_cpu = any(
        str(said).lower() in TRUE for said in (use_cpu, os.environ.get("ACCELERATE_USE_CPU"))
    )
    if processes > 1 and not on_cpu and (found := num_accelerators()) < processes:
        has = f"has {found} GPU{'s' if found > 1 else ''}" if found else "has no GPU"
        raise ConfigError(
            f"{processes} processes are started on this machine, which {has}: give accelerate launch --num_processes "
            f"{max(found, 1)}, or try it on CPUs with --use_cpu True --bf16 False"
        )


def check_model(model: Any, training: Any) -> None:
    """Look at model, adapter targets and checkpoint, and give the trainer what ModelConfig says, as TRL's own scripts do.

    Args:
        model: TRL's ModelConfig.
        training: the trainer's configuration; gets its model_init_kwargs, and the checkpoint to go on from.

    Raises:
        ConfigError: no model, a folder without one, an adapter alone, a LoRA target that the model does not have, or a
            checkpoint that is not there, not whole, or of another model; or the model shall be pushed, and may not.
        ToaError: it shall be pushed, and the Hub does not answer.
    """
    name = model.model_name_or_path
    if not name:
        raise ConfigError(
            "model_name_or_path: the key is missing; name a folder or a model on the Hub"
        )
    if is_adapter(name):
        raise ConfigError(
            f"model_name_or_path: {name} holds an adapter alone; merge it into its base first: "
            f"python toa_trl/training/merge_adapter.py {name} {name}-merged"
        )
    here = read_config("model_name_or_path", name, model.model_revision)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    if model.use_peft:
        _check_lora_targets(model, training.trust_remote_code)
    if (
        training.push_to_hub and os.environ.get("RANK", "0") == "0"
    ):  # a launch ends when one of its processes does
        identify(training.hub_model_id or Path(training.output_dir).name, training.hub_token)
    training.resume_from_checkpoint = _checkpoint(training)
    if training.resume_from_checkpoint:
        resized = bool(
            getattr(training, "chat_template_path", None)
        )  # its tokens join the vocabulary
        shape = {key: value for key, value in here.items() if not (resized and key == "vocab_size")}
        _check_same_model(Path(training.resume_from_checkpoint), model, shape)


def _check_lora_targets(model: Any, trust_remote_code: bool) -> None:
    """Raises:
    ConfigError: a target that the model does not have. (peft complains only where it has none of them.)
    """
    targets = model.lora_target_modules
    if targets is None or targets == "all-linear":
        return
    auto_class = (
        "AutoModelForSequenceClassification"
        if model.lora_task_type == "SEQ_CLS"
        else "AutoModelForCausalLM"
    )
    name, options = (
        model.model_name_or_path,
        {"trust_remote_code": trust_remote_code, "revision": model.model_revision},
    )
    names = module_names("model_name_or_path", name, auto_class, **options)
    known = dict.fromkeys(name.rpartition(".")[2] for name in names)
    if isinstance(targets, str) and targets in known:
        # TRL makes a text of a single one, and peft a pattern of a text
        model.lora_target_modules = targets = [targets]
    try:
        if isinstance(targets, str):
            missing = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
        else:
            missing = [
                target
                for target in targets
                if not any(f".{name}".endswith(f".{target}") for name in names)
            ]
    except re.error as error:
        raise ConfigError(
            f"lora_target_modules: {targets!r} is no regular expression: {error}"
        ) from error
    if names and missing:
        raise ConfigError(
            f"lora_target_modules: {model.model_name_or_path} has no {', '.join(missing)}; it has: {', '.join(known)}, or "
            "take all-linear"
        )


def _checkpoint(training: Any) -> str | None:
    """The checkpoint to go on from. `true`: the newest whole one in output_dir, or none, so that one command starts a
    training and goes on with it."""
    asked = training.resume_from_checkpoint
    if asked is None or str(asked).lower() == "false":
        return None
    if str(asked).lower() != "true":
        if not (Path(asked) / STATE).is_file():
            raise ConfigError(
                f"resume_from_checkpoint: {asked} is no checkpoint, for it has no {STATE}; name a folder such as "
                "checkpoint-100, or true for the newest in output_dir"
            )
        return str(asked)
    found = last_checkpoint(Path(training.output_dir))
    return str(found) if found else None


def _check_same_model(checkpoint: Path, model: Any, here: Mapping[str, Any]) -> None:
    """Raises:
    ConfigError: the checkpoint is of a model of another shape, or of an adapter where a whole model is trained, or the
        other way round.
    """
    place = f"resume_from_checkpoint: {checkpoint}"
    adapter = checkpoint / "adapter_config.json"
    if adapter.is_file() != model.use_peft:
        has, asked = ("an adapter", "without") if adapter.is_file() else ("a whole model", "with")
        raise ConfigError(f"{place} holds {has}, and this training is {asked} --use_peft")
    if adapter.is_file():
        saved = json.loads(adapter.read_text(encoding="utf-8"))
        base = str(saved.get("base_model_name_or_path"))
        there = {"its base": base, "its rank": saved.get("r")}
        here = {"its base": model.model_name_or_path, "its rank": model.lora_r}
        if os.path.realpath(base) == os.path.realpath(model.model_name_or_path):
            here["its base"] = base
    else:
        there = read_config(place, str(checkpoint))
        here = {key: here[key] for key in SHAPE if key in here and key in there}
    if base_then := model_lineage(str(checkpoint)).get("base_model"):
        there["what it began with"] = base_then
        here["what it began with"] = public_name(model.model_name_or_path)
    said = [
        f"{key} {there.get(key)!r}, and here {value!r}"
        for key, value in here.items()
        if there.get(key) != value
    ]
    if said:
        raise ConfigError(f"{place} is of another model: {', '.join(said)}")
