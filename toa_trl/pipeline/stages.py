"""The command of every kind of stage."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toa_trl.models.sources import last_checkpoint
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.fleets import fleet_of
from toa_trl.pipeline.gpus import environment_of, on_machine
from toa_trl.pipeline.plan import Plan, whole_model
from toa_trl.pipeline.steps import Servers, Step
from toa_trl.pipeline.trainings import TOA_TRL, training_command, write_config
from toa_trl.serving.fleet import FleetConfig

WEIGHTS = "*.safetensors"
LEAVES = {"synthesize": "report.html", "evaluate": "results.json", "data": "lineage.json"}


def step_of(plan: Plan, stage: StageConfig, number: int, visible: Sequence[str] = ()) -> Step:
    """Return the step of a stage of a round; writes the configurations of its command."""
    folder = plan.folder(number, stage.folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    leaves, restart = LEAVES.get(stage.run, ""), False
    if stage.is_training:
        argv = training_command(plan, stage, number)
        leaves, restart = WEIGHTS, last_checkpoint(folder) is None
    elif stage.run == "data":
        argv = [*TOA_TRL, "data", str(plan.data(stage, number)), "--output", str(folder)]
        argv += _options(plan.content(stage, number))
    elif stage.run == "push":
        content = plan.content(stage, number)
        argv = [*TOA_TRL, "push", str(plan.data(stage, number)), str(content.pop("repo_id"))]
        argv += _options(content)
    else:
        file = folder.with_name(f"{stage.folder}.yaml")
        write_config(file, plan.content(stage, number))
        argv = [*TOA_TRL, stage.run, "--config", str(file)]
    argv = [*shlex.split(stage.launcher or ""), *argv]
    fleet = fleet_of(plan, stage, number)
    return Step(
        name=plan.label(stage, number),
        folder=folder,
        argv=argv,
        leaves=leaves,
        restart=restart,
        environment=environment_of(plan, stage, visible),
        servers=servers_of(fleet, folder, visible) if fleet else None,
    )


def merge_step(plan: Plan, stage: StageConfig, number: int, visible: Sequence[str]) -> Step | None:
    """Return the step that merges the adapter that a training has left; None without one."""
    folder = plan.folder(number, stage.folder)
    merged = whole_model(folder)
    if merged == folder:
        return None
    argv = [*TOA_TRL, "merge-adapter", str(folder), str(merged)]
    name = plan.label(stage, number) + merged.name.removeprefix(folder.name)
    environment = environment_of(plan, stage, visible)
    return Step(name, merged, argv, WEIGHTS, restart=True, environment=environment)


def servers_of(fleet: FleetConfig, prefix: Path, visible: Sequence[str]) -> Servers:
    """Return the servers of a fleet; writes its configuration to `<prefix>.fleet.yaml`."""
    file = prefix.with_name(f"{prefix.name}.fleet.yaml")
    write_config(file, on_machine(fleet.model_dump(exclude_none=True), visible))
    labels = [replica.label for replica in fleet.replicas]
    log = prefix.with_name(f"{prefix.name}.servers.log")
    argv = [*TOA_TRL, "serve-agents", "--config", str(file)]
    return Servers(labels, argv, Path(fleet.endpoints), log)


def _options(content: dict[str, Any]) -> list[str]:
    """Return keys and values as options of a command line."""
    options = []
    for key, value in content.items():
        if isinstance(value, bool):
            options.append(f"--{key}" if value else f"--no-{key}")
        elif key == "recipe" and isinstance(value, list):
            for entry in value:
                options += ["--recipe", entry if isinstance(entry, str) else json.dumps(entry)]
        elif isinstance(value, list):
            options += [f"--{key}", *map(str, value)]
        else:
            options += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return options
