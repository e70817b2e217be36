"""Sizes of a model, read from its configuration and from the model built without memory."""

import json
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.models.flops import flops_of
from toa_trl.models.sources import read_config
from toa_trl.training.estimate.sizes import Shape

AUTO_CLASS = {"reward": "AutoModelForSequenceClassification"}


def model_config_of(model_config: str | None, model: Any) -> Any:
    """Return the transformers configuration of the model, from its folder, the Hub or a file.

    Args:
        model_config: a config.json or its folder; None: that of the model.
        model: TRL's ModelConfig.

    Raises:
        ConfigError: there is none.
    """
    import transformers

    if model_config is not None:
        content = _read_json(Path(model_config))
    elif model.model_name_or_path:
        content = read_config("model_name_or_path", model.model_name_or_path, model.model_revision)
    else:
        raise ConfigError(
            "model_name_or_path: the key is missing; name a model, or give --model_config "
            "config.json"
        )
    model_type = content.get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        raise ConfigError(f"model_config: transformers has no model_type {model_type!r}")
    return transformers.AutoConfig.for_model(**content)


def shape_of(config: Any, model: Any, recipe: str) -> tuple[Shape, int]:
    """Return the sizes of a model, and the number of parameters that are trained.

    Args:
        config: transformers configuration.
        model: TRL's ModelConfig.
        recipe: such as sft; that of a reward model is reward.

    Raises:
        ConfigError: its blocks cannot be identified, or peft has no target layers for it.
    """
    import torch
    import transformers
    from peft import get_peft_model
    from trl import get_peft_config

    text = config.get_text_config()
    flops_of(config)  # raises for models of another shape
    auto_class = getattr(transformers, AUTO_CLASS.get(recipe, "AutoModelForCausalLM"))
    with torch.device("meta"):
        built = auto_class.from_config(config)
        num_parameters = trained = _count(built)
        blocks = _blocks(built, text.num_hidden_layers)
        block = max(map(_count, blocks))
        layers = [layer for layer in blocks.modules() if isinstance(layer, torch.nn.Linear)]
        linear = [layer.weight.numel() for layer in layers]
        if model.use_peft:
            try:
                adapted = get_peft_model(built, get_peft_config(model))
            except ValueError as error:
                raise ConfigError(f"lora_target_modules: {' '.join(str(error).split())}") from error
            trained = _count(adapted, trained=True)
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    shape = Shape(
        num_parameters=num_parameters,
        block_parameters=block,
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=_active_intermediate_size(text),
        query_size=heads * head_size,
        key_size=key_heads * head_size,
        vocab_size=text.vocab_size,
        tied=bool(text.tie_word_embeddings),
        linear_parameters=sum(linear),
        largest_linear=max(linear, default=0),
    )
    return shape, trained


def _read_json(path: Path) -> dict[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model_config: {path} cannot be read: {error}") from error
    return content


def _count(module: Any, trained: bool = False) -> int:
    parameters = module.parameters()
    return sum(weight.numel() for weight in parameters if weight.requires_grad or not trained)


def _blocks(built: Any, num_layers: int) -> Any:
    import torch

    for module in built.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            return module
    raise ConfigError(f"model_config: cannot identify the blocks of a {type(built).__name__}")


def _active_intermediate_size(text: Any) -> int:
    """Return the inner size of the feed-forward layers that work on one token."""
    experts = getattr(text, "num_experts_per_tok", None) or 1
    size = text.intermediate_size
    if experts > 1:
        size = (getattr(text, "moe_intermediate_size", None) or size) * experts
    return int(size)
