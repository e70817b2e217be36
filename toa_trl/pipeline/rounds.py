"""Run the remaining stages of a plan."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from toa_trl.evaluation.results import is_results, terminal_tables, update_results
from toa_trl.models.sources import last_checkpoint
from toa_trl.pipeline.plan import MERGED, Plan, whole_model
from toa_trl.pipeline.steps import Runner, Step, is_complete, locked, mark_complete
from toa_trl.report.marker import is_report
from toa_trl.report.page import write_report
from toa_trl.rollouts import is_complete as is_run_complete
from toa_trl.sampling.identity import check_same_identity
from toa_trl.utils.config import PositiveInt, validate
from toa_trl.utils.escape import say
from toa_trl.utils.files import replace_text
from toa_trl.utils.targets import check_folder, check_not_in_run, check_ours, is_json

COMPLETE = "complete.json"
COMMANDS = {name: [sys.executable, "-m", "toa_trl", name] for name in ("synthesize", "evaluate")}
MERGE = [sys.executable, "-m", "toa_trl", "merge-adapter"]
FIGURES = (
    "accuracy",
    "interval",
    "mean_verifier_score",
    "chrf",
    "bleu",
    "comet",
    "mean_reward",
    "mean_reward_interval",
)


async def run_rounds(
    plan: Plan, rounds: int, say: Callable[[str], None] = say
) -> list[dict[str, Any]]:
    """Run the stages that are not complete.

    Args:
        plan: of every round.
        rounds: number of rounds, including those that are complete.
        say: called with each line of progress.

    Returns:
        See `round_rows`.

    Raises:
        ConfigError: the folder has a different configuration, another process works in it, or there
            are too few prompts.
        ToaError: a stage failed; shows the last lines of its log.
    """
    validate(PositiveInt, rounds, "rounds")
    identity, output = plan.identity(rounds), Path(plan.output_dir)
    check_iteration_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    async with locked(output / "iteration.lock") as lock:
        recorded = output / "iteration.json"
        if recorded.is_file():
            check_same_identity(output, json.loads(recorded.read_text(encoding="utf-8")), identity)
        else:
            replace_text(recorded, json.dumps(identity, indent=2) + "\n")
        runner = _Rounds(plan, say, Runner(say, lock))
        rows = await runner.evaluate(0)
        for number in range(1, rounds + 1):
            await runner.sample(number)
            await runner.train(number)
            rows = await runner.evaluate(number)
        last = plan.folder(rounds, "synthesis")
        write_report(last, output=output / "report.html", results=_results(plan, rounds))
    say(_row_table(rows))
    return rows


def check_iteration_folder(output: Path) -> None:
    """Check that rounds may be written into a folder; nothing is changed.

    Raises:
        ConfigError: it cannot be written, is a run's, or has files that this package did not write.
    """
    check_folder(output, "output_dir")
    check_not_in_run(output, "output_dir")
    parts = {"student", "synthesize", "train"}
    targets = {output / "report.html": is_report, output / "results.json": is_results}
    targets[output / "iteration.json"] = partial(is_json, old=parts)
    if not (output / "iteration.json").exists():
        targets |= dict.fromkeys(output.glob("round-*"), lambda path: False)
    check_ours(targets)


@dataclass(frozen=True)
class _Rounds:
    plan: Plan
    say: Callable[[str], None]
    steps: Runner

    async def sample(self, number: int) -> None:
        folder = self.plan.folder(number, "synthesis")
        if is_run_complete(folder) and not is_complete(folder):
            # the run had finished but was killed before it was marked complete; synthesize would
            # refuse to run again
            mark_complete(folder)
        config = self.plan.synthesis(number)
        await self._command(number, "synthesis", "synthesize", config, leaves="report.html")

    async def train(self, number: int) -> None:
        model = self.plan.model(number - 1)
        for stage in self.plan.stages:
            folder = self.plan.folder(number, stage.name)
            options = {
                "model_name_or_path": model,
                "dataset_name": self.plan.folder(number, "synthesis") / stage.data,
                "output_dir": folder,
                "seed": self.plan.seed + number - 1,
            }
            checkpoint = last_checkpoint(folder)
            if checkpoint is not None:
                options["resume_from_checkpoint"] = checkpoint
            argv = shlex.split(stage.command)
            for key, value in options.items():
                argv += [f"--{key}", str(value)]
            name, weights = f"round {number}, {stage.name}", "*.safetensors"
            await self.steps.run(Step(name, folder, argv, weights, restart=checkpoint is None))
            merged = whole_model(folder)
            if merged != folder:
                argv = [*MERGE, str(folder), str(merged)]
                await self.steps.run(Step(f"{name}{MERGED}", merged, argv, weights, restart=True))
            model = str(merged)

    async def evaluate(self, number: int) -> list[dict[str, Any]]:
        was_complete = is_complete(self.plan.folder(number, "evaluation"))
        config = self.plan.evaluation(number)
        await self._command(number, "evaluation", "evaluate", config, leaves="results.json")
        results = _results(self.plan, number)
        rows = round_rows(results)
        for part, value in {**results, "rounds": rows}.items():
            update_results(Path(self.plan.output_dir) / "results.json", part, value)
        if not was_complete:
            self.say(_row_table(rows[-1:]))
        return rows

    async def _command(
        self, number: int, name: str, command: str, config: Mapping[str, Any], *, leaves: str
    ) -> None:
        folder = self.plan.folder(number, name)
        folder.parent.mkdir(exist_ok=True)
        file = folder.with_name(f"{command}.yaml")
        replace_text(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        argv = [*COMMANDS[command], "--config", str(file)]
        await self.steps.run(Step(f"round {number}, {name}", folder, argv, leaves))


def round_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per round of an evaluation; round 0 is the untrained student.

    Args:
        results: of `toa-trl evaluate`, over the students of all rounds.

    Returns:
        Rows with `round`, those of `FIGURES` that were measured, and from round 1 on `win_rate` and
        `win_rate_interval` against round 0 by the first of judge, reward and verifier that compared
        them (`win_rate_by`).
    """
    rows = []
    for number, (name, figures) in enumerate(results["student"].items()):
        row = {"round": number, **{key: figures[key] for key in FIGURES if key in figures}}
        rates = {
            rate["by"]: rate for rate in results.get("win_rates") or () if rate["model"] == name
        }
        by = next((judge for judge in ("judge", "reward", "verifier") if judge in rates), None)
        if by is not None:
            row["win_rate"] = rates[by]["win_rate"]
            row["win_rate_interval"] = rates[by]["interval"]
            row["win_rate_by"] = by
        rows.append(row)
    return rows


def _results(plan: Plan, number: int) -> dict[str, Any]:
    file = plan.folder(number, "evaluation") / "results.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _row_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return terminal_tables(
        [{key: value for key, value in row.items() if key != "win_rate_by"} for row in rows]
    )
