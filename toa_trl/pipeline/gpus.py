"""Which stage has which GPUs: which exist, which are named, and which each process sees."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.fleets import fleet_of
from toa_trl.pipeline.plan import Plan
from toa_trl.rewards.deferred import models_in

VARIABLE = "CUDA_VISIBLE_DEVICES"
SAMPLING = ("synthesize", "evaluate")  # commands that load models of their configuration
SCORERS = ("reward", "verifier", "comet", "judge")  # their keys that name a reward model or judge
Labelled = tuple[str, Mapping[str, Any]]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    GPU 0 of a pipeline is the first of them, so that it works inside an allocation, too.
    """
    named = os.environ.get(VARIABLE)
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip()]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]


def names_gpus(plan: Plan) -> bool:
    """Return whether any stage or server names its GPUs."""
    pool = plan.config.servers
    servers = pool.servers if pool else []
    named = [stage.gpus for stage in plan.stages]
    named += [server.get("gpus") for server in servers]
    return any(gpus is not None for gpus in named)


def check_gpus(plan: Plan, visible: Sequence[str], dry_run: bool = False) -> None:
    """Check the map of GPUs.

    Args:
        plan: of the pipeline.
        visible: see `visible_gpus`.
        dry_run: the plan may be for another machine, if machine.gpus says how many it has.

    Raises:
        ConfigError: a GPU does not exist or has two users at a time, or somebody names none while
            others do, and would take GPU 0.
    """
    if not names_gpus(plan):
        return
    given = plan.config.machine.gpus
    if given is not None and given > len(visible) and not dry_run:
        raise ConfigError(f"machine.gpus: must be <= {len(visible)}, the GPUs here, not {given}")
    number = given if given is not None else len(visible)
    for stage in plan.stages:
        place, users = plan.place(stage), dict[int, str]()
        if stage.is_training and stage.gpus is None and not stage.command:
            raise ConfigError(f"{place}.gpus: the key is missing; {stage.folder} needs a GPU")
        for gpu in stage.gpus or ():
            users[gpu] = stage.folder
        fleet = fleet_of(plan, stage, 1)
        for replica in fleet.replicas if fleet else ():
            if not replica.gpus:
                raise ConfigError(
                    f"servers: {replica.label} has no gpus; without them it would take GPU 0"
                )
            for gpu in replica.gpus:
                if users.get(gpu) == stage.folder:
                    raise ConfigError(
                        f"{place}.gpus: GPU {gpu} is that of the server {replica.label}, which "
                        "runs during the stage"
                    )
                users[gpu] = replica.label
        for gpu, user in users.items():
            if gpu >= number:
                there = f"there are {number}, counted from 0" if number else "there is none"
                raise ConfigError(f"{place}: GPU {gpu} of {user} does not exist; {there}")
        _check_processes(stage, place)
        _check_models(plan, stage)


def _check_processes(stage: StageConfig, place: str) -> None:
    number = stage.launch.get("num_processes")
    if not stage.is_training or not stage.gpus or number is None:
        return
    if "num_machines" not in stage.launch and int(number) != len(stage.gpus):
        raise ConfigError(
            f"{place}.launch.num_processes: must be {len(stage.gpus)}, the number of gpus, not "
            f"{number}"
        )


def _check_models(plan: Plan, stage: StageConfig) -> None:
    """Refuse devices that a stage does not have, and two models on one GPU by accident."""
    if stage.run not in SAMPLING or not stage.gpus:
        return
    place, num_gpus = plan.place(stage), len(stage.gpus)
    for together in models_of(plan, stage):
        users = dict[int, tuple[str, bool]]()
        for label, entry in together:
            is_given = bool(entry.get("devices") or entry.get("device"))
            for device, gpus in replicas_of(entry, num_gpus).items():
                if any(gpu >= num_gpus for gpu in gpus):
                    raise ConfigError(
                        f"{place}: {label} names {device}, but the stage has {num_gpus} GPUs, "
                        "counted from 0"
                    )
                for gpu in gpus:
                    other, other_given = users.setdefault(gpu, (label, is_given))
                    if other != label and not (is_given and other_given):
                        raise ConfigError(
                            f"{place}: {other} and {label} would share GPU {gpu} by default; give "
                            "each a device"
                        )


def models_of(plan: Plan, stage: StageConfig) -> list[list[Labelled]]:
    """Return the models that a synthesis or evaluation loads into its own process, with labels.

    Returns:
        One list of those that are in memory at the same time for each such group: a synthesis has
        all models at once, an evaluation one of its models or judges after the other.
    """
    content = plan.content(stage, 1)
    given = [*(content.get("agents") or ()), *(content.get("models") or ())]
    parts = [(f"agent {entry.get('name')!r}", entry) for entry in given]
    parts += [(f"the {key}", content.get(key)) for key in SCORERS]
    groups = list[list[Labelled]]()
    for label, part in parts:
        groups.append([(label, entry) for entry in models_in(part)])
    return groups if stage.run == "evaluate" else [list(chain.from_iterable(groups))]


def replicas_of(entry: Mapping[str, Any], num_gpus: int) -> dict[str, list[int]]:
    """Return the GPUs of each replica of a model in the process, by the name of its device.

    Without a device, a model takes the first GPU, and one of vLLM as many as it is divided over.
    """
    split = (entry.get("engine_args") or {}).get("tensor_parallel_size")
    first = range(split if isinstance(split, int) else 1)
    default = f"cuda:{','.join(map(str, first))}"
    replicas = dict[str, list[int]]()
    for device in entry.get("devices") or [entry.get("device") or default]:
        kind, _, numbers = device.partition(":")
        if kind == "cuda":
            replicas[device] = [int(part) for part in numbers.split(",") if part.isdigit()] or [0]
        else:
            replicas[device] = list(range(num_gpus)) if device == "auto" else []
    return replicas


def environment_of(plan: Plan, stage: StageConfig, visible: Sequence[str]) -> dict[str, str]:
    """Return the environment variables of a stage's command."""
    own = {name: str(value) for name, value in stage.env.items()}
    if stage.gpus is not None:
        own[VARIABLE] = ",".join(visible[gpu] for gpu in stage.gpus)
    elif names_gpus(plan):
        own[VARIABLE] = ""
    return own


def on_machine(fleet: Mapping[str, Any], visible: Sequence[str]) -> dict[str, Any]:
    """Return the content of a fleet.yaml with the GPUs as this machine numbers them.

    Raises:
        ConfigError: CUDA_VISIBLE_DEVICES does not hold numbers.
    """

    def renumbered(gpus: Any) -> Any:
        if isinstance(gpus, list):
            return [renumbered(gpu) for gpu in gpus]
        if not visible[gpus].isdigit():
            raise ConfigError(f"{VARIABLE}: servers need numbers of GPUs, not {visible[gpus]!r}")
        return int(visible[gpus])

    servers = [
        {**server, "gpus": renumbered(server["gpus"])} if server.get("gpus") else server
        for server in fleet["servers"]
    ]
    return {**fleet, "servers": servers}
