"""What a folder or a Hub name of a model holds, without loading weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError

STATE = "trainer_state.json"  # the Trainer writes it last: a checkpoint without it is not whole


def weights_source(place: str, model: str, revision: str | None = None) -> tuple[str, str | None]:
    """Name and revision of what holds the weights.

    `model` itself, or the base on which it is an adapter.

    Raises:
        ConfigError: the folder holds neither, or an adapter that names no base.
    """
    folder = Path(model)
    path = folder / "adapter_config.json"
    if (folder / "config.json").is_file():
        return model, revision
    if not folder.is_dir():
        from transformers.utils import find_adapter_config_file

        try:
            found = find_adapter_config_file(model, revision=revision)
        except OSError:  # no name that a repository could have; whoever loads it says so
            found = None
        if found is None:
            return model, revision
        path = Path(found)
    elif not path.is_file():
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ConfigError(
            f"{place}: there is no model in {model!r}: neither config.json nor "
            f"adapter_config.json; it holds {held}"
        )
    try:
        adapter = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{place}: {str(path)!r} is not JSON: {error}") from error
    if not adapter.get("base_model_name_or_path"):
        raise ConfigError(
            f"{place}: the adapter {model!r} names no base_model_name_or_path in its "
            "adapter_config.json"
        )
    return adapter["base_model_name_or_path"], adapter.get("revision")


def read_config(place: str, model: str, revision: str | None = None) -> dict[str, Any]:
    """What config.json says, of an adapter that of its base. No code is run for it.

    Raises:
        ConfigError: there is none.
    """
    source, at = weights_source(place, model, revision)
    try:
        # transformers takes seconds to import
        if (local := Path(source) / "config.json").is_file():
            return dict(json.loads(local.read_text(encoding="utf-8")))
        import transformers

        return dict(transformers.PreTrainedConfig.get_config_dict(source, revision=at)[0])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: {why_not(model, source, False, error)}") from error


def load_config(
    place: str, model: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> Any:
    """Return a model's configuration as transformers has it, of an adapter that of its base.

    Raises:
        ConfigError: there is none.
    """
    import transformers

    source, at = weights_source(place, model, revision)
    try:
        return transformers.AutoConfig.from_pretrained(
            source, revision=at, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: {why_not(model, source, False, error)}") from error


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


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter alone."""
    return (Path(folder) / "adapter_config.json").is_file() and not (
        Path(folder) / "config.json"
    ).is_file()


def module_shapes(
    place: str,
    model: str,
    auto_class: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the matrices of a model's modules, without loading weights.

    They are by the full names of the modules; an example is "model.layers.0.self_attn.q_proj".

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

    config = load_config(place, model, trust_remote_code=trust_remote_code, revision=revision)
    try:
        with torch.device("meta"):
            made = getattr(transformers, auto_class).from_config(
                config, trust_remote_code=trust_remote_code
            )
    except ValueError:
        return {}
    weights = {name: getattr(module, "weight", None) for name, module in made.named_modules()}
    shapes = {name: tuple(each.shape) for name, each in weights.items() if each is not None}
    return {name: shape for name, shape in shapes.items() if len(shape) > 1}


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a training that is whole; None where there is none."""
    found: dict[int, Path] = {}
    for state in folder.glob(f"checkpoint-*/{STATE}"):
        try:
            found[json.loads(state.read_text(encoding="utf-8"))["global_step"]] = state.parent
        except (ValueError, KeyError):  # cut by a kill
            continue
    return found[max(found)] if found else None


def why_not(model: str, source: str, own_code: bool, error: Exception) -> str:
    """Return why a model could not be loaded, in one line.

    Args:
        model: folder or Hub name.
        source: what holds the weights, see `weights_source`.
        own_code: whether code that the model brings was run.
        error: what was raised.
    """
    import transformers

    if own_code and not isinstance(error, OSError):
        return (
            f"the code that {model!r} brings does not run with transformers "
            f"{transformers.__version__} ({type(error).__name__}: {first_line(error)}); choose "
            "another revision, or serve it from an environment of its own"
        )
    base = (
        "" if source == model else f", an adapter on the base {source!r} (base_model_name_or_path)"
    )
    return f"no model could be loaded from {model!r}{base}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return str(error).strip().split("\n")[0]
