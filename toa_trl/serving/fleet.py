"""A fleet of vLLM servers, agents and reward model alike: what fleet.yaml says, and the endpoints file for its users.

`toa_trl/serving/supervisor.py` keeps a fleet running.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from toa_trl.errors import ConfigError
from toa_trl.utils.files import read_yaml, replace_text
from toa_trl.utils.registry import check_number, check_whole, construct

LOCAL = ("127.0.0.1", "localhost")
TAKEN = {  # options of vLLM that other keys set
    "model",
    "served-model-name",
    "host",
    "port",
    "runner",
    "tensor-parallel-size",
    "gpu-memory-utilization",
    "chat-template",
}


@dataclass(frozen=True, slots=True)
class Server:
    """One entry of `servers`.

    Raises:
        ConfigError: a value is out of its range, or the chat template is not there.
    """

    name: str  # of the agent; letters, digits, . _ -
    model: str
    port: int  # of the first replica; the others count up
    gpus: Any = None  # [0, 1]: one server on both; [[0], [1]]: a replica on each; None: what the environment has
    tensor_parallel: int | None = None  # default: the number of GPUs of a replica
    memory_share: float | None = None  # of each GPU, (0, 1]
    chat_template: str | None = None  # a file
    args: Mapping[str, Any] = field(
        default_factory=dict
    )  # further options; true: the flag alone, false: --no-flag
    env: Mapping[str, Any] = field(default_factory=dict)  # environment variables
    reward: bool = False
    launcher: str | None = None  # default: the fleet's

    def __post_init__(self) -> None:
        place = f"server {self.name!r}"
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.-]+", self.name):
            raise ConfigError(f"{place}: name must consist of letters, digits, '.', '_' and '-'")
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError(f"{place}: model must be a folder or a Hub name, not {self.model!r}")
        if not isinstance(self.reward, bool):
            raise ConfigError(f"{place}: reward must be true or false, not {self.reward!r}")
        for gpus in self.placement if self.gpus is not None else ():
            if (
                not gpus
                or not all(type(gpu) is int and gpu >= 0 for gpu in gpus)
                or len(set(gpus)) < len(gpus)
            ):
                raise ConfigError(
                    f"{place}: gpus must be as [0, 1], or with replicas as [[0], [1]], not {self.gpus!r}"
                )
        check_whole(f"{place}: port", self.port, at_least=1)
        if self.port + len(self.placement) > 65536:
            raise ConfigError(f"{place}: port must be <= 65535, that of its last replica as well")
        if self.tensor_parallel is not None:
            check_whole(f"{place}: tensor_parallel", self.tensor_parallel, at_least=1)
            if any(gpus and self.tensor_parallel > len(gpus) for gpus in self.placement):
                raise ConfigError(
                    f"{place}: tensor_parallel {self.tensor_parallel} needs as many gpus in each replica"
                )
        if self.memory_share is not None:
            check_number(f"{place}: memory_share", self.memory_share, 0, above=True)
            if self.memory_share > 1:
                raise ConfigError(f"{place}: memory_share must be <= 1, not {self.memory_share}")
        if self.chat_template is not None and not Path(str(self.chat_template)).is_file():
            raise ConfigError(f"{place}: chat_template: there is no file {self.chat_template!r}")
        for key, mapping in (("args", self.args), ("env", self.env)):
            if not isinstance(mapping, Mapping) or None in mapping.values():
                raise ConfigError(
                    f"{place}: {key} must be a mapping of names to values, not {mapping!r}"
                )
        for name, value in self.env.items():
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ConfigError(
                    f"{place}: env: {name} must be a text or a number, not {value!r}; put it in quotes"
                )
        for option in self.args:
            if str(option).replace("_", "-") in TAKEN:
                raise ConfigError(
                    f"{place}: args: {option} is set by a key of the server, or of the fleet; see --help"
                )
        if self.gpus is not None and "CUDA_VISIBLE_DEVICES" in self.env:
            raise ConfigError(
                f"{place}: gpus and env: CUDA_VISIBLE_DEVICES say the same; leave one out"
            )

    @property
    def placement(self) -> list[list[int]]:
        """The GPUs of each replica."""
        lists = (
            isinstance(self.gpus, list)
            and self.gpus
            and all(isinstance(gpus, list) for gpus in self.gpus)
        )
        return self.gpus if lists else [self.gpus if isinstance(self.gpus, list) else []]

    @property
    def options(self) -> list[str]:
        """The options of vLLM, but for host and port."""
        given: dict[str, Any] = {"runner": "pooling"} if self.reward else {}
        size = self.tensor_parallel or max(1, len(self.placement[0]))
        given |= {"tensor-parallel-size": size} if size > 1 else {}
        given |= {"gpu-memory-utilization": self.memory_share} if self.memory_share else {}
        given |= {"chat-template": self.chat_template} if self.chat_template else {}
        words = []
        for option, value in {**given, **self.args}.items():
            words.append(f"--no-{option}" if value is False else f"--{option}")
            if isinstance(value, Mapping):
                words.append(json.dumps(value))
            elif not isinstance(value, bool):
                words += map(str, value if isinstance(value, list) else [value])
        return words


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of a server."""

    label: str  # the server's name; name-0, name-1, ... where there are several
    server: Server
    port: int
    gpus: tuple[int, ...]  # none: what the environment has


