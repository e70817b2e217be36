"""Doing what of a plan is not done yet, stage by stage."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shlex
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from toa_trl.errors import ConfigError
from toa_trl.evaluation.results import markdown_table, update_results
from toa_trl.models.loading import last_checkpoint
from toa_trl.report.page import write_report
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.journal import check_same
from toa_trl.training.iteration.plan import Plan, whole
from toa_trl.utils.files import replace_text
from toa_trl.utils.registry import check_whole
from toa_trl.utils.subprocesses import GRACE_S, failed, run_command

COMPLETE = "complete.json"
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
    plan: Plan, rounds: int, recipes: Path, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Do what is not done yet.

    Args:
        plan: of every round.
        rounds: how many, with those that are done.
        recipes: the folder with synthesize.py and evaluate.py; scripts/ is beside it.
        say: tells what happens.

    Returns:
        See `round_rows`.

    Raises:
        ConfigError: the folder is of another configuration, another process works in it, or the prompts do not suffice.
        ToaError: a stage failed; with its last lines.
    """
    check_whole("rounds", rounds, at_least=1)
    identity, output = plan.identity(rounds), Path(plan.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    async with _locked(output / "iteration.lock") as lock:
        begun_with = output / "iteration.json"
        if begun_with.is_file():
            check_same(output, json.loads(begun_with.read_text(encoding="utf-8")), identity)
        else:
            replace_text(begun_with, json.dumps(identity, indent=2) + "\n")
        runner = _Runner(plan, recipes, say, lock)
        rows = await runner.evaluate(0)
        for number in range(1, rounds + 1):
            await runner.sample(number)
            await runner.train(number)
            rows = await runner.evaluate(number)
        write_report(
            plan.folder(rounds, "synthesis"),
            output=output / "report.html",
            results=_results(plan, rounds),
        )
    say(_shown(rows))
    return rows


@dataclass(frozen=True)
class _Runner:
    plan: Plan
    recipes: Path
    say: Callable[[str], None]
    lock: int  # file descriptor

    async def sample(self, number: int) -> None:
        folder = self.plan.folder(number, "synthesis")
        if (
            (folder / "report.html").is_file()
            and not _is_complete(folder)
            and not Rollouts.load(folder).unfinished
        ):
            _complete(folder)  # it ended, and nobody was left to know; the recipe would refuse it
        await self._recipe(
            number, "synthesis", "synthesize", self.plan.synthesis(number), leaves="report.html"
        )

    async def train(self, number: int) -> None:
        model = self.plan.model(number - 1)
        for stage in self.plan.stages:
            folder, data = (
                self.plan.folder(number, stage.name),
                self.plan.folder(number, "synthesis") / stage.data,
            )
            options = {"model_name_or_path": model, "dataset_name": data, "output_dir": folder}
            options |= {"seed": self.plan.seed + number - 1}
            if (checkpoint := last_checkpoint(folder)) is not None:
                options |= {"resume_from_checkpoint": checkpoint}
            words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
            words = [*shlex.split(stage.command), *words]
            await self._once(number, folder, words, leaves="*.safetensors", anew=checkpoint is None)
            if (merged := whole(folder)) != folder:
                words = [
                    sys.executable,
                    str(self.recipes.parent / "toa_trl/training/merge_adapter.py"),
                    str(folder),
                    str(merged),
                ]
                await self._once(number, merged, words, leaves="*.safetensors", anew=True)
            model = str(merged)

    async def evaluate(self, number: int) -> list[dict[str, Any]]:
        known = _is_complete(self.plan.folder(number, "evaluation"))
        await self._recipe(
            number, "evaluation", "evaluate", self.plan.evaluation(number), leaves="results.json"
        )
        results = _results(self.plan, number)
        results["rounds"] = rows = round_rows(results)
        for part, value in results.items():
            update_results(Path(self.plan.output_dir) / "results.json", part, value)
        if not known:
            self.say(_shown(rows[-1:]))
        return rows

    async def _recipe(
        self, number: int, name: str, recipe: str, config: Mapping[str, Any], *, leaves: str
    ) -> None:
        folder = self.plan.folder(number, name)
        folder.parent.mkdir(exist_ok=True)
        file = folder.with_name(f"{recipe}.yaml")
        replace_text(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        words = [sys.executable, str(self.recipes / f"{recipe}.py"), "--config", str(file)]
        await self._once(number, folder, words, leaves=leaves)

    async def _once(
        self, number: int, folder: Path, words: Sequence[str], *, leaves: str, anew: bool = False
    ) -> None:
        """Run a command unless its stage is complete, which it is afterwards.

        Args:
            number: of the round.
            folder: of the stage.
            words: of the command.
            leaves: a pattern of the files without which it cannot have succeeded.
            anew: what it left before it was killed is of no use.
        """
        if _is_complete(folder):
            return
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
        log, begun, what = (
            folder.with_name(f"{folder.name}.log"),
            time.monotonic(),
            f"round {number}, {folder.name}",
        )
        self.say(f"{time.strftime('%H:%M:%S')} {what} (log: {log})")
        code = await run_command(words, log, [self.lock])
        if code or not any(folder.glob(leaves)):
            raise failed(
                f"{what}: {f'ended with code {code}' if code else f'left no {leaves}'}", log
            )
        _complete(folder, command=list(words), seconds=time.monotonic() - begun)


def round_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per round: round (0 is the untrained student), what was measured of `FIGURES`, and against round 0 win_rate and
    win_rate_interval by the first that there is of judge, reward and verifier (win_rate_by).

    Args:
        results: of recipes/evaluate.py, over the students of all rounds.
    """
    rows = []
    for number, (name, figures) in enumerate(results["student"].items()):
        row = {"round": number, **{key: figures[key] for key in FIGURES if key in figures}}
        by = {rate["by"]: rate for rate in results.get("win_rates") or () if rate["model"] == name}
        if first := next((judge for judge in ("judge", "reward", "verifier") if judge in by), None):
            row |= {
                "win_rate": by[first]["win_rate"],
                "win_rate_interval": by[first]["interval"],
                "win_rate_by": first,
            }
        rows.append(row)
    return rows


def _results(plan: Plan, number: int) -> dict[str, Any]:
    file = plan.folder(number, "evaluation") / "results.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _shown(rows: Sequence[Mapping[str, Any]]) -> str:
    return markdown_table(
        [{key: value for key, value in row.items() if key != "win_rate_by"} for row in rows]
    )


def _is_complete(folder: Path) -> bool:
    return (folder / COMPLETE).is_file()


def _complete(folder: Path, **facts: Any) -> None:
    replace_text(folder / COMPLETE, json.dumps(facts) + "\n")


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[int]:
    """The lock of who works in a folder, as a file descriptor: a command to which that is passed holds the lock, too.

    Raises:
        ConfigError: another process has it, for longer than what a killed one left behind may take to end.
    """
    with path.open("a") as file:
        end = time.monotonic() + 2 * GRACE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise ConfigError(
                        f"{path.parent}: another process works here; wait for it, or end it"
                    ) from error
            await asyncio.sleep(0.2)
        yield file.fileno()
