"""The data set card of a run: what it is, how it was made, what was dropped, how to load it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from toa_trl.hub.licences import licence_of, revision_of
from toa_trl.types import AgentCounts, Counts
from toa_trl.utils.files import replace_section, replace_text
from toa_trl.utils.redaction import on_hub, public_name

TEMPLATE = Path(__file__).with_name("dataset_card.md.j2")
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)

NOUNS = {
    "translation": ("source texts", "translations"),
    "math": ("problems", "solutions"),
}  # by task
LOADED = re.compile(r'load_dataset\("([^"]*)", "dpo"')


def write_card(
    path: Path,
    identity: Mapping[str, Any],
    counts: Counts,
    num_rows: Mapping[str, int],
    dropped: Mapping[str, Counter[str]],
    params: Mapping[str, Mapping[str, Any]],
    audit: str,
    *,
    about: Mapping[str, Any] | None = None,
    prompts: Mapping[str, Any] | None = None,
    agents: Mapping[str, AgentCounts] | None = None,
    cost: float | None = None,
    picture: str | None = None,
) -> None:
    """Write README.md.

    Args:
        path: of the card.
        identity: of the run, as in its journal.
        counts: totals of its journal.
        num_rows: of "rollouts", "sft" and "dpo".
        dropped: for "sft" and "dpo", prompts without a row, by reason.
        params: with which "sft" and "dpo" were made.
        audit: its section.
        about: the data set's license and language(s), each where it is known.
        prompts: "prompts" and "prompts_split" of the run's configuration, where it has one.
        agents: totals by the agents' names.
        cost: of the whole run, where agents have prices.
        picture: a file beside the card.
    """
    entry, about, prompts, agents = identity.get("task"), about or {}, prompts or {}, agents or {}
    task = dict(entry) if isinstance(entry, Mapping) else {"name": entry or "alignment"}
    task.pop("templates", None)
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    card = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        header=_header(
            path.parent.name,
            task["name"],
            num_rows["rollouts"],
            about,
            str(prompts.get("prompts", "")),
        ),
        identity=identity,
        counts=counts,
        num_rows=num_rows,
        dropped=dropped,
        params=params,
        task=task,
        nouns=NOUNS.get(task["name"], ("prompts", "responses")),
        reward=reward_name(identity["reward"]),
        prompts=_prompts_said(counts.num_prompts, prompts),
        agents=[
            _agent(name, entry, agents.get(name)) for name, entry in identity["agents"].items()
        ],
        cost=cost,
        picture=picture,
        license=about.get("license"),
        audit=audit,
        folder=path.parent.name,
    )
    replace_text(path, card)


def _header(name: str, task: str, num_rows: int, about: Mapping[str, Any], prompts: str) -> str:
    """The block of metadata, as https://github.com/huggingface/hub-docs/blob/main/datasetcard.md has it."""
    languages = about.get("language") or []
    metadata = {
        "pretty_name": name,
        **({"license": about["license"]} if about.get("license") else {}),
        **(
            {"language": [languages] if isinstance(languages, str) else list(languages)}
            if languages
            else {}
        ),
        "task_categories": ["text-generation", *(["translation"] if task == "translation" else [])],
        "tags": ["toa_trl", "trl", "synthetic", "preference"],
        "size_categories": [
            next((size for limit, size in SIZES if num_rows < limit), "10M<n<100M")
        ],
        **({"source_datasets": [prompts]} if on_hub(prompts) else {}),
        "configs": [
            {
                "config_name": part,
                **({"default": True} if part == "sft" else {}),
                "data_files": f"{part}/*.parquet",
            }
            for part in ("sft", "dpo", "rollouts")
        ],
    }
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n"


def _prompts_said(number: int, prompts: Mapping[str, Any]) -> str:
    source = str(prompts.get("prompts") or "")
    if not source:
        return f"{number:,}; where they come from was not written down"
    split = (
        f", split {prompts['prompts_split']}"
        if on_hub(source) and prompts.get("prompts_split")
        else ""
    )
    return f"{number:,} of `{public_name(source)}`{split}; licence: {licence_of(source, 'dataset') or 'not known'}"


def _agent(name: str, entry: Any, counts: AgentCounts | None) -> dict[str, Any]:
    entry = entry if isinstance(entry, Mapping) else {}
    model = entry.get("model")
    local = bool(model) and Path(model).expanduser().is_dir()
    said = f"`{public_name(model)}`{', a local folder' if local else ''}" if model else "not known"
    return {
        "name": name,
        "model": f"none, {entry['engine']}"
        if entry.get("engine") in ("scripted", "recorded")
        else said,
        "revision": "none" if local else revision_of(entry) or "not known",
        "licence": (licence_of(model) if model else None) or "not known",
        "counts": counts or AgentCounts(),
    }


def replace_audit(path: Path, audit: str) -> None:
    """Put another section "Audit" into a card, and leave the rest of it as it is."""
    replace_text(path, replace_section(path.read_text(encoding="utf-8"), audit))


def name_on_hub(path: Path, repo_id: str) -> None:
    """Put the name under which a data set is pushed into its card's lines on loading it."""
    card = path.read_text(encoding="utf-8")
    named = LOADED.sub(lambda found: found[0].replace(found[1], repo_id), card)
    if named != card:
        replace_text(path, named)


def reward_name(entry: Any) -> str:
    """A reward by its kinds and models; an entry may hold addresses and keys, which belong into no card."""
    if not isinstance(entry, Mapping):
        return str(entry)
    kind, parts = str(entry.get("kind", "?")), entry.get("rewards")
    if kind == "held_out":
        first, second = (reward_name(entry.get(key)) for key in ("reward", "second"))
        return f"{first}; held out, for the record alone: {second}"
    if isinstance(parts, list | tuple):
        return f"{kind} of {', '.join(map(_part_name, parts))}"
    agent = entry.get("agent")
    named = [part for part in (entry, agent) if isinstance(part, Mapping)]
    scorers = [
        part[key]
        for part in named
        for key in ("model", "function", "name", "unit")
        if isinstance(part.get(key), str)
    ]
    return f"{kind} `{public_name(scorers[0])}`" if scorers else kind


def _part_name(part: Any) -> str:
    inner, weight = (
        (part.get("reward", part), part.get("weight"))
        if isinstance(part, Mapping)
        else (part, None)
    )
    name = reward_name(inner)
    name = f"({name})" if isinstance(inner, Mapping) and "rewards" in inner else name
    return name if weight is None else f"{weight} x {name}"
