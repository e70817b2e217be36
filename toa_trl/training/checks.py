"""Checks before a model is loaded: devices, model, adapter, checkpoint."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import Field

from toa_trl.cli.arguments import config_of, option_of, parse
from toa_trl.errors import ConfigError
from toa_trl.hub.model_card import model_lineage
from toa_trl.hub.push import identify
from toa_trl.models.devices import num_accelerators
from toa_trl.models.sources import STATE, is_adapter, last_checkpoint, module_shapes, read_config
from toa_trl.training.options import is_true
from toa_trl.utils.config import validate
from toa_trl.utils.config_errors import unknown_key
from toa_trl.utils.redaction import public_name
from toa_trl.utils.targets import check_folder, check_not_in_run, is_json

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what numpy takes
SHAPE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
# what transformers, TRL and peft save into output_dir
SAVED = re.compile(
    r"README\.md|lineage\.json|(adapter_|generation_)?config\.json|checkpoint-\d+|tokenizer.*"
    r"|.*\.(safetensors|bin|index\.json)|(special|added)_tokens.*\.json|chat_template.*"
    r"|vocab\..*|merges\.txt"
)


def take_one_gpu() -> None:
    """Let a single process see one GPU, unless CUDA_VISIBLE_DEVICES says which.

    TRL would spread the model over all of them. CUDA reads the variable when it is first used.
    """
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def parse_training(parser: Any, arguments: list[str] | None = None) -> tuple[Any, ...]:
    """Return `toa_trl.cli.arguments.parse`, after checks of devices and of the key `datasets`.

    Args:
        parser: a TrlParser with TRL's DatasetMixtureConfig.
        arguments: of the command line; by default of sys.argv.

    Raises:
        ConfigError: an unknown key, also in `datasets`; more processes on this machine than it has
            GPUs; a value that TRL refuses.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _check_devices(option_of(arguments, "use_cpu"))
    path, config = config_of(arguments)
    if config.get("datasets"):
        _check_mixture(f"{path}: datasets", config["datasets"], parser.dataclass_types)
    parsed = parse(parser, arguments)
    for options in parsed:
        if hasattr(options, "seed"):
            validate(Seed, options.seed, "seed")
    return parsed


def _check_mixture(place: str, parts: Sequence[Any], option_types: Sequence[Any]) -> None:
    mixture = next(kind for kind in option_types if "datasets" in kind.__dataclass_fields__)
    (part_type,) = get_args(get_type_hints(mixture)["datasets"])
    known = [field.name for field in fields(part_type)]
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or "path" not in part:
            raise ConfigError(f"{place}[{number}]: a mapping with a path is needed, not {part!r}")
        for key in part:
            if key not in known:
                raise ConfigError(f"{place}[{number}]: {unknown_key(key, known)}")


def _check_devices(use_cpu: Any) -> None:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    settings = (use_cpu, os.environ.get("ACCELERATE_USE_CPU"))
    if processes == 1 or any(map(is_true, settings)):
        return
    num_gpus = num_accelerators()
    if num_gpus < processes:
        has = f"has {num_gpus} GPU{'s' if num_gpus > 1 else ''}" if num_gpus else "has no GPU"
        raise ConfigError(
            f"{processes} processes are started on this machine, which {has}: give accelerate "
            f"launch --num_processes {max(num_gpus, 1)}, or use CPUs with --use_cpu True "
            "--bf16 False"
        )


def check_output_dir(folder: Path) -> None:
    """Check that a training may write into a folder; nothing is changed.

    Raises:
        ConfigError: it cannot be written, it is a run's or a part of one, or a file would be
            replaced that was not written by a training of this package.
    """
    check_folder(folder, "output_dir")
    check_not_in_run(folder, "output_dir")
    if not folder.is_dir() or is_json(folder / "lineage.json", old={"base_model", "data"}):
        return
    for path in sorted(folder.iterdir()):
        if SAVED.fullmatch(path.name):
            raise ConfigError(
                f"output_dir: {path} was not written by a training of toa_trl, so it is not "
                "replaced; move it away, or choose another folder"
            )


