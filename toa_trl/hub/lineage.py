"""Where a data set comes from: lineage.json, in a run's folder and on the Hub."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toa_trl.hub.dataset_card import reward_name
from toa_trl.sampling.budget import PlaysPerPrompt
from toa_trl.sampling.identity import fingerprint
from toa_trl.utils.files import read_object, write_json
from toa_trl.utils.redaction import public_name
from toa_trl.utils.targets import marked

FILE = "lineage.json"


def lineage_of(identity: Mapping[str, Any], plays: PlaysPerPrompt | None = None) -> dict[str, Any]:
    """Return how a run's data were made, without addresses and keys.

    Args:
        identity: of the run.
        plays: of an adaptive allocation, the plays that the prompts have.

    Returns:
        fingerprint, search, search_params, budget, seed, task (its name), agents (name -> model or
        None), reward (a description), prompts ({number, digest}), max_tokens (the most that a
        response may have, if known) and, of an adaptive allocation, plays_per_prompt.
    """
    task = identity.get("task") or "alignment"
    agents = identity.get("agents") or {}
    return {
        "fingerprint": fingerprint(identity),
        **{key: identity.get(key) for key in ("search", "search_params", "budget", "seed")},
        "task": task.get("name") if isinstance(task, Mapping) else task,
        "agents": {name: _model(agent) for name, agent in agents.items()},
        "reward": reward_name(identity.get("reward")),
        "prompts": identity.get("prompts"),
        **_max_tokens(identity),
        **({"plays_per_prompt": asdict(plays)} if plays else {}),
    }


def _max_tokens(identity: Mapping[str, Any]) -> dict[str, int]:
    """Return {max_tokens}: of the run's sampling, or the largest that an agent has of its own."""
    sampled = [identity.get("sampling")]
    for agent in (identity.get("agents") or {}).values():
        sampled.append(agent.get("sampling") if isinstance(agent, Mapping) else None)
    limits = [entry.get("max_tokens") for entry in sampled if isinstance(entry, Mapping)]
    known = [limit for limit in limits if isinstance(limit, int)]
    return {"max_tokens": max(known)} if known else {}


def _model(agent: Any) -> str | None:
    model = agent.get("model") if isinstance(agent, Mapping) else None
    return public_name(model) if model else None


def write_lineage(
    run_dir: Path, identity: Mapping[str, Any], plays: PlaysPerPrompt | None = None
) -> None:
    """Write lineage.json beside sft/, dpo/ and rollouts/; see `lineage_of`."""
    write_json(run_dir / FILE, marked(lineage_of(identity, plays)), ensure_ascii=False)


def read_lineage(dataset: str, revision: str | None = None) -> dict[str, Any]:
    """Return the lineage of a data set; empty if the data set is not one of this package.

    Args:
        dataset: a run's folder, its sft or dpo folder, or the name of a data set on the Hub.
        revision: revision on the Hub.
    """
    folder = Path(dataset)
    if folder.exists():
        files: list[Path | None] = [folder / FILE, folder.parent / FILE]
    else:
        files = [from_hub(dataset, "dataset", revision)]
    lineage = read_first(files)
    lineage.pop("toa_trl", None)  # the marker
    return lineage


def read_first(files: Sequence[Path | None]) -> dict[str, Any]:
    """Return the JSON object in the first of these files that exists; empty if there is none."""
    first = next((file for file in files if file is not None and file.is_file()), None)
    return read_object(first) if first else {}


def from_hub(name: str, repo_type: str, revision: str | None = None) -> Path | None:
    """Return a repository's lineage.json in this machine's cache, or None if it is not available.

    Args:
        name: name of the repository.
        repo_type: "dataset" or "model".
        revision: revision of the repository.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, FILE, repo_type=repo_type, revision=revision))
    except Exception:  # no such file or name, or no network: the lineage is optional
        return None
