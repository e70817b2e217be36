"""Licences and revisions of the models and data sets that a card names."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from toa_trl.utils.redaction import is_local, on_hub

TIMEOUT_S = 3.0  # a card does not wait for a network that does not answer
IN_PROCESS = ("transformers", "vllm")  # engines that load weights from this machine's cache


def revision_of(entry: Mapping[str, Any]) -> str | None:
    """Return the revision of an agent's model, or None if it is not known.

    It is the one in the agent's entry, or the commit in this machine's cache.
    """
    configured = entry.get("revision") or (entry.get("engine_args") or {}).get("revision")
    model = str(entry.get("model", ""))
    if entry.get("engine") not in IN_PROCESS or not on_hub(model):
        return str(configured) if configured else None
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(model, "config.json", revision=configured)
    return Path(file).parent.name if isinstance(file, str) else configured


@cache
def licence_of(name: str, kind: str = "model") -> str | None:
    """Return the licence that a model or data set states itself, or None if it is not known.

    Args:
        name: a folder (its README.md is read), or a name on the Hub.
        kind: "model" or "dataset".
    """
    from huggingface_hub import HfApi, metadata_load

    try:
        if is_local(name):
            card: Any = metadata_load(Path(name) / "README.md") or {}
        elif on_hub(name):
            look_up = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
            card = look_up(name, timeout=TIMEOUT_S).card_data or {}
        else:
            return None
    except Exception:  # no card, invalid YAML, no such name, or no network
        return None
    licence = card.get("license_name") or card.get("license")
    if isinstance(licence, list):
        return ", ".join(map(str, licence))
    return str(licence) if licence else None