@dataclass(frozen=True, slots=True)
class Fleet:
    """What fleet.yaml says. `toa_trl/cli/serve_agents.py --help` has an example.

    Raises:
        ConfigError: a value is out of its range, or two servers want the same name, port or share of a GPU.
    """

    servers: Sequence[Any]  # entries of `Server`, which they become
    endpoints: str = "endpoints.yaml"
    launcher: str = "vllm serve {model}"
    host: str = "127.0.0.1"  # under which others reach this machine
    log_dir: str = "logs/fleet"
    start_timeout_s: float = 1800.0
    max_restarts: int = 3  # per server

    def __post_init__(self) -> None:
        if not isinstance(self.servers, list) or not self.servers:
            raise ConfigError("servers: a list of at least one server is needed")
        places = (
            f"server {e.get('name')!r}" if isinstance(e, Mapping) else "servers"
            for e in self.servers
        )
        servers = [
            construct(place, Server, params=e)
            for place, e in zip(places, self.servers, strict=True)
        ]
        object.__setattr__(self, "servers", servers)
        if not isinstance(self.host, str) or not re.fullmatch(r"[\w.-]+", self.host):
            raise ConfigError(f"host: a host name or an IPv4 address is needed, not {self.host!r}")
        for key in ("endpoints", "log_dir"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key):
                raise ConfigError(f"{key}: a path is needed, not {getattr(self, key)!r}")
        for launcher in [
            self.launcher,
            *(server.launcher for server in servers if server.launcher is not None),
        ]:
            _words(launcher)
        check_number("start_timeout_s", self.start_timeout_s, 0, above=True)
        check_whole("max_restarts", self.max_restarts, at_least=0)
        if len(rewards := [server.name for server in servers if server.reward]) > 1:
            raise ConfigError(
                f"servers: {' and '.join(rewards)} are both reward: true; a run has one reward model"
            )
        names, ports, shares = set[str](), dict[int, str](), defaultdict[int, list[Replica]](list)
        for server in servers:
            mine = [replica for replica in self.replicas if replica.server is server]
            for name in {server.name, *(replica.label for replica in mine)}:
                if name in names:
                    raise ConfigError(
                        f"servers: two are called {name!r}; give each a name of its own"
                    )
                names.add(name)
            for replica in mine:
                if other := ports.get(replica.port):
                    raise ConfigError(
                        f"servers: {other} and {replica.label} both want port {replica.port}"
                    )
                ports[replica.port] = replica.label
                for gpu in replica.gpus:
                    shares[gpu].append(replica)
        for gpu, users in shares.items():
            given = [replica.server.memory_share or 1.0 for replica in users]
            if len(users) > 1 and sum(given) > 1 + 1e-9:
                who = " and ".join(replica.label for replica in users)
                raise ConfigError(
                    f"servers: {who} share GPU {gpu}: give each a memory_share, together at most 1"
                )

    @property
    def replicas(self) -> list[Replica]:
        """Every process of the fleet."""
        return [
            Replica(
                server.name + (f"-{i}" if len(server.placement) > 1 else ""),
                server,
                server.port + i,
                tuple(gpus),
            )
            for server in self.servers
            for i, gpus in enumerate(server.placement)
        ]

    def command(self, replica: Replica) -> list[str]:
        """What starts it."""
        words = _words(replica.server.launcher or self.launcher)
        address = [
            "--host",
            "127.0.0.1" if self.host in LOCAL else "0.0.0.0",
            "--port",
            str(replica.port),
        ]
        return (
            [word.replace("{model}", replica.server.model) for word in words]
            + address
            + replica.server.options
        )

    def url(self, replica: Replica) -> str:
        """The base URL under which others reach it."""
        return f"http://{self.host}:{replica.port}/v1"

    def environment(self, replica: Replica) -> dict[str, str]:
        """Its environment variables: those of this process, and its own."""
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, replica.gpus))} if replica.gpus else {}
        return {
            **os.environ,
            **{str(name): str(value) for name, value in replica.server.env.items()},
            **gpus,
        }


