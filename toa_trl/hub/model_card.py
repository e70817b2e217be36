"""Where a model comes from: sections of the card that TRL writes, and lineage.json.

    {"base_model": ..., "method": "DPO", "toa_trl": version,
     "data": [{"dataset": ..., "rows": ..., ...}], "parent": {...}}

`parent` is the lineage.json of the model that this one was trained from, if it has one: SFT, then
DPO, is a chain.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from toa_trl.hub.dataset_card import PARTS
from toa_trl.hub.lineage import FILE, from_hub, read_first
from toa_trl.sampling.budget import PlaysPerPrompt, describe_budget
from toa_trl.utils.cards import body_of, new_card, read_metadata, replace_section
from toa_trl.utils.escape import code, for_markdown, prose
from toa_trl.utils.files import replace_text, write_json
from toa_trl.utils.redaction import HUB_NAME, on_hub, public_name

NO_NAME = re.compile(r"\[None\]\(\S*/None\)")
_from_hub = cache(from_hub)  # a card is written with every checkpoint


def write_model_card(
    folder: Path, lineages: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], card: str
) -> None:
    """Write README.md and lineage.json; what was added to the card by hand stays. Idempotent.

    Args:
        folder: folder of the trained model.
        lineages: for each data set {"dataset": folder or name on the Hub, "rows", "fraction"} and
            its lineage, see `toa_trl.hub.lineage.read_lineage`; rows and fraction may be None.
        facts: further keys of lineage.json: {"base_model": folder or name on the Hub, "method":
            such as "SFT", "rewards": descriptions of reward models that scored what the model
            generated, ...}.
        card: the card that TRL wrote, which gets sections on data and lineage.

    Raises:
        ConfigError: the metadata of the folder's card cannot be read.
    """
    entry = write_model_lineage(folder, lineages, facts)
    names = [str(lineage["dataset"]) for lineage in lineages]
    _write_card(folder / "README.md", entry, [name for name in names if on_hub(name)], card)


def write_model_lineage(
    folder: Path, lineages: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write lineage.json, which also marks the folder as this package's; return its content.

    The arguments are those of `write_model_card`.
    """
    base = str(facts.get("base_model") or "")
    names = [str(lineage["dataset"]) for lineage in lineages]
    data = []
    for lineage, name in zip(lineages, names, strict=True):
        data.append({**lineage, "dataset": _public_dataset(name)})
    base_model = public_name(base) if base else None
    entry: dict[str, Any] = {**facts, "base_model": base_model, "data": data, "parent": None}
    entry = json.loads(json.dumps(entry, default=str))
    parent = model_lineage(base) if base else {}
    if {**parent, "parent": None} == entry:  # training continues in the base model's own folder
        parent = parent["parent"]
    entry["parent"] = parent or None
    write_json(folder / FILE, entry, ensure_ascii=False)
    return entry


def model_lineage(model: str) -> dict[str, Any]:
    """Return the lineage of a model; empty if it has none, or not one of this package's models.

    Args:
        model: a folder, a checkpoint in it, or a name on the Hub.
    """
    folder = Path(model)
    files: list[Path | None] = [folder / FILE]
    if folder.name.startswith("checkpoint-"):
        files.append(folder.parent / FILE)
    if on_hub(model):
        files.append(_from_hub(model, "model"))
    lineage = read_first(files)
    return lineage if _is_model_lineage(lineage) else {}


