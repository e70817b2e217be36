"""Which stage has which GPUs: which exist, which are named, and which each process sees."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.fleets import fleet_of
from toa_trl.pipeline.plan import Plan
from toa_trl.rewards.deferred import models_in

VARIABLE = "CUDA_VISIBLE_DEVICES"


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
    """Refuse two models in the process of a synthesis that would both take its first GPU."""
    if stage.run != "synthesize" or not stage.gpus:
        return
    place, users = plan.place(stage), dict[str, tuple[str, bool]]()
    for label, entry in models_of(plan.content(stage, 1)):
        given = entry.get("devices") or entry.get("device")
        for device in devices_of(entry):
            _check_device(place, label, device, len(stage.gpus))
            other, is_given = users.setdefault(device, (label, given is not None))
            if other != label and not (is_given and given):
                raise ConfigError(
                    f"{place}: {other} and {label} would share GPU 0 by default; give each a device"
                )


def models_of(content: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the models that a synthesis or evaluation loads into its own process, with labels."""
    given = [*(content.get("agents") or ()), *(content.get("models") or ())]
    parts = [(f"agent {entry.get('name')!r}", entry) for entry in given]
    parts.append(("the reward", content.get("reward")))
    return [(label, entry) for label, part in parts for entry in models_in(part)]


def devices_of(entry: Mapping[str, Any]) -> list[str]:
    """Return the devices of a model in the process; by default the first GPU."""
    return list(entry.get("devices") or [entry.get("device") or "cuda:0"])


def _check_device(place: str, label: str, device: str, number: int) -> None:
    index = device.partition(":")[2]
    if device.startswith("cuda") and index.isdigit() and int(index) >= number:
        raise ConfigError(
            f"{place}: {label} names {device}, but the stage has {number} GPUs, counted from 0"
        )


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
