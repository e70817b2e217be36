"""The paper's data table: one student per search and seed, judged on held-out problems."""

import asyncio
import logging
import os
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, field_validator

from toa_trl.agents import ENGINES
from toa_trl.agents.deferred import check_entry
from toa_trl.errors import ConfigError, RewardError
from toa_trl.evaluation.accuracy import measure_model
from toa_trl.evaluation.comparison import Cell, Run, check_verdicts, verify
from toa_trl.evaluation.intervals import gap_bounds, middle_95, resampled_means
from toa_trl.evaluation.ledger import ledger_path
from toa_trl.evaluation.outputs import num_missing, respond
from toa_trl.models.devices import free_memory
from toa_trl.rewards import RewardModel
from toa_trl.sampling.identity import decisive, digest_of_values
from toa_trl.tasks import Task
from toa_trl.types import Prompt, Sampling, as_dicts
from toa_trl.utils.config import Config, NonNegativeInt, PositiveInt, Text
from toa_trl.utils.files import fresh_path, read_object, replace_path, write_json
from toa_trl.utils.subprocesses import check_command, configurations, failed, run_command

logger = logging.getLogger(__name__)


class TrainingConfig(Config):
    """How the students of the data table are trained and judged."""

    command: Text
    """Training command; --model_name_or_path, --dataset_name, --output_dir, --seed are added."""
    base: Text
    """The student before training: folder or Hub name."""
    heldout: Text
    """Problems that no search and no training has seen, as `prompts` of a run."""
    budget: PositiveInt | None = None
    """Plays per prompt, of every search without budgets of its own."""
    data: Literal["sft", "dpo"] = "sft"
    """What the command is given: the best responses, or pairs of the best with a lower rank."""
    seeds: list[NonNegativeInt] = Field(default=[0, 1, 2], min_length=1)
    """Seeds, each of a search and of the training that follows."""

    student: dict[str, Any] = Field(default_factory=lambda: {"engine": "transformers"})
    """How students are asked: {engine, ...} as in the entry of an agent, without name and model."""

    @field_validator("command")
    @classmethod
    def _check_command(cls, command: str) -> str:
        check_command("train.command", command)
        return command

    @field_validator("student")
    @classmethod
    def _check_student(cls, student: dict[str, Any]) -> dict[str, Any]:
        for key in ("name", "model"):
            if key in student:
                raise ValueError(f"must not have the key {key!r}, which each student sets")
        try:
            ENGINES.check({**student, "name": "student", "model": "folder"})
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return student

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must be different numbers")
        return seeds

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a student but for data and seed: the command and its configurations."""
        files = {
            str(file): file.read_text(encoding="utf-8") for file in configurations(self.command)
        }
        return {"command": shlex.split(self.command), "base": self.base, "configurations": files}


@dataclass(frozen=True)
class Lesson:
    """What one run gives a student to learn."""

    run: Run
    folder: Path  # of the run; the student is saved in it
    rows: Sequence[Mapping[str, Any]]  # of `sft_rows`, or of `preference_rows` for `data: dpo`
    summary: Mapping[str, Any]  # of the run, by `summarize`

    @property
    def cell(self) -> Cell:
        """The search and its budget, which several seeds share."""
        return self.run.search, self.run.budget


@dataclass(frozen=True)
class Judge:
    """Judges students by their greedy responses to problems that are new to them."""

    problems: Sequence[Prompt]
    task: Task
    verifier: RewardModel  # 1 right, 0 wrong
    sampling: Sampling  # its max_tokens and stop are used
    rules: Any  # identity of the verifier, as JSON values, without the task's
    student: Mapping[str, Any] = field(default_factory=lambda: {"engine": "transformers"})

    def check_new(self, prompts: Iterable[Prompt]) -> None:
        """Check that no problem is among the prompts.

        Raises:
            ConfigError: one is.
        """
        asked = {prompt.messages for prompt in prompts}
        seen = [problem.id for problem in self.problems if problem.messages in asked]
        if seen:
            raise ConfigError(
                f"train.heldout: {len(seen)} of its problems are among the prompts, as {seen[0]!r}"
            )

    async def accuracy(self, rows: Iterable[Mapping[str, Any]], prompts: Iterable[Prompt]) -> float:
        """Return the share of rows that are right.

        Args:
            rows: of a lesson.
            prompts: the prompts of these rows, and perhaps others.

        Raises:
            ConfigError: the verifier returns something other than 0 or 1.
        """
        by_id = {prompt.id: prompt for prompt in prompts}
        checks = []
        for row in rows:
            (response,) = row["completion"] if "completion" in row else row["chosen"]
            prompt, text = by_id[row["prompt_id"]], response["content"]
            checks.append(verify(self.verifier, self.task, prompt, [text]))
        return mean(verdict for (verdict,) in await asyncio.gather(*checks))

    async def verdicts(self, name: str, model: Path | str, folder: Path) -> list[float]:
        """Return 1 or 0 per problem; a model that was judged before is not judged again.

        Args:
            name: name of the model in messages and files.
            model: folder or Hub name.
            folder: folder where responses and verdicts are kept.

        Raises:
            AgentError: a response is missing.
            RewardError: a response could not be judged.
            ConfigError: the verifier returns something other than 0 or 1.
        """
        entry = {**self.student, "name": name, "model": str(model)}
        asked = [(problem.id, as_dicts(problem.messages)) for problem in self.problems]
        path = ledger_path(folder, name, decisive(entry), asked, asdict(self.sampling))
        columns = digest_of_values(*(dict(problem.metadata) for problem in self.problems))
        by = [self.rules, self.task.identity, columns]
        file = path.with_suffix(".json")
        kept = read_object(file)
        if kept.get("by") != by:
            if num_missing(path, self.problems, 0):
                await check_entry(f"train.student: {name}", entry)
            outputs = await respond(entry, self.problems, self.task, self.sampling, path=path)
            _, scores = await measure_model(
                self.problems, outputs, self.task, verifier=self.verifier
            )
            right = [score for score in scores.verifier if score is not None]
            num_unjudged = len(scores.verifier) - len(right)
            if num_unjudged:
                raise RewardError(f"{name}: {num_unjudged} of its responses could not be judged")
            kept = {"by": by, "right": check_verdicts(right)}
            write_json(file, kept, indent=None)
        return list(kept["right"])


async def teach(
    training: TrainingConfig, lessons: Sequence[Lesson], judge: Judge
) -> dict[Cell, NDArray[np.float64]]:
    """Train and judge every student, one after the other, unless it was done before.

    Args:
        training: how students are trained.
        lessons: every search and budget with every seed.
        judge: of all students.

    Returns:
        (search, budget) -> 1 or 0, shape (seeds, problems).

    Raises:
        ConfigError: a student exists that was trained otherwise.
        ToaError: a training failed; the message has its last lines.
    """
    right: dict[Cell, list[list[float]]] = {}
    for number, lesson in enumerate(lessons, 1):
        student = await train_student(training, lesson)
        verdicts = await judge.verdicts("student", student, lesson.folder)
        right.setdefault(lesson.cell, []).append(verdicts)
        logger.warning(
            "student %d of %d (%s, budget %d, seed %d): accuracy %.3f",
            number,
            len(lessons),
            *lesson.run,
            mean(verdicts),
        )
    return {cell: np.array(verdicts) for cell, verdicts in right.items()}


async def train_student(training: TrainingConfig, lesson: Lesson) -> Path:
    """Train the student of one lesson, and return its folder, which exists only when complete.

    It is student, or student_dpo, in the folder of the run. Another process trains it, so that the
    GPU memory that nothing here refers to is free for it.

    Raises:
        ConfigError: a student exists that was trained otherwise.
        ToaError: the training failed; the message has its last lines.
    """
    suffix = "" if training.data == "sft" else f"_{training.data}"
    student = lesson.folder / f"student{suffix}"
    parts = ("prompt", "completion", "chosen", "rejected")
    rows = [tuple(row[part] for part in parts if part in row) for row in lesson.rows]
    recipe = {**training.identity, "seed": lesson.run.seed, "rows": digest_of_values(*rows)}
    if student.is_dir():
        before = read_object(student / "training.json")
        different = [key for key, value in recipe.items() if before.get(key) != value]
        if different:
            raise ConfigError(
                f"{student} was trained otherwise ({', '.join(different)}); "
                "move it away, or choose another output_dir"
            )
        return student
    fresh, data = fresh_path(student), lesson.folder / training.data
    shutil.rmtree(fresh, ignore_errors=True)  # left by a training that was killed
    fresh_data = fresh_path(data)
    shutil.rmtree(fresh_data, ignore_errors=True)
    fresh_data.mkdir(parents=True)
    table = pa.Table.from_pylist(list(lesson.rows)).replace_schema_metadata({"toa_trl": "1"})
    pq.write_table(table, fresh_data / "train.parquet")
    replace_path(fresh_data, data)
    options = {
        "--model_name_or_path": training.base,
        "--dataset_name": data,
        "--output_dir": fresh,
        "--seed": lesson.run.seed,
    }
    command = list(recipe["command"])
    for option, value in options.items():
        command += [option, str(value)]
    free_memory()
    log = lesson.folder / f"training{suffix}.log"
    code = await run_command(command, log)
    if code or not any(fresh.glob("*.safetensors")):
        problem = f"ended with code {code}" if code else "left no model"
        of = "the training of {}, budget {}, seed {},".format(*lesson.run)
        raise failed(f"{of} {problem}", log)
    write_json(fresh / "training.json", recipe, indent=None)
    os.replace(fresh, student)
    return student


def table_rows(
    lessons: Sequence[Lesson],
    data_accuracy: Mapping[Run, float],
    untrained: Sequence[float],
    right: Mapping[Cell, NDArray[np.float64]],
) -> list[dict[str, Any]]:
    """Return a row per search and budget, after one of the student before training.

    Args:
        lessons: every search and budget with every seed.
        data_accuracy: share of each lesson's rows that are right.
        untrained: 1 or 0 per problem.
        right: see `teach`.

    Returns:
        search, budget (plays per prompt, or their intended mean), seeds, accuracy (mean over seeds,
        in [0, 1]), accuracy_std (over seeds, where there are two), interval (95 %, see
        `resampled_means`), per_seed, gap (to the best search's accuracy, >= 0) and gap_interval
        (see `gap_bounds`), num_problems; and of the data, as means over seeds: num_rows,
        mean_reward, data_accuracy (of the rows), and plays, tokens and flops of the agents per
        prompt.
    """
    best = max(right, key=lambda cell: float(right[cell].mean()))
    half_widths = gap_bounds(right)
    rows = [
        {
            "search": "untrained",
            "accuracy": mean(untrained),
            "interval": middle_95(resampled_means(np.array([untrained]))),
        }
    ]
    for cell, verdicts in right.items():
        own = [lesson for lesson in lessons if lesson.cell == cell]
        per_seed = [float(share) for share in verdicts.mean(axis=1)]
        rewards = [
            mean(row.get("reward", row.get("chosen_reward")) for row in lesson.rows)
            for lesson in own
        ]
        gap = float(right[best].mean() - verdicts.mean())
        row: dict[str, Any] = {
            "search": cell[0],
            "budget": cell[1],
            "seeds": [lesson.run.seed for lesson in own],
            "accuracy": mean(per_seed),
            "interval": middle_95(resampled_means(verdicts)),
            "per_seed": per_seed,
            "gap": gap,
            "num_rows": mean(len(lesson.rows) for lesson in own),
            "mean_reward": mean(rewards),
            "data_accuracy": mean(data_accuracy[lesson.run] for lesson in own),
        }
        if len(per_seed) > 1:
            row["accuracy_std"] = stdev(per_seed)
        if cell != best and cell in half_widths:
            row["gap_interval"] = (gap - half_widths[cell], gap + half_widths[cell])
        for key in ("plays", "tokens", "flops"):
            row[key] = mean(lesson.summary[key] for lesson in own)
        rows.append(row)
    return [{**row, "num_problems": len(untrained)} for row in rows]
