"""The endpoints file of a running fleet: where agents and the reward model are reached."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from toa_trl.errors import ConfigError
from toa_trl.serving.fleet import FleetConfig
from toa_trl.utils.config import Config, Text, validate
from toa_trl.utils.files import read_yaml, replace_text


def write_endpoints(fleet: FleetConfig) -> None:
    """Write the endpoints file of a fleet atomically."""
    content = endpoints_of(fleet).model_dump(exclude_none=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    replace_text(Path(fleet.endpoints), text)


def endpoints_of(fleet: FleetConfig) -> "Endpoints":
    """Return where the servers of a fleet are reached once it runs."""
    agents: dict[str, _Served] = {}
    reward = None
    for server in fleet.servers:
        urls = [fleet.url(replica) for replica in fleet.replicas if replica.server is server]
        served = _Served(model=server.model, base_url=urls)
        if server.reward:
            reward = served
        else:
            agents[server.name] = served
    return Endpoints(agents=agents, reward=reward)


class _Served(Config):
    model: Text
    base_url: list[Text]


class Endpoints(Config):
    """The contents of the endpoints file."""

    agents: dict[str, _Served]
    """Model and base URLs by the agents' names."""
    reward: _Served | None = None
    """The reward model, if the fleet has one."""


def load_endpoints(path: Path | str) -> Endpoints:
    """Read the endpoints file of a running fleet.

    Raises:
        ConfigError: there is no such file (no fleet is running), or its contents are invalid.
    """
    remedy = "; start `toa-trl serve-agents` first, and wait until it reports that it is ready"
    content = read_yaml(Path(path), remedy=remedy)
    try:
        endpoints: Endpoints = validate(Endpoints, content)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: not a file of `toa-trl serve-agents` ({error}); start it again"
        ) from None
    return endpoints


def apply_endpoints(
    agents: Sequence[Mapping[str, Any]], reward: Mapping[str, Any], path: Path | str
) -> tuple[list[Any], dict[str, Any]]:
    """Return the entries of a run with the fleet's `base_url`, and `model` where none is given.

    Agents (engine: openai) are found by name, also a judge's; a reward (kind: vllm) is the fleet's
    only one, also as part of a combination. Entries with a base_url, and those of other engines or
    kinds, are unchanged.

    Raises:
        ConfigError: the fleet is not running, does not serve this agent or reward, or serves
            another model for it.
    """
    endpoints = load_endpoints(path)
    return (
        with_endpoints(list(agents), endpoints, str(path)),
        with_endpoints(reward, endpoints, str(path)),
    )


def with_endpoints(value: Any, endpoints: Endpoints, source: str) -> Any:
    """Return a configuration in which every entry that a fleet serves has its `base_url`.

    Args:
        value: an entry, or a mapping or list with entries at any depth.
        endpoints: of the fleet.
        source: what lists the servers, for errors.

    Raises:
        ConfigError: see `apply_endpoints`.
    """
    if isinstance(value, list | tuple):
        return [with_endpoints(part, endpoints, source) for part in value]
    if not isinstance(value, Mapping):
        return value  # invalid entries are reported where agents and rewards are made
    entry = {key: with_endpoints(part, endpoints, source) for key, part in value.items()}
    if entry.get("engine") == "openai":
        name = str(entry.get("name"))
        served, label = endpoints.agents.get(name), f"agent {name!r}"
    elif entry.get("kind") == "vllm":
        served, label = endpoints.reward, "reward 'vllm'"
    else:
        return entry
    if "base_url" in entry:
        return entry
    if served is None:
        names = ", ".join([*endpoints.agents, *(["a reward"] if endpoints.reward else [])])
        raise ConfigError(
            f"{label}: {source} does not list it, only {names}; add it to fleet.yaml, "
            "or set base_url"
        )
    if entry.get("model", served.model) != served.model:
        raise ConfigError(
            f"{label}.model: {source} serves {served.model!r}, not {entry['model']!r}"
        )
    return {**entry, **served.model_dump()}
