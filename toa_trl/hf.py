"""Loading transformers models and tokenizers, with a user's mistakes said in one line. torch is imported when called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError


def load_model(place: str, auto_class: str, model: str, *, dtype: str, device: str | None) -> Any:
    """A model in evaluation mode on its device.

    Args:
        place: what the error messages begin with.
        auto_class: name of the transformers class, e.g. "AutoModelForCausalLM".
        model: folder or Hub name.
        dtype: "auto" (as saved; float32 on a CPU, where half precision is slow), or a torch dtype's name.
        device: e.g. "cuda:1"; None takes a GPU if there is one.

    Raises:
        ConfigError: no such model, no weights or only some of them, or an unknown dtype.
    """
    import torch
    import transformers

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"{place}: dtype {dtype!r} is not known; for example float32, bfloat16 or auto")
    try:
        loaded, info = getattr(transformers, auto_class).from_pretrained(model, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: no model could be loaded from {model!r}: {_first_line(error)}") from error
    # transformers fills what is missing with random numbers: a language model would pass for a reward model.
    # An adapter's own head is loaded after this list is made.
    if info["missing_keys"] and not (Path(model) / "adapter_config.json").is_file():
        raise ConfigError(f"{place}: {model!r} has no weights for {', '.join(sorted(info['missing_keys'])[:3])}")
    return loaded.to(device).eval()


def load_tokenizer(place: str, model: str) -> Any:
    """A tokenizer with a chat template.

    Raises:
        ConfigError: no tokenizer there, or one without a chat template.
    """
    import transformers

    # texts come one at a time: threads would cost more than they bring, and take the cores from the models
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{place}: no tokenizer could be loaded from {model!r}: {_first_line(error)}") from error
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{place}: the tokenizer of {model!r} has no chat template; an instruction-tuned model has one, "
            "or put a chat_template.jinja into the folder"
        )
    return tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
