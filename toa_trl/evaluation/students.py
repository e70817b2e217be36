"""The paper's data table: one student per search and seed, trained on what the search found, judged on held-out problems."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from toa_trl.agents import make_agent
from toa_trl.errors import ConfigError, RewardError
from toa_trl.evaluation.accuracy import measure
from toa_trl.evaluation.comparison import Run, check_verdicts, verify
from toa_trl.evaluation.intervals import gap_bounds, resampled_means
from toa_trl.evaluation.ledger import digest, ledger_path
from toa_trl.evaluation.outputs import respond
from toa_trl.rewards import RewardModel
from toa_trl.tasks import Task
from toa_trl.types import Prompt, Sampling, as_dicts
from toa_trl.utils.files import replace_text
from toa_trl.utils.registry import check_whole
from toa_trl.utils.subprocesses import check_command, configurations, failed, run_command

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """How every student is made, and what judges it.

    Raises:
        ConfigError: the command or a configuration that it names is not there, a seed is none, or there is no seed.
    """

    command: str  # as a person types it; --model_name_or_path, --dataset_name, --output_dir and --seed are added
    base: str  # the student before training: folder or Hub name
    heldout: (
        str  # problems of which no search and no training has seen any, as `prompts` of the run
    )
    budget: int  # plays per prompt, of every search
    seeds: Sequence[int] = (0, 1, 2)  # each of the sampling and of the training that follows

    def __post_init__(self) -> None:
        check_command("train: command", self.command)
        check_whole("train: budget", self.budget, at_least=1)
        if (
            not isinstance(self.seeds, list | tuple)
            or not self.seeds
            or len(set(self.seeds)) < len(self.seeds)
        ):
            raise ConfigError(
                f"train: seeds: a list of different whole numbers is needed, not {self.seeds!r}"
            )
        for seed in self.seeds:
            check_whole("train: seeds", seed, at_least=0)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a student, but for its data and its seed: the command, and what the YAML files it names hold."""
        files = {
            str(file): file.read_text(encoding="utf-8") for file in configurations(self.command)
        }
        return {"command": shlex.split(self.command), "base": self.base, "configurations": files}


@dataclass(frozen=True)
class Lesson:
    """What one run gives a student to learn."""

    run: Run
    folder: Path  # of the run; the student lives in it
    rows: Sequence[
        Mapping[str, Any]
    ]  # {prompt, completion, reward, ...}, as of `toa_trl.data.sft.sft_rows`
    summary: Mapping[str, Any]  # of the run, see `toa_trl.evaluation.comparison.summarize`


@dataclass(frozen=True)
class Judge:
    """What a student is judged by: its greedy responses to problems that are new to it."""

    problems: Sequence[Prompt]
    task: Task
    verifier: RewardModel  # 1 right, 0 wrong
    sampling: Sampling  # its max_tokens and stop
    rules: Any  # what tells this verifier from others, as JSON values; the task's own is told by the task

    def check_new(self, prompts: Iterable[Prompt]) -> None:
        """Raises:
        ConfigError: a problem is among the prompts.
        """
        known = {prompt.messages for prompt in prompts}
        if seen := [problem.id for problem in self.problems if problem.messages in known]:
            raise ConfigError(
                f"train: heldout: {len(seen)} of its problems are among the prompts, as {seen[0]!r}"
            )

    async def accuracy(self, rows: Iterable[Mapping[str, Any]], prompts: Iterable[Prompt]) -> float:
        """Share of the rows that are right.

        Args:
            rows: of a lesson.
            prompts: of which they are.

        Raises:
            ConfigError: the verifier says something else than 0 or 1.
        """
        asked = {prompt.id: prompt for prompt in prompts}
        responses = ((asked[row["prompt_id"]], row["completion"][0]["content"]) for row in rows)
        right = await asyncio.gather(
            *(verify(self.verifier, self.task, prompt, [text]) for prompt, text in responses)
        )
        return mean(verdict for (verdict,) in right)

    async def verdict(self, name: str, model: Path | str, folder: Path) -> list[float]:
        """1 or 0 per problem; from the folder where the same model was judged before.

        Raises:
            AgentError, RewardError: a response is missing or could not be judged.
            ConfigError: the verifier says something else than 0 or 1.
        """
        entry = {"name": name, "engine": "transformers", "model": str(model)}
        asked = [(problem.id, as_dicts(problem.messages)) for problem in self.problems]
        outputs = ledger_path(folder, name, entry, asked, asdict(self.sampling))
        by = [
            self.rules,
            self.task.identity,
            digest(*(dict(problem.metadata) for problem in self.problems)),
        ]
        file = outputs.with_suffix(".json")
        known = _read(file)
        if known.get("by") != by:
            agent = make_agent(entry)
            responses = await respond(
                agent, self.problems, self.task, self.sampling, path=outputs, progress=False
            )
            _, scores = await measure(self.problems, responses, self.task, verifier=self.verifier)
            if None in scores.verifier:
                raise RewardError(
                    f"{name}: {scores.verifier.count(None)} of its responses could not be judged"
                )
            known = {
                "by": by,
                "right": check_verdicts([score for score in scores.verifier if score is not None]),
            }
            replace_text(file, json.dumps(known) + "\n")
        return list(known["right"])


