"""Loading transformers models and tokenizers, with a user's mistakes said in one line.

Torch is imported when called.
"""

import os
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.models.devices import check_device
from toa_trl.models.sources import (
    first_line,
    load_config,
    own_class,
    read_config,
    weights_source,
    why_not,
)
from toa_trl.utils import compat


def load_model(
    place: str,
    auto_class: str,
    model: str,
    *,
    dtype: str,
    device: str | None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    head: str = "score",
) -> Any:
    """A model in evaluation mode on its device.

    An adapter (LoRA) is loaded on the base that it names.

    Args:
        place: what the error messages begin with.
        auto_class: name of the transformers class, e.g. "AutoModelForCausalLM".
        model: folder or Hub name.
        dtype: "auto" (as saved; float32 on a CPU, where half precision is slow), or a torch dtype's
            name.
        device: e.g. "cuda:1"; "auto" spreads the layers over all GPUs; None: a GPU, or the CPU.
        trust_remote_code: run the code that the model brings, if it brings some.
        revision: of a Hub repository: a branch, a tag or a commit.
        head: name of a classifier's head among the weights; another than this has one label.

    Raises:
        ConfigError: no such model, no weights or only some of them, an adapter without its base, an
            unknown dtype or device, or code of the model's own that does not run here.
    """
    import torch
    import transformers

    check_device(place, device)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto" and device in ("cpu", None if torch.cuda.is_available() else "auto"):
        dtype = "float32"
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(
            f"{place}: dtype {dtype!r} is not known; for example float32, bfloat16 or auto"
        )
    source, source_revision = weights_source(place, model, revision)
    is_adapter = source != model
    options = {"trust_remote_code": trust_remote_code, "revision": source_revision}
    is_classifier = auto_class == "AutoModelForSequenceClassification"
    # transformers would give the head of an adapter's base two rows
    labels = {"num_labels": 1} if (is_adapter and is_classifier) or head != "score" else {}
    loading: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, **options}
    loading |= {} if head == "score" else {"key_mapping": {rf"^{head}\.": "score."}}
    loading |= {"device_map": "auto"} if device == "auto" else {}
    has_own_code = trust_remote_code and own_class(read_config(place, model, revision)) is not None
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options, **labels)
        if _is_own(config) and "rope_parameters" not in read_config(place, model, revision):
            compat.undo_rope_parameters(config)
        loaded, info = getattr(transformers, auto_class).from_pretrained(
            source, config=config, **loading
        )
        if _is_own(loaded):
            compat.compute_buffers(loaded)
        if is_adapter:
            loaded.load_adapter(model, adapter_kwargs={"revision": revision})
    except Exception as error:  # torch, safetensors and a model's own code raise what they like
        raise ConfigError(f"{place}: {why_not(model, source, has_own_code, error)}") from error
    # transformers fills what is missing with random numbers: a language model would pass for a
    # reward model
    if missing := sorted(name for name in info["missing_keys"] if not _is_in_adapter(loaded, name)):
        raise ConfigError(f"{place}: {model!r} has no weights for {', '.join(missing[:3])}")
    return (loaded if device == "auto" else loaded.to(device)).eval()


def load_tokenizer(
    place: str,
    model: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    template: bool = True,
) -> Any:
    """Load the tokenizer of a model, or of its base where it is an adapter without one.

    Args:
        place: what the error messages begin with.
        model: folder or Hub name.
        trust_remote_code: whether code that the model brings may run.
        revision: branch, tag or commit on the Hub. None: the default branch.
        template: whether it needs a chat template.

    Raises:
        ConfigError: no tokenizer there, or one without a chat template.
    """
    import transformers

    # texts come one at a time: threads would cost more than they bring, and take the cores from the
    # models
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for is_base in (False, True):
        # a folder with a tokenizer alone is enough
        name, at = weights_source(place, model, revision) if is_base else (model, revision)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                name, trust_remote_code=trust_remote_code, revision=at
            )
            break
        except Exception as error:
            failure = error
    else:
        raise ConfigError(
            f"{place}: no tokenizer could be loaded from {model!r}: {first_line(failure)}"
        ) from failure
    if template and not tokenizer.chat_template:
        raise ConfigError(
            f"{place}: the tokenizer of {model!r} has no chat template; an instruction-tuned "
            "model has one, or put a chat_template.jinja into the folder"
        )
    return tokenizer


def trained_padding(
    place: str,
    model: str,
    tokenizer: Any,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> int | None:
    """Return the padding token with which a sequence classifier was trained, or None if unknown.

    A classifier of transformers reads the last token that is not this one: also of a text that ends
    with it, as a conversation does where the padding token is eos.

    Args:
        place: what the error messages begin with.
        model: folder or Hub name.
        tokenizer: of the model; of an adapter, whose configuration is that of its base, the
            tokenizer alone knows.
        trust_remote_code: run the code that the model brings, if it brings some.
        revision: of a Hub repository.
    """
    source, _ = weights_source(place, model, revision)
    if source != model and tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    config = load_config(place, model, trust_remote_code=trust_remote_code, revision=revision)
    return getattr(config.get_text_config(), "pad_token_id", None)


def _is_own(thing: object) -> bool:
    """Whether its class comes from a model's repository."""
    return type(thing).__module__.startswith("transformers_modules.")


def _is_in_adapter(model: Any, name: str) -> bool:
    """Whether an adapter has brought these weights; transformers makes its list before."""
    return hasattr(model.get_submodule(name.rpartition(".")[0]), "modules_to_save")
