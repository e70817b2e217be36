"""The data set card of a run: contents, origin, dropped prompts, and how to load it."""

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from toa_trl import __version__
from toa_trl.hub.licences import licence_of, revision_of
from toa_trl.sampling.budget import PlaysPerPrompt, describe_budget
from toa_trl.sampling.settings import explained_settings
from toa_trl.types import AgentCounts, Counts, Spending
from toa_trl.utils.cards import BLOCK, new_card, with_blocks
from toa_trl.utils.escape import code, for_markdown, prose
from toa_trl.utils.files import replace_text
from toa_trl.utils.redaction import on_hub, public_name

TEMPLATE = Path(__file__).with_name("dataset_card.md.j2")
# exclusive upper bound of the rows -> size category of the Hub
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}
SIZES |= {10**7: "1M<n<10M"}
# by task
NOUNS = {"translation": ("source texts", "translations"), "math": ("problems", "solutions")}
# the configurations of the data set, the default one first
PARTS = ("sft", "dpo", "kto", "groups", "rollouts")
LOAD = re.compile(r'load_dataset\("([^"]*)", "dpo"')


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
    spending: Spending = Spending(),  # noqa: B008 (it is frozen)
    plays: PlaysPerPrompt | None = None,
    picture: str | None = None,
    output: Path | None = None,
    columns: Sequence[Mapping[str, str]] = (),
    example: str = "",
    recipes: Sequence[Mapping[str, Any]] = (),
    filters: Mapping[str, Any] | None = None,
    removed: Sequence[tuple[str, str, int]] = (),
    reviewed: Sequence[tuple[str, str, int]] = (),
) -> None:
    """Write the data set card; what was added to it by hand stays, see `toa_trl.utils.cards`.

    Args:
        path: the card, README.md in the run's folder.
        identity: identity of the run, as in its journal.
        counts: totals of its journal.
        num_rows: number of rows of every part: "rollouts", "sft", "dpo", ...
        dropped: for every part but "rollouts", the number of prompts without a row by reason.
        params: parameters with which "sft" and "dpo" were made, if not by recipes.
        audit: the section "Audit", in Markdown.
        about: "license" and "language" of the data set, if known.
        prompts: the run's configuration; "prompts", its configuration and split are shown.
        agents: totals by the agents' names.
        cost: cost of the whole run; None if no agent has a price.
        spending: what calls of the reward model have cost.
        plays: of an adaptive allocation, the plays that the prompts have.
        picture: name of a picture file beside the card.
        output: file to write instead of the card.
        columns: see `toa_trl.data.columns.described_columns`.
        example: a row of "sft" as JSON.
        recipes: {name, folder, rows, params} of the recipes that were given.
        filters: settings of the cleaning.
        removed: (what, reason, number) of what the cleaning removed.
        reviewed: (format, what, number of rows) of what a human review concerns.
    """
    entry, about, prompts, agents = identity.get("task"), about or {}, prompts or {}, agents or {}
    task = dict(entry) if isinstance(entry, Mapping) else {"name": entry or "alignment"}
    task.pop("templates", None)
    folder, source = path.parent.name, str(prompts.get("prompts", ""))
    described = []
    for name, entry in identity["agents"].items():
        described.append(_describe_agent(name, entry, agents.get(name)))
    silent = [agent["name"] for agent in described if not agent["counts"].num_scored]
    values = {
        "identity": identity,
        "counts": counts,
        "num_rows": num_rows,
        "dropped": dropped,
        "params": params,
        "task": task,
        "nouns": NOUNS.get(task["name"], ("prompts", "responses")),
        "reward": reward_name(identity["reward"]),
        "prompts": _describe_prompts(counts.num_prompts, prompts),
        "agents": described,
        # a search of one agent alone leaves the others out on purpose
        "silent": [] if "agent" in identity["search_params"] else silent,
        "cost": cost,
        "spending": spending,
        "budget": describe_budget(identity["budget"], plays),
        "picture": picture,
        "license": about.get("license"),
        "audit": audit,
        "folder": folder,
        "columns": columns,
        "example": example,
        "version": __version__,
        "project": project_url(),
        "settings": explained_settings(identity),
        "recipes": recipes,
        "filters": filters or {},
        "removed": removed,
        "reviewed": reviewed,
    }
    template = _template()
    context, blocks = template.new_context(values), {}
    for name, block in template.blocks.items():
        blocks[name] = "".join(block(context))
    metadata = _metadata(folder, task["name"], num_rows, about, source)
    previous = path.read_text(encoding="utf-8") if path.is_file() else ""
    replace_text(output or path, new_card(path, previous, metadata, blocks))


