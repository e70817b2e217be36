"""What decides a run: which keys may change on resume, digests, fingerprints, and their comparison.

A run's identity is a JSON mapping of everything that decides its results: search, budget, seed,
sampling, task, agents, reward model and prompts. It is stored in the journal; a resume with another
identity is refused. Entries are kept as the user wrote them, without the operational keys.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toa_trl.agents import Agent
from toa_trl.errors import ConfigError
from toa_trl.rewards import RewardModel
from toa_trl.types import Prompt, as_dicts

logger = logging.getLogger(__name__)
LONGEST = 100  # characters of a value that an error shows whole
BEFORE_CHANGE = 30  # characters of a long value that an error shows before the first difference

OPERATIONAL_KEYS = frozenset(
    {
        "base_url",
        "url",
        "api_key_env",
        "device",
        "devices",
        "max_batch_size",
        "max_batch_tokens",
        "max_concurrency",
        "max_attempts",
        "timeout_s",
        "wait_s",
        "latency_s",
        "price",
    }
)
"""Keys of agent and reward entries that may change on resume: where, how fast, what it costs."""

OPERATIONAL_RUN_KEYS = frozenset(
    {
        "endpoints",
        "prompts_in_flight",
        "patience_s",
        "runner",
        "num_shards",
        "num_cpus",
        "num_gpus",
        "ray_address",
    }
)
"""Keys of a run's configuration that may change when a run is resumed."""


def decisive(value: Any) -> Any:
    """Return a configuration entry without operational keys, also in the entries nested in it.

    An agent, a reward model or a function in it becomes what identifies it.
    """
    if isinstance(value, Mapping):
        return {key: decisive(inner) for key, inner in value.items() if key not in OPERATIONAL_KEYS}
    if isinstance(value, list | tuple):
        return [decisive(inner) for inner in value]
    if isinstance(value, Agent | RewardModel):
        return decisive(value.identity)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def identity_of_run(identity: Mapping[str, Any], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return the identity of a sampler with that of its prompts, as the journal stores it."""
    return {**identity, "prompts": {"number": len(prompts), "digest": digest_of_prompts(prompts)}}


def digest_of_prompts(prompts: Iterable[Prompt]) -> str:
    """Return 16 hexadecimal digits of ids, messages and metadata; metadata decides rewards."""
    digest = hashlib.sha256().hexdigest()[:16]
    for longer in digests_of_prompts(prompts):
        digest = longer
    return digest


def digests_of_prompts(prompts: Iterable[Prompt]) -> Iterator[str]:
    """Yield the digest of the first prompt, of the first two, and so on."""
    digest = hashlib.sha256()
    for prompt in prompts:
        row = [prompt.id, as_dicts(prompt.messages), dict(prompt.metadata)]
        digest.update(json.dumps(row, default=str).encode())
        yield digest.hexdigest()[:16]


def digest_of_values(*values: Any) -> str:
    """Return 16 hexadecimal digits of JSON values, independent of the order of keys."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def state_of_files(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size in bytes and modification time in ns of a checkpoint's files.

    A checkpoint that was trained again has another state; its README.md does not count.
    """
    states = []
    for file in sorted(path.glob("*.*")) if path.is_dir() else [path]:
        if file.is_file() and file.name != "README.md":
            stat = file.stat()
            states.append((file.name, stat.st_size, stat.st_mtime_ns))
    return states


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that distinguish one run from another."""
    order = list(identity.get("agents") or ())
    if order != sorted(order):  # it decides ties; sorted agents have the digits of version 0.1.0
        identity = {**identity, "order": order}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def check_same_identity(
    path: str | Path, stored: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Check that a run is resumed with the configuration that it was started with.

    Contents that only one of the two records cannot be compared, which is a warning.

    Raises:
        ConfigError: the identities differ; the message lists every key that does.
    """
    lines = differences(stored, identity)
    if lines:
        grown = any(line.startswith(("budget:", "prompts.", "agents.")) for line in lines)
        extend = "let the run grow with --extend, " if grown else ""
        raise ConfigError(
            f"{path} was created with a different configuration; restore it, {extend}or choose "
            "another output_dir. Differences (then -> now):\n"
            + "\n".join(f"  {line}" for line in lines)
        )
    warn_of_unknown_contents(path, stored, identity)


def warn_of_unknown_contents(
    path: str | Path, stored: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Warn of contents that only one of two identities records."""
    one_sided = (stored.get("contents") or {}).keys() ^ (identity.get("contents") or {}).keys()
    if one_sided:
        logger.warning(
            "%s: whether the content of %s is unchanged is not known, because it was recorded by "
            "an earlier version or where the files were missing; make sure that it is",
            path,
            ", ".join(sorted(one_sided)),
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for everything in which two identities differ, such as "seed: 0 -> 1"."""
    then, now = dict(old), json.loads(json.dumps(new))
    contents = _changed_contents(then.pop("contents", None) or {}, now.pop("contents", None) or {})
    lines = [*_changed_keys(then, now), *contents]
    order, new_order = list(old.get("agents") or ()), list(new.get("agents") or ())
    if order != new_order and sorted(order) == sorted(new_order):
        lines.append(f"order of agents: {', '.join(order)} -> {', '.join(new_order)}")
    return lines


def _changed_contents(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    lines = []
    for place in old.keys() & new.keys():
        then, now = old[place], new[place]
        if not (isinstance(then, Mapping) and isinstance(now, Mapping)):
            what = "the source code has" if place.endswith(")") else "the settings have"
            lines += [f"{place}: {what} changed"] if then != now else []
            continue
        files = [name for name in dict.fromkeys([*then, *now]) if then.get(name) != now.get(name)]
        lines += [f"{place}: changed files: {', '.join(files)}"] if files else []
    return sorted(lines)


def _changed_keys(old: Any, new: Any, path: str = "") -> list[str]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{path}: {_change(json.dumps(old), json.dumps(new))}"]
    lines = []
    for key in dict.fromkeys([*old, *new]):
        inner = f"{path}.{key}" if path else key
        lines += _changed_keys(old.get(key), new.get(key), inner)
    return lines


def _change(old: str, new: str) -> str:
    """Return "old -> new"; of long texts, such as templates, the part in which they differ."""
    start = 0
    if max(len(old), len(new)) > LONGEST:
        pairs = enumerate(zip(old, new, strict=False))
        same = next((at for at, (then, now) in pairs if then != now), min(len(old), len(new)))
        start = max(same - BEFORE_CHANGE, 0)
    return f"{_part(old, start)} -> {_part(new, start)}"


def _part(text: str, start: int) -> str:
    end = start + LONGEST
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")
