"""Where a model comes from: sections of the card that TRL writes with it, and lineage.json beside it for programs.

    {"base_model": ..., "method": "DPO", "toa_trl": version, "data": [{"dataset": ..., "rows": ..., ...}], "parent": {...}}

`parent` is the lineage.json of the model that this one was trained from, where that has one: SFT, then DPO, is a chain.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from toa_trl.errors import ConfigError
from toa_trl.hub.lineage import FILE, from_hub
from toa_trl.utils.files import replace_section, replace_text
from toa_trl.utils.redaction import HUB_NAME, on_hub, public_name

NO_NAME = re.compile(r"\[None\]\(\S*/None\)")
PARTS = ("sft", "dpo", "rollouts")  # of a run's folder
_from_hub = cache(from_hub)  # a card is written with every checkpoint


def extend_model_card(
    folder: Path, lineages: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> None:
    """Write lineage.json, and what it says into README.md, whatever else stands there. Twice is once.

    Args:
        folder: of the trained model.
        lineages: of each data set {"dataset": folder or name on the Hub, "rows", "fraction"} and what
            `toa_trl.hub.lineage.read_lineage` found, if anything; rows and fraction may be None.
        facts: {"base_model": folder or name on the Hub, "method": e.g. "SFT", ...}, which lineage.json takes over.

    Raises:
        ConfigError: the card's metadata cannot be read.
    """
    base = str(facts.get("base_model") or "")
    on_the_hub = [str(each["dataset"]) for each in lineages if on_hub(str(each["dataset"]))]
    entry: dict[str, Any] = {
        **facts,
        "base_model": public_name(base) if base else None,
        "data": [{**each, "dataset": _dataset(str(each["dataset"]))} for each in lineages],
        "parent": None,
    }
    entry = json.loads(json.dumps(entry, default=str))
    parent = model_lineage(base) if base else {}
    if {**parent, "parent": None} == entry:  # training goes on in the base's own folder
        parent = parent["parent"]
    entry["parent"] = parent or None
    replace_text(folder / FILE, json.dumps(entry, indent=2, ensure_ascii=False) + "\n")
    _write_card(folder / "README.md", entry, on_the_hub)


def model_lineage(model: str) -> dict[str, Any]:
    """What lineage.json beside a model says; empty where there is none, or one of a data set, or somebody else's.

    Args:
        model: a folder, or a checkpoint in it, or a name on the Hub.
    """
    place = Path(model)
    places = [place, place.parent] if place.name.startswith("checkpoint-") else [place]
    file = next((each / FILE for each in places if (each / FILE).is_file()), None)
    if file is None and on_hub(model):
        file = _from_hub(model, "model")
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError):
        return {}
    return found if _is_of_model(found) else {}


def _is_of_model(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("data"), list):
        return False
    named = all(
        isinstance(each, dict) and isinstance(each.get("dataset"), str) for each in found["data"]
    )
    base, parent = found.get("base_model", 0), found.get("parent")
    return named and isinstance(base, str | None) and (parent is None or _is_of_model(parent))


def _write_card(path: Path, entry: Mapping[str, Any], datasets: Sequence[str]) -> None:
    from huggingface_hub import metadata_load, metadata_save

    text = path.read_text(encoding="utf-8") if path.is_file() else f"# {path.parent.name}\n"
    beside = path.with_name(path.name + ".new")  # the card is whole, or the one before
    # what TRL writes of a model that came from a folder
    text = NO_NAME.sub(f"`{entry['base_model']}`", text).replace(
        'model="None"', f'model="{path.parent.name}"'
    )
    for section in (_data_section(entry), _lineage_section(entry)):
        text = replace_section(text, section)
    beside.write_text(text, encoding="utf-8")
    try:
        metadata: dict[str, Any] = metadata_load(beside) or {}
    except (yaml.YAMLError, ValueError) as error:
        beside.unlink()
        raise ConfigError(
            f"{path}: the metadata of this model card cannot be read: {' '.join(str(error).split())}; mend or remove it"
        ) from error
    metadata["tags"] = _with(metadata.get("tags"), ["toa_trl"])
    if datasets:
        metadata["datasets"] = _with(metadata.get("datasets"), datasets)
    *_, first = _chain(entry)
    if not metadata.get("base_model") and HUB_NAME.fullmatch(first["base_model"] or ""):
        metadata["base_model"] = first["base_model"]
    metadata_save(beside, metadata)
    os.replace(beside, path)


def _data_section(entry: Mapping[str, Any]) -> str:
    lines = [
        "## Training data",
        "",
        "| data set | rows | share | run | search | agents | reward |",
        "|---" * 7 + "|",
    ]
    for each in entry["data"]:
        agents = ", ".join(
            f"{name} (`{model}`)" if model else name
            for name, model in (each.get("agents") or {}).items()
        )
        search = (
            f"`{each['search']}`, {each.get('budget')} plays per prompt"
            if each.get("search")
            else ""
        )
        rows, share = each.get("rows"), each.get("fraction")
        cells = (
            f"`{each['dataset']}`",
            "" if rows is None else f"{rows:,}",
            "" if share is None else f"{share:g}",
            *(each.get("fingerprint") or "", search, agents, each.get("reward") or ""),
        )
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    if any(each.get("fingerprint") for each in entry["data"]):
        lines += [
            "",
            "Runs are those of [toa_trl](https://arxiv.org/abs/2412.17061), by their fingerprints; each data set's own card tells more.",
        ]
    return "\n".join(lines)


def _lineage_section(entry: Mapping[str, Any]) -> str:
    stages = list(_chain(entry))[::-1]
    lines = [
        "## Lineage",
        "",
        f"1. `{stages[0]['base_model'] or 'not known'}`, the model that training began with",
    ]
    for number, stage in enumerate(stages, 2):
        data = ", ".join(
            f"`{each['dataset']}`"
            + (f" (run {each['fingerprint']})" if each.get("fingerprint") else "")
            for each in stage["data"]
        )
        name = f"`{stages[number - 1]['base_model']}`" if number <= len(stages) else "this model"
        lines.append(
            f"{number}. {name}: {stage.get('method') or 'trained'} on {data or 'data that are not known'}"
        )
    return "\n".join([*lines, "", f"{FILE} beside the weights says it for programs."])


def _chain(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The stages of training, the last first."""
    stage: Mapping[str, Any] | None = entry
    while stage:
        yield stage
        stage = stage.get("parent")


def _dataset(name: str) -> str:
    """A data set as the world may see it."""
    place = Path(name)
    return (
        f"{place.parent.name}/{place.name}"
        if place.exists() and place.name in PARTS
        else public_name(name)
    )


def _with(there: Any, more: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*([there] if isinstance(there, str) else there or ()), *more]))
