"""The data table: students are trained and judged once, and rows agree with the verdicts."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset

from tests.helpers import wait, wait_until_ended
from toa_trl.agents import Agent
from toa_trl.data.prompts import load_prompts
from toa_trl.errors import ConfigError, ToaError
from toa_trl.evaluation import students
from toa_trl.evaluation.comparison import Run
from toa_trl.evaluation.intervals import bootstrap
from toa_trl.evaluation.students import (
    Judge,
    Lesson,
    TrainingConfig,
    table_rows,
    teach,
    train_student,
)
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.tasks import make_task
from toa_trl.types import Completion, Prompt, Sampling
from toa_trl.utils.config import validate
from toa_trl.utils.files import fresh_path

DEMO = Path(students.__file__).parents[1] / "demo"
# replaces recipes/sft.py: copies the model and logs its options
TRAINER = """
import json, shutil, sys, time
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
with open(sys.argv[1], "a") as log:
    log.write(json.dumps(options) + "\\n")
print("epoch 1\\nepoch 2")
if options["--seed"] == "13":
    sys.exit("CUDA is out of luck")
if options["--seed"] == "14":
    time.sleep(600)
if options["--seed"] != "15":
    shutil.copytree(options["--model_name_or_path"], options["--output_dir"], dirs_exist_ok=True)