def _is_model_lineage(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        return False
    for data in value["data"]:
        if not isinstance(data, dict) or not isinstance(data.get("dataset"), str):
            return False
    base, parent = value.get("base_model", 0), value.get("parent")
    return isinstance(base, str | None) and (parent is None or _is_model_lineage(parent))


def _write_card(path: Path, entry: Mapping[str, Any], datasets: Sequence[str], text: str) -> None:
    # TRL writes "None" for a model that was loaded from a folder
    text = NO_NAME.sub(lambda _: code(entry["base_model"]), text)
    text = text.replace('model="None"', f'model="{path.parent.name}"')
    for section in (_data_section(entry), _lineage_section(entry), *_held_out_section(entry)):
        text = replace_section(text, section)
    metadata = read_metadata(path, text)
    metadata["tags"] = _extended(metadata.get("tags"), ["toa_trl"])
    if datasets:
        metadata["datasets"] = _extended(metadata.get("datasets"), datasets)
    *_, first = _chain(entry)
    if not metadata.get("base_model") and HUB_NAME.fullmatch(first["base_model"] or ""):
        metadata["base_model"] = first["base_model"]
    previous = path.read_text(encoding="utf-8") if path.is_file() else ""
    replace_text(path, new_card(path, previous, metadata, {"card": body_of(text)}))


def _data_section(entry: Mapping[str, Any]) -> str:
    lines = ["## Training data", "", "| data set | rows | share | run | search | agents | reward |"]
    lines.append("|---" * 7 + "|")
    for data in entry["data"]:
        agents = []
        for name, model in (data.get("agents") or {}).items():
            agents.append(for_markdown(name) + (f" ({code(model)})" if model else ""))
        search = ""
        if data.get("search"):
            plays = PlaysPerPrompt.read(data.get("plays_per_prompt"))
            budget = describe_budget(data.get("budget"), plays)
            search = f"{code(data['search'])}, {for_markdown(budget)}"
        rows, share = data.get("rows"), data.get("fraction")
        cells = (
            code(data["dataset"]),
            "" if rows is None else f"{rows:,}",
            "" if share is None else f"{share:g}",
            for_markdown(data.get("fingerprint") or ""),
            search,
            ", ".join(agents),
            prose(str(data.get("reward") or "")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    if any(data.get("fingerprint") for data in entry["data"]):
        lines.append(
            "\nRuns are runs of [toa_trl](https://arxiv.org/abs/2412.17061), identified by their "
            "fingerprints; see the card of each data set for details."
        )
    return "\n".join(lines)


def _lineage_section(entry: Mapping[str, Any]) -> str:
    stages = list(_chain(entry))[::-1]
    base = stages[0]["base_model"] or "not known"
    lines = ["## Lineage", "", f"1. {code(base)}, the model that training started from"]
    results = [code(stage["base_model"]) for stage in stages[1:]] + ["this model"]
    for number, (stage, result) in enumerate(zip(stages, results, strict=True), 2):
        datasets = []
        for data in stage["data"]:
            run = for_markdown(data.get("fingerprint") or "")
            datasets.append(code(data["dataset"]) + (f" (run {run})" if run else ""))
        method = for_markdown(stage.get("method") or "trained")
        rewards = stage.get("rewards")
        named = [prose(str(reward)) for reward in rewards] if isinstance(rewards, list) else []
        rewarded = f", rewarded by {', '.join(named)}" if named else ""
        on = ", ".join(datasets) or "unknown data"
        lines.append(f"{number}. {result}: {method} on {on}{rewarded}")
    return "\n".join([*lines, "", f"{FILE} beside the weights contains the same for programs."])


def _held_out_section(entry: Mapping[str, Any]) -> list[str]:
    """Return the section on what was measured during the training, if anything was."""
    held_out = entry.get("held_out")
    if not held_out:
        return []
    names = {
        "reward": "mean reward",
        "accuracy": "accuracy",
        "verifier_score": "mean verifier score",
        "truncated": "share cut short",
        "words": "mean length in words",
    }
    first, model = held_out["first"], held_out["model"]
    shown = [name for name in names if name in first or name in model]
    how = "greedy" if not held_out["temperature"] else f"temperature {held_out['temperature']:g}"
    scorers = [prose(held_out[name]) for name in ("reward", "verifier") if name in held_out]
    lines = [
        "## Held-out prompts",
        "",
        f"Responses to {held_out['num_prompts']:,} prompts without a training row ({how}, at most "
        f"{held_out['max_tokens']:,} tokens), sampled during the training and scored by "
        f"{' and '.join(scorers)}.",
        "",
        f"| | step | {' | '.join(names[name] for name in shown)} |",
        "|---" * (2 + len(shown)) + "|",
    ]
    for label, point in {"first measured": first, "this model": model}.items():
        values = [f"{point[name]:.3f}" if name in point else "" for name in shown]
        step = f"{point['step']:,} of {held_out['num_steps']:,}"
        lines.append(f"| {label} | {step} | {' | '.join(values)} |")
    return ["\n".join(lines)]


def _chain(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the stages of training, the latest first."""
    stage: Mapping[str, Any] | None = entry
    while stage:
        yield stage
        stage = stage.get("parent")


def _public_dataset(name: str) -> str:
    """Return the publishable name of a data set: of a part of a run's folder, RUN/PART."""
    path = Path(name)
    if path.exists() and path.name in PARTS:
        return f"{path.parent.name}/{path.name}"
    return public_name(name)


def _extended(values: Any, more: Sequence[str]) -> list[str]:
    """Return a metadata list with further values, each once."""
    present = [values] if isinstance(values, str) else values or []
    return list(dict.fromkeys([*present, *more]))