def load_fleet(path: Path) -> Fleet:
    """The fleet of a YAML file.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong.
    """
    return construct(
        str(path),
        Fleet,
        params=read_yaml(path, remedy="; see serve_agents.py --help for an example"),
    )


def write_endpoints(fleet: Fleet) -> None:
    """The endpoints file, in one step: whoever sees it sees all of it."""
    agents: dict[str, dict[str, Any]] = {}
    reward: dict[str, Any] = {}
    for server in fleet.servers:
        entry = {
            "model": server.model,
            "base_url": [fleet.url(r) for r in fleet.replicas if r.server is server],
        }
        if server.reward:
            reward = entry
        else:
            agents[server.name] = entry
    content = {"agents": agents, **({"reward": reward} if reward else {})}
    replace_text(
        Path(fleet.endpoints), yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    )


def load_endpoints(path: Path | str) -> dict[str, Any]:
    """{"agents": {name: {model, base_url}}, "reward": {model, base_url}}; there may be no reward.

    Raises:
        ConfigError: there is no such file (no fleet is running), or it is another one.
    """
    remedy = (
        "; start toa_trl/cli/serve_agents.py first, and wait until it says that the fleet is ready"
    )
    endpoints = read_yaml(Path(path), remedy=remedy)
    agents = endpoints.get("agents")
    served = (
        [*agents.values(), *([endpoints["reward"]] if "reward" in endpoints else [])]
        if isinstance(agents, dict)
        else [None]
    )
    if not all(isinstance(each, dict) and {"model", "base_url"} <= each.keys() for each in served):
        raise ConfigError(
            f"{path}: not a file that toa_trl/cli/serve_agents.py wrote; start it again"
        )
    return endpoints


def apply_endpoints(
    agents: Sequence[Mapping[str, Any]], reward: Mapping[str, Any], path: Path | str
) -> tuple[list[Any], dict[str, Any]]:
    """The entries of a run, with what the fleet knows of them: `base_url`, and `model` where none is given.

    Agents (engine: openai) are found by their names, a judge's too; the reward (kind: vllm) is the fleet's only one, also as
    a part of others. An entry that has a base_url stays as it is, and so does one of another engine or kind.

    Raises:
        ConfigError: the fleet is not running, does not serve this agent or reward, or serves another model for it.
    """
    endpoints = load_endpoints(path)

    def filled(
        place: str, entry: Mapping[str, Any], served: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        if "base_url" in entry:
            return dict(entry)
        if served is None:
            known = ", ".join(
                [*endpoints["agents"], *(["a reward"] if "reward" in endpoints else [])]
            )
            raise ConfigError(
                f"{place}: not in {path}, which has {known}; add it to fleet.yaml, or give a base_url"
            )
        if entry.get("model", served["model"]) != served["model"]:
            raise ConfigError(
                f"{place}: model is {entry['model']!r}, but {path} serves {served['model']!r} for it"
            )
        return {**entry, **served}

    def inside(entry: Any) -> Any:
        if isinstance(entry, list | tuple):
            return [inside(each) for each in entry]
        if not isinstance(entry, Mapping):
            return entry  # what is no entry is said where agents and rewards are made
        entry = {key: inside(value) for key, value in entry.items()}
        if entry.get("engine") == "openai":
            return filled(
                f"agent {entry.get('name')!r}",
                entry,
                endpoints["agents"].get(str(entry.get("name"))),
            )
        return (
            filled("reward 'vllm'", entry, endpoints.get("reward"))
            if entry.get("kind") == "vllm"
            else entry
        )

    return [inside(entry) for entry in agents], inside(reward)


def _words(launcher: object) -> list[str]:
    if not isinstance(launcher, str) or "{model}" not in launcher:
        raise ConfigError(f"launcher: a command with {{model}} in it is needed, not {launcher!r}")
    try:
        return shlex.split(launcher)
    except ValueError as error:
        raise ConfigError(f"launcher: {error} in {launcher!r}") from error