"""


@pytest.fixture(name="training")
def _training(tmp_path: Path) -> TrainingConfig:
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "sft.yaml").write_text("num_train_epochs: 1\n")
    script = f"'{sys.executable}' {tmp_path / 'trainer.py'}"
    command = f"{script} {tmp_path / 'asked'} --config {tmp_path / 'sft.yaml'}"
    return TrainingConfig(
        command=command,
        base=str(DEMO / "weights/student"),
        heldout="heldout.jsonl",
        budget=8,
        seeds=[0, 1],
    )


def lesson(folder: Path, search: str = "toa", seed: int = 0, text: str = "#### 4") -> Lesson:
    folder.mkdir(parents=True, exist_ok=True)
    prompt, completion = ([{"role": role, "content": text}] for role in ("user", "assistant"))
    common = {"prompt": prompt, "completion": completion, "reward": 0.5 + seed}
    rows = [{**common, "prompt_id": f"p{number}"} for number in range(3)]
    return Lesson(
        Run(search, 8, seed),
        folder,
        rows,
        {"accuracy": 1.0, "plays": 8.0, "tokens": 100.0, "flops": 2e9},
    )


def asked(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "asked").read_text().splitlines()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": "no-such-launcher recipes/sft.py"}, "cannot be started"),
        ({"command": ""}, "train.command: must not be empty"),
        ({"command": "python sft.py --config no-such.yaml"}, r"no-such\.yaml"),
        ({"command": "python 'sft.py"}, "train.command: .* No closing quotation"),
        ({"budget": 0}, "train.budget: must be >= 1, not 0"),
        ({"seeds": []}, "train.seeds: must have at least 1 entries"),
        ({"seeds": [1, 1]}, r"train.seeds: must be different numbers, not \[1, 1\]"),
        ({"seeds": 3}, "train.seeds: must be a list, not 3"),
        ({"seeds": ["a"]}, r"train.seeds\[0\]: must be an integer, not 'a'"),
        ({"seeds": [-1]}, r"train.seeds\[0\]: must be >= 0, not -1"),
        ({"student": {"engine": "vlm"}}, r"train.student: .*unknown engine 'vlm'.*'vllm'"),
        ({"student": {"engine": "vllm", "devise": "x"}}, r"train.student: .*'devise'.*'device'"),
        ({"student": {"engine": "vllm", "model": "m"}}, "train.student: must not .* 'model'"),
        ({"student": {}}, "train.student: the key 'engine' is missing"),
        ({"budgets": 8}, "train: unknown key 'budgets'.*did you mean 'budget'"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    good = {"command": "python sft.py", "base": "base", "heldout": "heldout.jsonl", "budget": 8}
    validate(TrainingConfig, good, "train")
    with pytest.raises(ConfigError, match=message):
        validate(TrainingConfig, good | change, "train")


def test_a_student_is_trained_once(tmp_path: Path, training: TrainingConfig) -> None:
    run = tmp_path / "toa-8"
    left, mine = fresh_path(run / "student"), run / "student.of-mine"
    left.mkdir(parents=True)
    mine.mkdir()
    for _ in range(2):
        wait(train_student(training, lesson(run, seed=7)))
    (options,) = asked(tmp_path)
    assert options["--seed"] == "7"
    assert options["--model_name_or_path"] == training.base
    (row, *_) = load_dataset(options["--dataset_name"], split="train")
    assert row["completion"] == [{"role": "assistant", "content": "#### 4"}]
    assert {path.name for path in run.iterdir()} == {
        *("sft", "student", "student.of-mine", "training.log")
    }
    assert (run / "student/model.safetensors").is_file()


def test_a_student_may_learn_from_pairs(tmp_path: Path, training: TrainingConfig) -> None:
    pairs = training.model_copy(update={"data": "dpo"})
    prompt, chosen, rejected = (
        [{"role": role, "content": text}]
        for role, text in (("user", "2 + 2?"), ("assistant", "#### 4"), ("assistant", "#### 5"))
    )
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "chosen_reward": 0.5}
    summary = {"accuracy": 1.0, "plays": 8.0, "tokens": 100.0, "flops": 2e9}
    (tmp_path / "toa-8").mkdir()
    rows = [{**row, "prompt_id": "p0"}]
    taught = Lesson(Run("toa", 8, 0), tmp_path / "toa-8", rows, summary)
    wait(train_student(pairs, taught))
    (options,) = asked(tmp_path)
    assert (tmp_path / "toa-8/student_dpo").is_dir()  # beside a student of the best responses
    (found,) = load_dataset(options["--dataset_name"], split="train")
    assert (found["chosen"], found["rejected"]) == (chosen, rejected)
    assert not (tmp_path / "toa-8/sft").exists()
    changed = Lesson(taught.run, taught.folder, [{**rows[0], "rejected": chosen}], summary)
    with pytest.raises(ConfigError, match=r"was trained otherwise \(rows\)"):
        wait(train_student(pairs, changed))
    prompts = [Prompt("p0", "2 + 2?", {"answer": "4"})]  # type: ignore[arg-type]
    judge = Judge(
        [],
        make_task("alignment"),
        make_reward({"kind": "function", "function": f"{__name__}:says_4"}),
        Sampling(),
        "",
    )
    assert wait(judge.accuracy(rows, prompts)) == 1.0
    right = {("toa", 8): np.array([[1.0, 0.0]])}
    (_, line) = table_rows([taught], {taught.run: 1.0}, [0.0, 1.0], right)
    assert line["mean_reward"] == 0.5


class Served(Agent):
    """A student behind an engine of the user's own."""

    def __init__(self, name: str, model: str, port: int) -> None:
        self.name, self._reply = name, f"{Path(model).name} at {port}: #### 4"

    async def generate(self, messages: Any, *, sampling: Any, seed: int) -> Completion:
        return Completion(self._reply, "stop", 1, 1)


def test_students_are_judged_by_any_engine(tmp_path: Path) -> None:
    problems = [Prompt("p0", "2 + 2?")]  # type: ignore[arg-type]
    student = {"engine": f"{__name__}:Served", "port": 8001}
    verifier = make_reward({"kind": "function", "function": f"{__name__}:says_4"})
    judge = Judge(problems, make_task("alignment"), verifier, Sampling(), "", student)
    assert wait(judge.verdicts("student", "runs/toa-8", tmp_path)) == [1.0]
    (answers,) = tmp_path.glob("student-*.jsonl")
    assert json.loads(answers.read_text())["response"] == "toa-8 at 8001: #### 4"


