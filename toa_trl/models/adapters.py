"""LoRA adapters: whether one fits its base, and how vLLM runs it. No weights are loaded."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.models.sources import is_adapter, module_shapes, read_config, weights_source

WEIGHTS = "adapter_model.safetensors"
MATRIX = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of its LoRAConfig.max_lora_rank


def check_adapter(place: str, model: str, auto_class: str = "AutoModelForCausalLM") -> None:
    """Check that an adapter has weights which fit its base; a whole model passes.

    peft ignores matrices whose module the base does not have.

    Args:
        place: what the error messages begin with.
        model: folder or Hub name; only folders are read.
        auto_class: name of the transformers class of the base.

    Raises:
        ConfigError: weights are missing, the base does not exist, or the shapes do not fit.
    """
    if not is_adapter(model):
        return
    base, _ = weights_source(place, model)
    read_config(place, model)
    if not any(Path(model).glob("adapter_model.*")):
        raise ConfigError(f"{place}: the adapter {model!r} has no weights ({WEIGHTS})")
    wanted = _shapes(place, model)
    existing = module_shapes(place, model, auto_class) if wanted else {}
    for module, shape in wanted.items() if existing else ():
        fits = existing.get(module)
        if fits is None or sorted(fits) != sorted(shape):  # Conv1D of GPT-2 is transposed
            has = "no such module" if fits is None else f"one of {fits[0]} x {fits[1]}"
            raise ConfigError(
                f"{place}: the adapter {model!r} does not fit its base {base!r}: it was trained "
                f"for a matrix {module} of {shape[0]} x {shape[1]}, the base has {has}"
            )


def vllm_arguments(place: str, model: str) -> dict[str, Any]:
    """Return the engine arguments with which vLLM runs a model, or an adapter on its base.

    Raises:
        ConfigError: vLLM does not support the kind of adapter; see its PEFTHelper.
    """
    if not is_adapter(model):
        return {"model": model}
    config = json.loads((Path(model) / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()])
    unsupported = {
        f"peft_type {config.get('peft_type')}": config.get("peft_type", "LORA") != "LORA",
        f"modules_to_save {config.get('modules_to_save')}": config.get("modules_to_save"),
        "use_dora": config.get("use_dora"),
        "bias": config.get("lora_bias") or config.get("bias", "none") != "none",
        f"rank {rank}": rank > VLLM_RANKS[-1],
    }
    for what, is_used in unsupported.items():
        if is_used:
            raise ConfigError(
                f"{place}: vLLM cannot run the adapter {model!r} ({what}); merge it into its base "
                "with toa-trl merge-adapter, or take the engine transformers"
            )
    base, revision = weights_source(place, model)
    at = {"revision": revision} if revision else {}
    max_rank = min(size for size in VLLM_RANKS if size >= rank)
    return {"model": base, **at, "enable_lora": True, "max_lora_rank": max_rank}


def _shapes(place: str, model: str) -> Mapping[str, tuple[int, int]]:
    """Return the shape (out, in) of the matrix that each module of an adapter was trained for."""
    from safetensors import SafetensorError, safe_open

    path = Path(model) / WEIGHTS
    if not path.is_file():
        return {}  # an older format
    sides: dict[str, dict[str, list[int]]] = {}
    try:
        with safe_open(path, "numpy") as file:
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                if found := MATRIX.fullmatch(key):
                    sides.setdefault(found[1], {})[found[2]] = file.get_slice(key).get_shape()
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{place}: {str(path)!r} cannot be read: {error}") from error
    pairs = {name: (side["B"], side["A"]) for name, side in sides.items() if len(side) == 2}
    return {name: (b[0], a[1]) for name, (b, a) in pairs.items() if len(a) == len(b) == 2}
