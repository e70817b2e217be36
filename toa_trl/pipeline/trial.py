"""A trial of servers before the first stage: those of later stages start once and are stopped.

A server that cannot start is found before days of work, not after them. What has been healthy once
is recorded in servers.json, as digests, because environment variables can be secrets. A pipeline
that is resumed tries nothing again: loading a large model can take half an hour.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toa_trl.errors import ToaError
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.fleets import fleet_of
from toa_trl.pipeline.plan import Plan
from toa_trl.pipeline.stages import servers_of
from toa_trl.pipeline.steps import Runner, is_complete
from toa_trl.sampling.identity import digest_of_values
from toa_trl.serving.fleet import FleetConfig, ServerConfig
from toa_trl.utils.config import validate
from toa_trl.utils.files import read_object, write_json
from toa_trl.utils.targets import marked

FILE = "servers.json"


@dataclass(frozen=True)
class Trial:
    """The servers of a later stage that have not been healthy yet."""

    stage: StageConfig
    number: int
    fleet: FleetConfig


def trials_of(plan: Plan) -> list[Trial]:
    """Return what is tried before the first stage that is not complete.

    Its own servers are not among them: they start before its command anyway.
    """
    pool = plan.config.servers
    if pool is None or not pool.try_first or _is_stopped(plan):
        return []
    waiting = [
        (stage, number)
        for stage, number in plan.schedule
        if not is_complete(plan.folder(number, stage.folder))
    ]
    known, trials = _recorded(plan), list[Trial]()
    for place, (stage, number) in enumerate(waiting):
        fleet = fleet_of(plan, stage, number)
        if fleet is None:
            continue
        if place == 0:
            known |= set(_digests(fleet, fleet.servers))
            continue
        untried = [
            server
            for server in fleet.servers
            if not _is_made_here(plan, server) and not known.issuperset(_digests(fleet, [server]))
        ]
        if untried:
            known |= set(_digests(fleet, untried))
            trials.append(Trial(stage, number, _fleet(plan, fleet, untried, stage, number)))
    return trials


async def try_servers(plan: Plan, runner: Runner, visible: Sequence[str]) -> None:
    """Try the servers of later stages, one stage after the other.

    Raises:
        ToaError: one does not become healthy.
    """
    trials = trials_of(plan)
    for place, trial in enumerate(trials, 1):
        label = plan.label(trial.stage, trial.number)
        name = f"trial {place} of {len(trials)}, servers of {label}"
        log_dir = Path(trial.fleet.log_dir)
        log_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            await runner.try_servers(name, servers_of(trial.fleet, log_dir, visible))
        except ToaError as error:
            raise ToaError(f"{error}; no stage has begun") from error
        record_healthy(plan, trial.fleet)


def record_healthy(plan: Plan, fleet: FleetConfig | None) -> None:
    """Record that the servers of a stage have been healthy."""
    if fleet is not None:
        healthy = sorted(_recorded(plan).union(_digests(fleet, fleet.servers)))
        write_json(plan.output / FILE, marked({"healthy": healthy}))


def _is_stopped(plan: Plan) -> bool:
    """Return whether the gate has ended the rounds, so that no stage is left."""
    gate = plan.config.gate
    if gate is None or gate.if_worse != "stop":
        return False
    decisions = [plan.decision(number) for number in range(1, (plan.rounds or 0) + 1)]
    return any(decision and not decision["accepted"] for decision in decisions)


def _recorded(plan: Plan) -> set[str]:
    try:
        return set(read_object(plan.output / FILE).get("healthy", ()))
    except TypeError:  # edited by hand
        return set()


def _digests(fleet: FleetConfig, servers: Iterable[ServerConfig]) -> list[str]:
    """Return a digest of command, environment and GPUs of every process of the servers."""
    names = {server.name for server in servers}
    digests = []
    for replica in fleet.replicas:
        if replica.server.name in names:
            content = (fleet.command(replica), replica.server.env, replica.gpus)
            digests.append(digest_of_values(*content))
    return digests


def _is_made_here(plan: Plan, server: ServerConfig) -> bool:
    """Return whether a server needs a file of the pipeline's folder, such as a student."""
    output = plan.output.resolve()
    named: list[Any] = [server.model, server.chat_template]
    for value in server.args.values():
        named += value if isinstance(value, list) else [value]
    texts = [part for value in named if isinstance(value, str) for part in value.split("=")]
    return any(Path(text).resolve().is_relative_to(output) for text in texts)


def _fleet(
    plan: Plan, fleet: FleetConfig, servers: Sequence[ServerConfig], stage: StageConfig, number: int
) -> FleetConfig:
    """Return the fleet of a trial."""
    prefix = plan.output / "logs" / f"trial-{plan.label(stage, number).replace(', ', '-')}"
    own = {
        "servers": [server.model_dump() for server in servers],
        "endpoints": f"{prefix}.endpoints.yaml",
        "log_dir": str(prefix),
    }
    tried: FleetConfig = validate(FleetConfig, {**fleet.model_dump(), **own})
    return tried