def test_a_device_that_students_need_is_checked_before_they_are_asked(tmp_path: Path) -> None:
    problems = [Prompt("p0", "2 + 2?")]  # type: ignore[arg-type]
    student = {"engine": "transformers", "device": "cuda:7"}
    judge = Judge(problems, make_task("alignment"), Served("s", "m", 1), Sampling(), "", student)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"train.student: untrained: device 'cuda:7' does not"):
        wait(judge.verdicts("untrained", str(DEMO / "weights/student"), tmp_path))


def says_4(completions: Any, **columns: Any) -> list[float]:
    return [float("4" in completion[0]["content"]) for completion in completions]


def test_memory_is_free_while_a_student_is_trained(
    tmp_path: Path, training: TrainingConfig
) -> None:
    class Model:
        def __init__(self) -> None:
            self.queue = self

    gc.disable()
    try:
        model = weakref.ref(Model())
        assert model() is not None
        wait(train_student(training, lesson(tmp_path / "toa-8")))
        assert model() is None
    finally:
        gc.enable()


def test_another_training_is_refused(tmp_path: Path, training: TrainingConfig) -> None:
    run = tmp_path / "toa-8"
    wait(train_student(training, lesson(run)))
    with pytest.raises(ConfigError, match=r"student was trained otherwise \(rows\); move it away"):
        wait(train_student(training, lesson(run, text="#### 5")))
    with pytest.raises(ConfigError, match=r"otherwise \(seed\)"):
        wait(train_student(training, lesson(run, seed=1)))
    (tmp_path / "sft.yaml").write_text("num_train_epochs: 2\n")
    with pytest.raises(ConfigError, match=r"otherwise \(configurations\)"):
        wait(train_student(training, lesson(run)))
    (run / "student/training.json").unlink()
    with pytest.raises(ConfigError, match=r"otherwise \(command, base, "):
        wait(train_student(training, lesson(run)))


def test_a_training_that_fails_shows_its_last_lines(
    tmp_path: Path, training: TrainingConfig
) -> None:
    run = tmp_path / "toa-8"
    with pytest.raises(
        ToaError,
        match=r"of toa, budget 8, seed 13, ended with .*:\n.*\n  epoch 2\n  CUDA is out of luck",
    ):
        wait(train_student(training, lesson(run, seed=13)))
    with pytest.raises(ToaError, match="seed 15, left no model"):
        wait(train_student(training, lesson(run, seed=15)))
    assert not (run / "student").exists()


def test_an_interrupted_training_does_not_outlive_it(
    tmp_path: Path, training: TrainingConfig
) -> None:
    # as accelerate does: the command is the parent of what trains
    nested = f"bash -c '\"$@\" & echo $! >{tmp_path}/pid; wait' - {training.command}"
    launched = training.model_copy(update={"command": nested})

    async def interrupt() -> None:
        task = asyncio.ensure_future(train_student(launched, lesson(tmp_path / "toa-8", seed=14)))
        while not (tmp_path / "asked").exists():
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    wait(interrupt())
    wait_until_ended(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "toa-8/student").exists()