@functools.cache
def _template() -> Template:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(md=for_markdown, code=code, prose=prose)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _metadata(
    name: str, task: str, num_rows: Mapping[str, int], about: Mapping[str, Any], prompts: str
) -> dict[str, Any]:
    """Return the card's metadata."""
    from huggingface_hub import DatasetCardData

    language = about.get("language") or None
    sizes = [size for limit, size in SIZES.items() if num_rows["rollouts"] < limit]
    configs: list[dict[str, Any]] = [
        {"config_name": part, "data_files": f"{part}/*.parquet"}
        for part in PARTS
        if part in num_rows
    ]
    configs[0]["default"] = True
    card = DatasetCardData(
        pretty_name=name,
        license=about.get("license") or None,
        language=[language] if isinstance(language, str) else language,
        task_categories=["text-generation", *(["translation"] if task == "translation" else [])],
        tags=["toa_trl", "trl", "synthetic", "preference"],
        size_categories=[*sizes, "10M<n<100M"][:1],
        source_datasets=[prompts] if on_hub(prompts) else None,
        configs=configs,
    )
    return dict(card.to_dict())  # type: ignore[no-untyped-call]


def _describe_prompts(number: int, prompts: Mapping[str, Any]) -> str:
    source = str(prompts.get("prompts") or "")
    if not source:
        return f"{number:,}; their source was not recorded"
    part = ""
    for word, key in (("configuration", "prompts_config"), ("split", "prompts_split")):
        if on_hub(source) and prompts.get(key):
            part += f", {word} {for_markdown(prompts[key])}"
    licence = for_markdown(licence_of(source, "dataset") or "not known")
    return f"{number:,} of {code(public_name(source))}{part}; licence: {licence}"


def _describe_agent(name: str, entry: Any, counts: AgentCounts | None) -> dict[str, Any]:
    entry = entry if isinstance(entry, Mapping) else {}
    model = entry.get("model")
    local = bool(model) and Path(model).expanduser().is_dir()
    if entry.get("engine") in ("scripted", "recorded"):
        shown = f"none, {entry['engine']}"
    elif model:
        shown = f"{code(public_name(model))}{', a local folder' if local else ''}"
    else:
        shown = "not known"
    return {
        "name": name,
        "model": shown,
        "revision": "none" if local else revision_of(entry) or "not known",
        "licence": (licence_of(model) if model else None) or "not known",
        "counts": counts or AgentCounts(),
    }


def replace_audit(path: Path, audit: str) -> None:
    """Replace the audit of a card."""
    replace_text(path, with_blocks(path.read_text(encoding="utf-8"), {"audit": audit}))


def named_on_hub(card: str, repo_id: str) -> str:
    """Return a card whose example of loading has the data set's name on the Hub."""
    named = LOAD.sub(lambda match: match[0].replace(match[1], repo_id), card)
    return with_blocks(named, {name: text for name, _, text in BLOCK.findall(named)})


def reward_name(entry: Any) -> str:
    """Return a reward model's kinds and models, without the addresses and keys of its entry.

    Names of models and functions stand between backticks, see `toa_trl.utils.escape.prose`.
    """
    if not isinstance(entry, Mapping):
        return str(entry)
    kind, parts = str(entry.get("kind", "?")), entry.get("rewards")
    if kind == "held_out":
        first, second = (reward_name(entry.get(key)) for key in ("reward", "second"))
        return f"{first}; held out, only recorded: {second}"
    if isinstance(parts, list | tuple):
        return f"{kind} of {', '.join(map(_part_name, parts))}"
    agent = entry.get("agent")
    for part in (entry, agent if isinstance(agent, Mapping) else {}):
        for key in ("model", "function", "name", "unit"):
            if isinstance(part.get(key), str):
                return f"{kind} `{public_name(part[key])}`"
    return kind


def _part_name(part: Any) -> str:
    inner, weight = part, None
    if isinstance(part, Mapping):
        inner, weight = part.get("reward", part), part.get("weight")
    name = reward_name(inner)
    name = f"({name})" if isinstance(inner, Mapping) and "rewards" in inner else name
    return name if weight is None else f"{weight} x {name}"


def project_url() -> str:
    """Return the address of the project in its own metadata: its repository, or the paper."""
    entries = metadata("toa_trl").get_all("Project-URL") or []
    urls: dict[str, str] = dict(entry.split(", ", 1) for entry in entries)
    return urls.get("Repository") or urls["Paper"]
