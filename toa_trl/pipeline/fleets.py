"""The servers of a stage: which run, which model the student's has, and where they are reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toa_trl.errors import ConfigError
from toa_trl.models.sources import is_adapter
from toa_trl.pipeline.config import MERGED, StageConfig
from toa_trl.serving.endpoints import Endpoints, endpoints_of
from toa_trl.serving.fleet import FleetConfig
from toa_trl.utils.config import validate

if TYPE_CHECKING:
    from toa_trl.pipeline.plan import Plan


def fleet_of(plan: Plan, stage: StageConfig, number: int) -> FleetConfig | None:
    """Return the servers that run during a stage of a round; None if there are none.

    Raises:
        ConfigError: a name is unknown, or the servers conflict with each other.
    """
    if not stage.servers:
        return None
    pool = plan.config.servers
    entries = {} if pool is None else {entry["name"]: entry for entry in pool.servers}
    for name in stage.servers:
        if name not in entries:
            known = ", ".join(entries) or "none"
            raise ConfigError(
                f"{plan.place(stage)}.servers: there is no server {name!r}; known: {known}"
            )
    assert pool is not None
    servers = []
    for name in stage.servers:
        entry = entries[name]
        if name == plan.student.get("name"):
            entry = _student_server(plan, entry, stage, number)
        servers.append(entry)
    folder = plan.folder(number, stage.folder)
    content = {
        **pool.model_dump(exclude={"servers", "try_first"}),
        "servers": servers,
        "endpoints": str(folder.with_name(f"{stage.folder}.endpoints.yaml")),
        "log_dir": str(plan.output / "logs" / plan.label(stage, number).replace(", ", "-")),
    }
    try:
        fleet: FleetConfig = validate(FleetConfig, content)
    except ConfigError as error:
        raise ConfigError(f"{plan.place(stage)}: {error}") from None
    return fleet


def endpoints_of_stage(plan: Plan, stage: StageConfig, number: int) -> Endpoints:
    """Return where the servers of a stage are reached, but for the student's.

    The student's address is part of its own entry, under the names that it has in the rounds.
    """
    fleet = fleet_of(plan, stage, number)
    assert fleet is not None
    return endpoints_of(fleet)


def student_address(plan: Plan, stage: StageConfig, number: int) -> dict[str, Any]:
    """Return the base_url of the student's server.

    Raises:
        ConfigError: the stage does not run it.
    """
    name = plan.student["name"]
    if name not in stage.servers:
        raise ConfigError(
            f"{plan.place(stage)}.servers: must include {name!r}, which serves the student"
        )
    return {"base_url": endpoints_of_stage(plan, stage, number).agents[name].base_url}


def _student_server(
    plan: Plan, entry: Mapping[str, Any], stage: StageConfig, number: int
) -> dict[str, Any]:
    """Return the entry of the student's server, with the model that it serves in a stage.

    In an evaluation that is the newest student; the others have all their responses already, and
    are only listed.
    """
    if stage.run == "evaluate":
        models = [student["model"] for student in plan.students(stage, number)]
    else:
        models = [plan.model(number - 1) if plan.rounds else plan.trained(0)]
    newest = models[-1]
    if plan.config.serve_as == "whole" or not _adapter_of(newest):
        return {**entry, "model": newest, "served_names": models}
    base, rank = _base_of(newest)
    same = [model for model in models if _adapter_of(model) and _base_of(model)[0] == base]
    args = {
        "max-lora-rank": max(rank, *(_base_of(model)[1] for model in same)),
        **entry.get("args", {}),
        "enable-lora": True,
        "lora-modules": [f"{model}={_adapter_of(model)}" for model in same],
    }
    others = [model for model in models if model not in same]
    return {**entry, "model": base, "args": args, "served_names": [base, *others]}


def _adapter_of(model: str) -> str:
    """Return the folder of the adapter that was merged into a model; empty if there is none."""
    folder = model.removesuffix(MERGED)
    return folder if model.endswith(MERGED) and is_adapter(folder) else ""


def _base_of(model: str) -> tuple[str, int]:
    """Return the model that an adapter belongs to, and its rank."""
    file = Path(_adapter_of(model)) / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    return str(config["base_model_name_or_path"]), int(config.get("r", 16))