def test_the_table_is_made_once(
    tmp_path: Path, training: TrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    class Verifier(RewardModel):
        num_asked = 0

        async def score(self, prompt: Any, responses: Any) -> list[float]:
            self.num_asked += 1
            return [float("####" in text and prompt.id[-1] in "02468") for text in responses]

    task, verifier = make_task("alignment"), Verifier()
    problems = load_prompts(str(DEMO / "data/validation.jsonl"), "train", 5, task.read)
    judge = Judge(problems, task, verifier, Sampling(max_tokens=64), "by last digit")
    lessons = [lesson(tmp_path / name, name) for name in ("toa", "moa")]
    prompts = [Prompt(f"p{number}", "What?") for number in range(3)]  # type: ignore[arg-type]

    async def make(judge: Judge) -> list[dict[str, Any]]:
        untrained = await judge.verdicts("untrained", training.base, tmp_path)
        accuracies = {each.run: await judge.accuracy(each.rows, prompts) for each in lessons}
        right = await teach(training, lessons, judge)
        return table_rows(lessons, accuracies, untrained, right)

    rows = wait(make(judge))
    assert [row["search"] for row in rows] == ["untrained", "toa", "moa"]
    assert all(row["accuracy"] == 0.6 for row in rows)  # every student is a copy of the first
    said = [record.getMessage() for record in caplog.records if record.name == students.__name__]
    assert said == [
        "student 1 of 2 (toa, budget 8, seed 0): accuracy 0.600",
        "student 2 of 2 (moa, budget 8, seed 0): accuracy 0.600",
    ]
    # what is right among the data is right among the rows, whatever the best plays were
    assert [row.get("data_accuracy") for row in rows] == [
        None,
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    ]
    in_rows = 2 * 3
    assert verifier.num_asked == 3 * 5 + in_rows
    assert wait(make(judge)) == rows
    assert verifier.num_asked == 3 * 5 + 2 * in_rows
    assert len(asked(tmp_path)) == 2
    shutil.rmtree(tmp_path / "moa/student")
    assert wait(make(judge)) == rows
    assert len(asked(tmp_path)) == 3
    assert verifier.num_asked == 4 * 5 + 3 * in_rows
    # another verifier judges anew
    strict = Judge(
        problems,
        task,
        make_reward({"kind": "function", "function": nothing}),
        judge.sampling,
        "nothing",
    )
    assert {row["accuracy"] for row in wait(make(strict))} == {0.0}
    scorer = Judge(problems, task, make_reward({"kind": "length"}), judge.sampling, "length")
    with pytest.raises(ConfigError, match=r"verifier: scores must be 1 \(right\) or 0 \(wrong\)"):
        wait(scorer.verdicts("untrained", training.base, tmp_path))


def nothing(completions: Any, **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def test_rows_agree_with_the_verdicts(tmp_path: Path, training: TrainingConfig) -> None:
    rng = np.random.default_rng(1)
    right = {
        (name, 8): (rng.random((3, 400)) < share).astype(float)
        for name, share in (("a", 0.9), ("b", 0.5), ("c", 0.88))
    }
    untrained = [1.0, 0.0, 0.0, 0.0] * 100
    lessons = [lesson(tmp_path, name, seed) for name, _ in right for seed in (0, 1, 2)]
    accuracies = {each.run: each.run.seed / 4 for each in lessons}
    first, *rows = table_rows(lessons, accuracies, untrained, right)
    json.dumps([first, *rows])
    assert (first["search"], first["accuracy"], first["num_problems"]) == ("untrained", 0.25, 400)
    assert first["interval"] == pytest.approx(bootstrap(untrained), abs=0.01)
    for row in rows:
        own = right[row["search"], row["budget"]]
        assert row["accuracy"] == pytest.approx(own.mean())
        assert row["per_seed"] == pytest.approx(list(own.mean(1)))
        assert row["accuracy_std"] == pytest.approx(own.mean(1).std(ddof=1))
        assert row["interval"][0] < row["accuracy"] < row["interval"][1]
        assert row["gap"] == pytest.approx(right["a", 8].mean() - own.mean())
        data = {
            "seeds": [0, 1, 2],
            "budget": 8,
            "num_rows": 3,
            "mean_reward": 1.5,
            "data_accuracy": 0.25,
            "flops": 2e9,
        }
        assert {key: row[key] for key in data} == data
    a, b, c = rows
    assert "gap_interval" not in a
    assert b["gap_interval"][0] > 0.2
    assert sum(b["gap_interval"]) / 2 == pytest.approx(b["gap"])
    assert c["gap_interval"][0] < 0.02 < c["gap_interval"][1]
    (_, one) = table_rows(lessons[:1], accuracies, untrained, {("a", 8): right["a", 8][:1]})
    assert "accuracy_std" not in one
    assert one["interval"] == pytest.approx(bootstrap(list(right["a", 8][0])), abs=0.01)
