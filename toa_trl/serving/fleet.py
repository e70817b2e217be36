"""A fleet of vLLM servers for agents and the reward model: fleet.yaml.

`toa_trl/serving/supervisor.py` keeps a fleet running.
"""

import json
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from toa_trl.errors import ConfigError
from toa_trl.utils.config import (
    CHECKED_VARIABLES,
    Config,
    Fraction,
    NonNegativeInt,
    Port,
    PositiveFloat,
    PositiveInt,
    Text,
    check_names,
    validate,
)
from toa_trl.utils.files import expand_paths, read_yaml

LOCAL = ("127.0.0.1", "localhost")
# options of vLLM that other keys set
TAKEN = {"model", "served-model-name", "host", "port", "runner", "chat-template"}
TAKEN |= {"tensor-parallel-size", "gpu-memory-utilization"}


def _check_launcher(launcher: str) -> str:
    if "{model}" not in launcher:
        raise ValueError("must be a command that contains {model}")
    shlex.split(launcher)
    return launcher


def _check_file(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError("must be an existing file")
    return path


def _check_option(name: str) -> str:
    if name.replace("_", "-") in TAKEN:
        raise ValueError("must not be an option that a key of the server or fleet sets")
    return name


def _check_value(value: Any) -> Any:
    if value is None:
        raise ValueError("must have a value; true stands for the bare flag")
    return value


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError("must consist of letters, digits, '.', '_' and '-'")
    return name


def _check_gpus(value: Any) -> Any:
    if value is None:
        return value
    replicas = value if isinstance(value, list) and isinstance((value or [0])[0], list) else [value]
    for gpus in replicas:
        valid = isinstance(gpus, list) and gpus and all(type(g) is int and g >= 0 for g in gpus)
        if not valid or len(set(gpus)) < len(gpus):
            raise ValueError("must be a list such as [0, 1], or with replicas [[0], [1]]")
    return value


Launcher = Annotated[str, AfterValidator(_check_launcher)]
Name = Annotated[str, AfterValidator(_check_name)]
Option = Annotated[str, AfterValidator(_check_option)]


class ServerConfig(Config):
    """One entry of `servers`: a vLLM server, or several replicas of it."""

    name: Name
    """The agent's name in the run's configuration: letters, digits, '.', '_' and '-'."""
    model: Text
    """A folder, or a name on the Hub."""
    port: Port
    """Port of the first replica; each further replica takes the next one."""
    gpus: Annotated[list[int] | list[list[int]] | None, BeforeValidator(_check_gpus)] = None
    """[0, 1]: one server on both; [[0], [1]]: a replica on each; by default the visible ones.
    Servers share a GPU if their memory_share adds up to at most 1."""
    tensor_parallel: PositiveInt | None = None
    """vLLM's --tensor-parallel-size; by default the number of GPUs of a replica."""
    memory_share: Annotated[Fraction, Field(gt=0)] | None = None
    """vLLM's --gpu-memory-utilization."""
    chat_template: Annotated[str, AfterValidator(_check_file)] | None = None
    """vLLM's --chat-template, a file."""
    args: dict[Option, Annotated[Any, AfterValidator(_check_value)]] = Field(default_factory=dict)
    """Further options of vLLM: true is the bare flag, false --no-FLAG, a list several arguments, a
    mapping JSON. generation-config is vllm (neutral sampling) unless set here."""
    env: Annotated[dict[str, str | int | float], CHECKED_VARIABLES] = Field(default_factory=dict)
    """Environment variables of the server, such as {VLLM_CPU_KVCACHE_SPACE: 4}."""
    served_names: list[Text] = Field(default_factory=list)
    """Names under which the model is known; by default that of `model`."""
    reward: bool = False
    """Whether this is the run's reward model (--runner pooling); at most one server."""
    launcher: Launcher | None = None
    """Command that starts the server; by default the fleet's."""

    @property
    def placement(self) -> list[list[int]]:
        """The GPUs of each replica; an empty list stands for those that are visible."""
        gpus: list[Any] = self.gpus or []
        return gpus if gpus and isinstance(gpus[0], list) else [gpus]

    @property
    def options(self) -> list[str]:
        """The command-line options of vLLM, without host and port."""
        # neutral sampling, as on every engine: not that of the model's generation_config.json
        given: dict[str, Any] = {"generation-config": "vllm"}
        if self.reward:
            given = {"runner": "pooling"}
        size = self.tensor_parallel or max(1, len(self.placement[0]))
        given |= {"tensor-parallel-size": size} if size > 1 else {}
        given |= {"gpu-memory-utilization": self.memory_share} if self.memory_share else {}
        given |= {"served-model-name": self.served_names} if self.served_names else {}
        given |= {"chat-template": self.chat_template} if self.chat_template else {}
        options = []
        for name, value in {**given, **self.args}.items():
            options.append(f"--no-{name}" if value is False else f"--{name}")
            if isinstance(value, Mapping):
                options.append(json.dumps(value))
            elif not isinstance(value, bool):
                options += map(str, value if isinstance(value, list) else [value])
        return options

    def check(self, path: str) -> None:
        """Check what concerns several keys.

        Raises:
            ConfigError: the keys contradict each other.
        """
        if self.port + len(self.placement) > 65536:
            raise ConfigError(f"{path}.port: the port of the last replica must be <= 65535")
        smallest = min(len(gpus) for gpus in self.placement)
        if self.tensor_parallel and self.gpus and self.tensor_parallel > smallest:
            raise ConfigError(
                f"{path}.tensor_parallel: must be <= the number of GPUs of each replica "
                f"({smallest}), not {self.tensor_parallel}"
            )
        if self.gpus is not None and "CUDA_VISIBLE_DEVICES" in self.env:
            raise ConfigError(f"{path}.env: CUDA_VISIBLE_DEVICES conflicts with gpus; remove one")


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of a server."""

    label: str  # the server's name; name-0, name-1, ... if there are several replicas
    server: ServerConfig
    port: int
    gpus: tuple[int, ...]  # empty: those that are visible


class FleetOptions(Config):
    """What all servers of a fleet have in common."""

    launcher: Launcher = "vllm serve {model}"
    """Command that starts a server."""
    host: Name = "127.0.0.1"
    """Host name or IPv4 address under which other machines reach this one."""
    start_timeout_s: PositiveFloat = 1800.0
    """Time for a server to become healthy, including the download of its model."""
    max_restarts: NonNegativeInt = 3
    """Restarts per server; counted anew once it was healthy for 10 minutes."""


class FleetConfig(FleetOptions):
    """The contents of fleet.yaml; `toa-trl serve-agents --help` shows an example."""

    servers: Annotated[list[ServerConfig], Field(min_length=1)]
    """The servers."""
    endpoints: Text = "endpoints.yaml"
    """File with the base URLs, written once every server is healthy and removed at the end."""
    log_dir: Text = "logs/fleet"
    """Folder with one log file per server."""

    @model_validator(mode="after")
    def _check_servers(self) -> Self:
        """Check what concerns several keys or servers."""
        for number, server in enumerate(self.servers):
            server.check(f"servers[{number}]")
        rewards = [server.name for server in self.servers if server.reward]
        if len(rewards) > 1:
            several = " and ".join(rewards)
            raise ConfigError(f"servers: {several} have reward: true; a run has one reward model")
        names = [server.name for server in self.servers]
        names += [r.label for r in self.replicas if r.label != r.server.name]
        check_names("servers", names)
        ports: dict[int, str] = {}
        users: dict[int, list[Replica]] = defaultdict(list)
        for replica in self.replicas:
            other = ports.setdefault(replica.port, replica.label)
            if other != replica.label:
                pair = f"{other} and {replica.label}"
                raise ConfigError(f"servers: {pair} both use port {replica.port}")
            for gpu in replica.gpus:
                users[gpu].append(replica)
        for gpu, replicas in users.items():
            total = sum(replica.server.memory_share or 1.0 for replica in replicas)
            if len(replicas) > 1 and total > 1 + 1e-9:
                labels = " and ".join(replica.label for replica in replicas)
                raise ConfigError(
                    f"servers: {labels} share GPU {gpu}; give each a memory_share, "
                    "at most 1 in total"
                )
        return self

    @cached_property
    def replicas(self) -> list[Replica]:
        """Every process of the fleet."""
        replicas = []
        for server in self.servers:
            for i, gpus in enumerate(server.placement):
                label = f"{server.name}-{i}" if len(server.placement) > 1 else server.name
                replicas.append(Replica(label, server, server.port + i, tuple(gpus)))
        return replicas

    @property
    def address(self) -> str:
        """The address on which the servers listen."""
        return "127.0.0.1" if self.host in LOCAL else "0.0.0.0"

    def command(self, replica: Replica) -> list[str]:
        """Return the command that starts a replica."""
        launcher = shlex.split(replica.server.launcher or self.launcher)
        return [
            *(part.replace("{model}", replica.server.model) for part in launcher),
            *("--host", self.address, "--port", str(replica.port)),
            *replica.server.options,
        ]

    def url(self, replica: Replica) -> str:
        """Return the base URL under which other machines reach a replica."""
        return f"http://{self.host}:{replica.port}/v1"

    def environment(self, replica: Replica) -> dict[str, str]:
        """Return a replica's environment variables: those of this process, and its own."""
        variables = {**os.environ}
        variables |= {name: str(value) for name, value in replica.server.env.items()}
        if replica.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, replica.gpus))
        return variables


def load_fleet(path: Path) -> FleetConfig:
    """Read and validate fleet.yaml.

    Raises:
        ConfigError: the file cannot be read, or a key or value is invalid.
    """
    remedy = "; see `toa-trl serve-agents --help` for an example"
    content = expand_paths(read_yaml(path, remedy=remedy))
    try:
        fleet: FleetConfig = validate(FleetConfig, content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return fleet