async def data_table(
    training: Training,
    lessons: Sequence[Lesson],
    judge: Judge,
    untrained: Sequence[float],
    prompts: Sequence[Prompt],
) -> list[dict[str, Any]]:
    """Train and judge every student, one after the other. What is done already is not done again.

    Args:
        training: how.
        lessons: every search with every seed.
        judge: of all students.
        untrained: the verdict on the student before training.
        prompts: of the searches.

    Returns:
        See `table_rows`.

    Raises:
        ConfigError: a student is there that was trained otherwise.
        ToaError: a training failed; with its last lines.
    """
    data_accuracy = {lesson.run: await judge.accuracy(lesson.rows, prompts) for lesson in lessons}
    right: dict[str, list[list[float]]] = {}
    for number, lesson in enumerate(lessons, 1):
        await train(training, lesson)
        verdict = await judge.verdict("student", lesson.folder / "student", lesson.folder)
        right.setdefault(lesson.run.search, []).append(verdict)
        who = (number, len(lessons), lesson.run.search, lesson.run.seed)
        logger.warning("student %d of %d (%s, seed %d): accuracy %.3f", *who, mean(verdict))
    verdicts = {search: np.array(each) for search, each in right.items()}
    return table_rows(training, lessons, data_accuracy, untrained, verdicts)


async def train(training: Training, lesson: Lesson) -> None:
    """The student of one lesson, in <folder>/student; complete as soon as it is there.

    It is trained by another process, which has the GPU memory that nothing here refers to any more.

    Raises:
        ConfigError: one is there that was trained otherwise.
        ToaError: the training failed; with its last lines.
    """
    done = lesson.folder / "student"
    rows = [(row["prompt"], row["completion"]) for row in lesson.rows]
    made = {**training.identity, "seed": lesson.run.seed, "rows": digest(*rows)}
    if done.is_dir():
        if different := [
            key for key, value in made.items() if _read(done / "training.json").get(key) != value
        ]:
            raise ConfigError(
                f"{done} was trained otherwise ({', '.join(different)}); delete it, or name another folder"
            )
        return
    for left in lesson.folder.glob("student.*"):  # of trainings that were killed
        shutil.rmtree(left, ignore_errors=True)
    (lesson.folder / "sft").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(lesson.rows)), lesson.folder / "sft/train.parquet")
    fresh = lesson.folder / f"student.{os.getpid()}"
    options = {
        "model_name_or_path": training.base,
        "dataset_name": lesson.folder / "sft",
        "output_dir": fresh,
    }
    options |= {"seed": lesson.run.seed}
    _free_memory()
    words = [
        *made["command"],
        *(str(w) for key, value in options.items() for w in (f"--{key}", value)),
    ]
    log = lesson.folder / "training.log"
    code = await run_command(words, log)
    if code or not any(fresh.glob("*.safetensors")):
        what = f"ended with code {code}" if code else "left no model"
        raise failed(f"the training of {lesson.run.search}, seed {lesson.run.seed}, {what}", log)
    replace_text(fresh / "training.json", json.dumps(made) + "\n")
    os.replace(fresh, done)


def table_rows(
    training: Training,
    lessons: Sequence[Lesson],
    data_accuracy: Mapping[Run, float],
    untrained: Sequence[float],
    right: Mapping[str, NDArray[np.float64]],
) -> list[dict[str, Any]]:
    """A row per search, after one of the student before training.

    Args:
        training: how the students were made.
        lessons: every search with every seed.
        data_accuracy: share of each lesson's rows that are right.
        untrained: 1 or 0 per problem.
        right: by search, 1 or 0, shape (seeds, problems).

    Returns:
        search, budget (plays per prompt), seeds, accuracy (mean over seeds, in [0, 1]), accuracy_std (of the seeds,
        where there are two), interval (95 %, see `toa_trl.evaluation.intervals.resampled_means`), per_seed, gap (to the best
        search's accuracy, >= 0) and gap_interval (see `gap_bounds` there), num_problems; and of the data, as means over
        seeds: num_rows, mean_reward and data_accuracy (of the rows), and tokens and flops of the agents per prompt.
    """
    best, half_widths = (
        max(right, key=lambda search: float(right[search].mean())),
        gap_bounds(right),
    )
    rows = [
        {
            "search": "untrained",
            "accuracy": mean(untrained),
            "interval": _interval(np.array([untrained])),
        }
    ]
    for search, each in right.items():
        own = [lesson for lesson in lessons if lesson.run.search == search]
        per_seed = [float(share) for share in each.mean(axis=1)]
        row: dict[str, Any] = {
            "search": search,
            "budget": training.budget,
            "seeds": [lesson.run.seed for lesson in own],
            "accuracy": mean(per_seed),
            "interval": _interval(each),
            "per_seed": per_seed,
            "gap": float(right[best].mean() - each.mean()),
            "num_rows": mean(len(lesson.rows) for lesson in own),
            "mean_reward": mean(mean(row["reward"] for row in lesson.rows) for lesson in own),
            "data_accuracy": mean(data_accuracy[lesson.run] for lesson in own),
        }
        if len(per_seed) > 1:
            row["accuracy_std"] = stdev(per_seed)
        if search != best and search in half_widths:
            row["gap_interval"] = (
                row["gap"] - half_widths[search],
                row["gap"] + half_widths[search],
            )
        rows.append(
            row | {key: mean(lesson.summary[key] for lesson in own) for key in ("tokens", "flops")}
        )
    return [{**row, "num_problems": len(untrained)} for row in rows]


def _interval(right: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(resampled_means(right), [2.5, 97.5])
    return float(low), float(high)


def _free_memory() -> None:
    gc.collect()  # a model and its queue refer to one another
    if torch := sys.modules.get("torch"):  # where models ran in this process
        torch.cuda.empty_cache()


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # not there, or not whole
        return {}
