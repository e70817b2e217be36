"""What a card may say of the models and data that a run is made of: names, revisions and licences, never where they lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LOOK_UP_S = 3.0  # a card is no reason to wait for a network that does not answer
FILES = (
    ".jsonl",
    ".json",
    ".parquet",
)  # a name with such an end, or in runs/, is a path, also where it is gone by now
# Of too many rather than of too few: URLs, host:port, and IP addresses as they stand in Python's own errors.
ADDRESS = re.compile(
    r"\b\w+://[^\s'\"<>]*[^\s'\"<>:.,;)\]}]|\[?(?<![\w:])(?:[\da-f]{0,4}:){2,7}[\da-f]{0,4}(?![\w:])\]?(?::\d+)?"
    r"|(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?![\w.]*\w)|\blocalhost\b(?::\d+)?"
    r"|(?<![\w.-])(?=[\w.-]*[a-z])[\w.-]+:\d{2,5}\b",
    re.IGNORECASE,
)
IN_PROCESS = ("transformers", "vllm")  # engines whose weights come through this machine's cache


def public_name(name: str) -> str:
    """A model or data set as the world may see it: of a path on somebody's machine, the last part alone."""
    return (
        Path(name).name
        if name.startswith(("/", "~", ".")) or name.count("/") > 1 or _local(name)
        else name
    )


def on_hub(name: str) -> bool:
    """Whether it can only be a name on the Hub."""
    return HUB_NAME.fullmatch(name) is not None and not _local(name)


def without_addresses(text: str) -> str:
    """What a server or a client said, without where the server is."""
    return ADDRESS.sub("a server", text)


def revision_of(entry: Mapping[str, Any]) -> str | None:
    """The revision of an agent's model: as its entry has it, or the commit in this machine's cache; None: not known."""
    given = entry.get("revision") or (entry.get("engine_args") or {}).get("revision")
    model = str(entry.get("model", ""))
    if entry.get("engine") not in IN_PROCESS or not on_hub(model):
        return str(given) if given else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=given)
    return Path(found).parent.name if isinstance(found, str) else given


@cache
def licence_of(name: str, kind: str = "model") -> str | None:
    """The licence that a model or data set names itself: in its folder's README.md, or on the Hub; None: not known.

    Args:
        name: a folder, or a name on the Hub.
        kind: "model" or "dataset".
    """
    from huggingface_hub import HfApi, metadata_load

    try:
        if _local(name):
            card: Any = metadata_load(Path(name) / "README.md") or {}
        elif on_hub(name):
            look_up = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
            card = look_up(name, timeout=LOOK_UP_S).card_data or {}
        else:
            return None
    except Exception:  # no card, one that is not YAML, no such name, no network: it is not known, and that is what is said
        return None
    licence = card.get("license_name") or card.get("license")
    return (
        ", ".join(map(str, licence))
        if isinstance(licence, list)
        else str(licence)
        if licence
        else None
    )


def _local(name: str) -> bool:
    return name.endswith(FILES) or name.startswith("runs/") or Path(name).expanduser().exists()
