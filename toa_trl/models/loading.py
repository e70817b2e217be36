"""Loading transformers models and tokenizers, with a user's mistakes said in one line.

Torch is imported when called.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.utils import compat

STATE = "trainer_state.json"  # the Trainer writes it last: a checkpoint without it is not whole


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
            unknown dtype, or code of the model's own that does not run here.
    """
    import torch
    import transformers

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
        raise ConfigError(f"{place}: {_why_not(model, source, has_own_code, error)}") from error
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
    tokenizer = None
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
    if tokenizer is None:
        raise ConfigError(
            f"{place}: no tokenizer could be loaded from {model!r}: {_first_line(failure)}"
        ) from failure
    if template and not tokenizer.chat_template:
        raise ConfigError(
            f"{place}: the tokenizer of {model!r} has no chat template; an instruction-tuned "
            "model has one, "
            "or put a chat_template.jinja into the folder"
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
    import transformers

    source, at = weights_source(place, model, revision)
    if source != model and tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    try:
        config = transformers.AutoConfig.from_pretrained(
            source, revision=at, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: {_why_not(model, source, False, error)}") from error
    return getattr(config.get_text_config(), "pad_token_id", None)


def read_config(place: str, model: str, revision: str | None = None) -> dict[str, Any]:
    """What config.json says, of an adapter that of its base. No code is run for it.

    Raises:
        ConfigError: there is none.
    """
    import transformers

    source, at = weights_source(place, model, revision)
    try:
        return dict(transformers.PreTrainedConfig.get_config_dict(source, revision=at)[0])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: {_why_not(model, source, False, error)}") from error


def module_names(
    place: str,
    model: str,
    auto_class: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> list[str]:
    """Return the full names of a model's modules that have a matrix, without loading weights.

    An example of a name is "model.layers.0.self_attn.q_proj".

    Args:
        place: what the error messages begin with.
        model: folder or Hub name.
        auto_class: name of the transformers class, e.g. "AutoModelForCausalLM".
        trust_remote_code: run the code that the model brings, if it brings some.
        revision: of a Hub repository.

    Returns:
        Nothing where that auto class does not know the model's kind.

    Raises:
        ConfigError: there is no such model.
    """
    import torch
    import transformers

    source, at = weights_source(place, model, revision)
    try:
        config = transformers.AutoConfig.from_pretrained(
            source, revision=at, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: {_why_not(model, source, False, error)}") from error
    try:
        with torch.device("meta"):
            made = getattr(transformers, auto_class).from_config(
                config, trust_remote_code=trust_remote_code
            )
    except ValueError:
        return []
    weights = {name: getattr(module, "weight", None) for name, module in made.named_modules()}
    return [name for name, weight in weights.items() if weight is not None and weight.dim() > 1]


def num_accelerators() -> int:
    """GPUs (or other accelerators) that this process can see."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a training that is whole; None where there is none."""
    found: dict[int, Path] = {}
    for state in folder.glob(f"checkpoint-*/{STATE}"):
        try:
            found[json.loads(state.read_text(encoding="utf-8"))["global_step"]] = state.parent
        except (ValueError, KeyError):  # cut by a kill
            continue
    return found[max(found)] if found else None


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter alone."""
    return (Path(folder) / "adapter_config.json").is_file() and not (
        Path(folder) / "config.json"
    ).is_file()


def check_whole_model(place: str, model: str) -> None:
    """Check that a folder holds a whole model.

    Raises:
        ConfigError: the folder holds an adapter alone.
    """
    if is_adapter(model):
        raise ConfigError(
            f"{place}: {model!r} holds an adapter alone, and vLLM needs a whole model; merge it "
            "into its base with toa-trl merge-adapter, or take the engine transformers"
        )


def own_class(config: Mapping[str, Any]) -> str | None:
    """Return the auto class for which a repository brings its own code, e.g. "AutoModel".

    Args:
        config: as `read_config` gives it.

    Returns:
        None where the architecture is one that transformers has.
    """
    architecture = next(iter(config.get("architectures") or ()), None)
    for auto_class, reference in (config.get("auto_map") or {}).items():
        if isinstance(reference, str) and reference.rpartition(".")[2] == architecture:
            return str(auto_class)
    return None


def padded(texts: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Any, Any]:
    """Return token ids and attention mask [B, T], padded on the right."""
    import torch

    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[pad] * (width - len(text))] for text in texts], device=device)
    mask = torch.arange(width, device=device) < torch.tensor(
        [[len(text)] for text in texts], device=device
    )
    return ids, mask.long()


def weights_source(place: str, model: str, revision: str | None = None) -> tuple[str, str | None]:
    """Name and revision of what holds the weights.

    `model` itself, or the base on which it is an adapter.

    Raises:
        ConfigError: the folder holds neither, or an adapter that names no base.
    """
    from transformers.utils import find_adapter_config_file

    folder = Path(model)
    if (folder / "config.json").is_file():
        return model, revision
    try:
        found = find_adapter_config_file(model, revision=revision)
    except OSError:  # no name that a repository could have; whoever loads it says so
        found = None
    if found is None:
        if folder.is_dir():
            held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise ConfigError(
                f"{place}: there is no model in {model!r}: neither config.json nor "
                f"adapter_config.json; it holds {held}"
            )
        return model, revision
    adapter = json.loads(Path(found).read_text(encoding="utf-8"))
    if not adapter.get("base_model_name_or_path"):
        raise ConfigError(
            f"{place}: the adapter {model!r} names no base_model_name_or_path in its "
            "adapter_config.json"
        )
    return adapter["base_model_name_or_path"], adapter.get("revision")


def _is_own(thing: object) -> bool:
    """Whether its class comes from a model's repository."""
    return type(thing).__module__.startswith("transformers_modules.")


def _is_in_adapter(model: Any, name: str) -> bool:
    """Whether an adapter has brought these weights; transformers makes its list before."""
    return hasattr(model.get_submodule(name.rpartition(".")[0]), "modules_to_save")


def _why_not(model: str, source: str, own_code: bool, error: Exception) -> str:
    import transformers

    if own_code and not isinstance(error, OSError):
        return (
            f"the code that {model!r} brings does not run with transformers "
            f"{transformers.__version__} "
            f"({type(error).__name__}: {_first_line(error)}); choose another revision, or serve "
            "it from an environment of its own"
        )
    base = (
        "" if source == model else f", an adapter on the base {source!r} (base_model_name_or_path)"
    )
    return f"no model could be loaded from {model!r}{base}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
