"""Where a data set comes from: in its run's folder, on the Hub beside the data, in a model's card and in a tracker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toa_trl.hub.dataset_card import reward_name
from toa_trl.utils.files import replace_text
from toa_trl.utils.redaction import public_name

FILE = "lineage.json"


def fingerprint(identity: Mapping[str, Any]) -> str:
    """What tells one run from another: 16 hexadecimal digits of everything that decides its result."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def lineage_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What made a run's data, without the addresses and keys that its entries may hold.

    Returns:
        fingerprint, search, search_params, budget, seed, task (its name), agents (name -> model, or None), reward (in
        words) and prompts ({number, digest}).
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
    }


def _model(agent: Any) -> str | None:
    model = agent.get("model") if isinstance(agent, Mapping) else None
    return public_name(model) if model else None


def write_lineage(run_dir: Path, identity: Mapping[str, Any]) -> None:
    """Write lineage.json beside sft/, dpo/ and rollouts/."""
    replace_text(
        run_dir / FILE, json.dumps(lineage_of(identity), indent=2, ensure_ascii=False) + "\n"
    )


def read_lineage(dataset: str, revision: str | None = None) -> dict[str, Any]:
    """What lineage.json says of a data set of this package; empty for any other.

    Args:
        dataset: a run's folder, its sft or dpo folder, or the Hub name of a data set that was pushed.
        revision: of the Hub's.
    """
    place = Path(dataset)
    if place.exists():
        file = next((at / FILE for at in (place, place.parent) if (at / FILE).is_file()), None)
    else:
        file = from_hub(dataset, "dataset", revision)
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def from_hub(name: str, repo_type: str, revision: str | None = None) -> Path | None:
    """lineage.json of a repository, in this machine's cache; None where it is not known.

    Args:
        name: of the repository.
        repo_type: "dataset" or "model".
        revision: of it.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, FILE, repo_type=repo_type, revision=revision))
    except Exception:  # no such file, name or network: nothing else depends on it
        return None