def check_model(model: Any, training: Any) -> None:
    """Check model, adapter targets and checkpoint, and complete the trainer's configuration.

    Args:
        model: TRL's ModelConfig.
        training: configuration of the trainer; gets `model_init_kwargs`, as TRL's own scripts set
            them, and the checkpoint to resume from.

    Raises:
        ConfigError: output_dir may not be written (see `check_output_dir`), no model, a folder
            without one, an adapter alone, a LoRA target that the model does not have, or a
            checkpoint that is missing, incomplete, or of another model; or the model is to be
            pushed, and the token may not push it.
        ToaError: it is to be pushed, and the Hub does not answer.
    """
    check_output_dir(Path(training.output_dir))
    name = model.model_name_or_path
    if not name:
        raise ConfigError(
            "model_name_or_path: the key is missing; name a folder or a model on the Hub"
        )
    if is_adapter(name):
        raise ConfigError(
            f"model_name_or_path: {name} holds an adapter alone; merge it into its base first: "
            f"toa-trl merge-adapter {name} {name}-merged"
        )
    config = read_config("model_name_or_path", name, model.model_revision)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    if model.use_peft:
        _check_lora_targets(model, training.trust_remote_code)
    # one process asks; a launch ends when any of its processes fails
    if training.push_to_hub and os.environ.get("RANK", "0") == "0":
        identify(training.hub_model_id or Path(training.output_dir).name, training.hub_token)
    training.resume_from_checkpoint = _checkpoint_of(training)
    if training.resume_from_checkpoint:
        if vars(training).get("chat_template_path"):  # SFT adds its tokens to the vocabulary
            config.pop("vocab_size", None)
        _check_same_model(Path(training.resume_from_checkpoint), model, config)


def _check_lora_targets(model: Any, trust_remote_code: bool) -> None:
    """Refuse a target that the model does not have; peft complains only if it has none of them."""
    targets = model.lora_target_modules
    if targets is None or targets == "all-linear":
        return
    is_reward_model = model.lora_task_type == "SEQ_CLS"
    shapes = module_shapes(
        "model_name_or_path",
        model.model_name_or_path,
        "AutoModelForSequenceClassification" if is_reward_model else "AutoModelForCausalLM",
        trust_remote_code=trust_remote_code,
        revision=model.model_revision,
    )
    names = list(shapes)
    known = dict.fromkeys(name.rpartition(".")[2] for name in names)
    if isinstance(targets, str) and targets in known:
        # TRL makes a string of a list of one, and peft takes a string for a regular expression
        model.lora_target_modules = targets = [targets]
    try:
        missing = _missing_targets(targets, names)
    except re.error as error:
        raise ConfigError(
            f"lora_target_modules: {targets!r} is not a regular expression: {error}"
        ) from error
    if names and missing:
        raise ConfigError(
            f"lora_target_modules: {model.model_name_or_path} has no {', '.join(missing)}; it has: "
            f"{', '.join(known)}, or take all-linear"
        )


def _missing_targets(targets: str | Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the targets that match no module, as peft matches: a pattern, or ends of names."""
    if isinstance(targets, str):
        return [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    ends = tuple(f".{name}" for name in names)
    return [target for target in targets if not any(end.endswith(f".{target}") for end in ends)]


def _checkpoint_of(training: Any) -> str | None:
    """Return the checkpoint to resume from.

    `true` is the newest complete one in output_dir or none, so that one command starts a training
    and resumes it.
    """
    requested = training.resume_from_checkpoint
    if requested is None or str(requested).lower() == "false":
        return None
    if str(requested).lower() == "true":
        newest = last_checkpoint(Path(training.output_dir))
        return str(newest) if newest else None
    if not (Path(requested) / STATE).is_file():
        raise ConfigError(
            f"resume_from_checkpoint: {requested} is not a checkpoint, as it has no {STATE}; name "
            "a folder such as checkpoint-100, or true for the newest in output_dir"
        )
    return str(requested)


def _check_same_model(checkpoint: Path, model: Any, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model, or one that trains other parts of it."""
    place = f"resume_from_checkpoint: {checkpoint}"
    name = model.model_name_or_path
    adapter = checkpoint / "adapter_config.json"
    if adapter.is_file() != model.use_peft:
        has, given = ("an adapter", "without") if adapter.is_file() else ("a whole model", "with")
        raise ConfigError(f"{place} holds {has}, and this training is {given} --use_peft")
    saved: dict[str, Any]
    expected: dict[str, Any]
    if adapter.is_file():
        content = json.loads(adapter.read_text(encoding="utf-8"))
        base = str(content.get("base_model_name_or_path"))
        same_folder = os.path.realpath(base) == os.path.realpath(name)
        saved = {"its base": base, "its rank": content.get("r")}
        expected = {"its base": base if same_folder else name, "its rank": model.lora_r}
    else:
        saved = read_config(place, str(checkpoint))
        expected = {key: config[key] for key in SHAPE if key in config and key in saved}
    trained_from = model_lineage(str(checkpoint)).get("base_model")
    if trained_from:
        saved["the model that was trained"] = trained_from
        expected["the model that was trained"] = public_name(name)
    differences = [
        f"{key} {saved.get(key)!r}, and here {value!r}"
        for key, value in expected.items()
        if saved.get(key) != value
    ]
    if differences:
        raise ConfigError(f"{place} is of another model: {', '.join(differences)}")
