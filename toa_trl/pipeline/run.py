"""Run what is not complete of a plan."""

import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.evaluation.results import is_results, update_results
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.fleets import fleet_of
from toa_trl.pipeline.gate import describe, write_decision
from toa_trl.pipeline.gpus import check_gpus, visible_gpus
from toa_trl.pipeline.identity import identity_of, record_identity
from toa_trl.pipeline.lineage import write_lineage
from toa_trl.pipeline.memory import check_memory
from toa_trl.pipeline.plan import Plan
from toa_trl.pipeline.results import collect, report, row_table, with_gate
from toa_trl.pipeline.stages import merge_step, step_of
from toa_trl.pipeline.status import write_stages
from toa_trl.pipeline.steps import Runner, is_complete, locked, mark_complete
from toa_trl.pipeline.trainings import is_config
from toa_trl.pipeline.trial import record_healthy, try_servers
from toa_trl.report.marker import is_report
from toa_trl.rollouts import is_complete as is_run_complete
from toa_trl.serving.supervisor import check_machine
from toa_trl.utils.escape import say
from toa_trl.utils.targets import check_folder, check_not_in_run, check_ours, is_json


async def run_plan(plan: Plan, say: Callable[[str], None] = say) -> list[dict[str, Any]]:
    """Run the stages of a checked plan that are not complete.

    Returns:
        The rows of the rounds, see `toa_trl.pipeline.results.round_rows`; empty without rounds.

    Raises:
        ConfigError: the folder has a different configuration, another process works in it, there
            are too few prompts, or GPUs or ports are not free.
        ToaError: a server of a later stage is not healthy, see `toa_trl.pipeline.trial`; or a stage
            failed, shows the last lines of its log.
    """
    identity, visible = identity_of(plan), visible_gpus()
    check_output(plan)
    check_gpus(plan, visible)
    check_memory(plan)
    plan.output.mkdir(parents=True, exist_ok=True)
    async with locked(plan.output / Path(plan.record).with_suffix(".lock")) as lock:
        record_identity(plan, identity)
        write_stages(plan)
        _check_servers(plan)
        runner = Runner(say, lock)
        await try_servers(plan, runner, visible)
        return await _Run(plan, say, runner, visible).run()


def check_output(plan: Plan) -> None:
    """Check that a pipeline may be written into its folder; nothing is changed.

    Raises:
        ConfigError: it cannot be written, is a run's, or has files that this package did not write.
    """
    output, record = plan.output, plan.output / plan.record
    check_folder(output, "output_dir")
    check_not_in_run(output, "output_dir")
    parts = {"student", "synthesize", "train"} if plan.record != Plan.record else {"stages", "seed"}
    targets: dict[Path, Callable[[Path], bool]] = {
        output / "report.html": is_report,
        output / "results.json": is_results,
    }
    targets[record] = partial(is_json, old=parts)
    targets[output / "rounds.json"] = partial(is_json, old=["rounds"])
    targets[output / "stages.json"] = partial(is_json, old=["stages"])
    targets[output / "servers.json"] = partial(is_json, old=["healthy"])
    for stage in plan.stages if plan.rounds is None else ():
        targets[output / f"{stage.folder}.yaml"] = is_config
    if not record.exists():
        folders = [*output.glob("round-*")] if plan.rounds else []
        for stage in plan.stages if plan.rounds is None else ():
            folders += [output / stage.folder, output / f"{stage.folder}.log"]
        targets |= dict.fromkeys(folders, lambda path: False)
    check_ours(targets)


def _check_servers(plan: Plan) -> None:
    """Check launchers, and ports and programs of servers, of stages that are not complete."""
    last = plan.rounds or 1
    for stage in plan.stages:
        program = shlex.split(stage.launcher or "")[:1]
        if program and not shutil.which(program[0]):
            raise ConfigError(
                f"{plan.place(stage)}.launcher: the program {program[0]!r} was not found"
            )
        if stage.servers and not is_complete(plan.folder(last, stage.folder)):
            fleet = fleet_of(plan, stage, 1)
            assert fleet is not None
            check_machine(fleet)


class _Run:
    def __init__(
        self, plan: Plan, say: Callable[[str], None], steps: Runner, visible: list[str]
    ) -> None:
        self._plan, self._say, self._steps, self._visible = plan, say, steps, visible

    async def run(self) -> list[dict[str, Any]]:
        plan, rows = self._plan, list[dict[str, Any]]()
        if plan.rounds is None:
            for stage in plan.stages:
                await self._stage(stage, 1)
            report(plan, 1)
            return rows
        for stage in plan.stages:
            if stage.run == "evaluate":
                rows = await self._stage(stage, 0)
        for number in range(1, plan.rounds + 1):
            for stage in plan.stages:
                rows = await self._stage(stage, number) or rows
            if not self._passes(number, rows):
                break
        write_lineage(plan, number)
        report(plan, number)
        if rows:
            self._say(row_table(rows))
        return rows

    def _passes(self, number: int, rows: list[dict[str, Any]]) -> bool:
        """Return whether there may be a next round."""
        gate = self._plan.config.gate
        if gate is None:
            return True
        decision = write_decision(self._plan, number, rows)
        update_results(self._plan.output / "results.json", "rounds", with_gate(self._plan, rows))
        self._say(describe(decision, number))
        return bool(decision["accepted"]) or gate.if_worse == "fall_back"

    async def _stage(self, stage: StageConfig, number: int) -> list[dict[str, Any]]:
        """Run a stage of a round; an evaluation returns the rows of the rounds."""
        plan, folder = self._plan, self._plan.folder(number, stage.folder)
        was_complete = is_complete(folder)
        if stage.run == "synthesize" and is_run_complete(folder) and not was_complete:
            # the run had finished but was killed before it was marked complete; synthesize would
            # refuse to run again
            mark_complete(folder)
        if not is_complete(folder):
            await self._steps.run(step_of(plan, stage, number, self._visible))
            record_healthy(plan, fleet_of(plan, stage, number))
        if stage.is_training:
            merge = merge_step(plan, stage, number, self._visible)
            if merge is not None:
                await self._steps.run(merge)
        if stage.run != "evaluate":
            return []
        rows = collect(plan, stage, number)
        if rows and not was_complete:
            self._say(row_table(rows[-1:]))
        return rows
