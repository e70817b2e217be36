"""One search as uniform and as adaptive: rows, students and differences at their budgets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import number, wait
from toa_trl.cli import comparison
from toa_trl.cli.comparison_config import ComparisonConfig
from toa_trl.errors import ConfigError
from toa_trl.evaluation import students
from toa_trl.evaluation.students import Judge, Lesson, TrainingConfig
from toa_trl.rollouts import Rollouts
from toa_trl.utils.config import validate

ADAPTIVE: dict[str, Any] = {"kind": "adaptive", "min_plays": 2, "wave": 1}
UNIFORM_ENTRY: dict[str, Any] = {"name": "sequential", "label": "uniform", "budgets": [6, 4]}
ADAPTIVE_ENTRY: dict[str, Any] = {
    "name": "sequential",
    "label": "adaptive",
    "budgets": [4],
    "allocation": ADAPTIVE,
}
TRAIN: dict[str, Any] = {
    "command": "python x",
    "base": "b",
    "heldout": "heldout.jsonl",
    "seeds": [0, 1],
}


def easy_or_hard(completions: Any, prompts: Any, **columns: Any) -> list[float]:
    """Odd prompts have all there is to gain after one play."""
    rewards = []
    for prompt, completion in zip(prompts, completions, strict=True):
        easy = "odd" in prompt[-1]["content"]
        rewards.append(1.0 if easy else number(completion[0]["content"]))
    return rewards


def half_right(completions: Any, **columns: Any) -> list[float]:
    return [float(number(completion[0]["content"]) < 0.5) for completion in completions]


def configured(tmp_path: Path, **changes: Any) -> ComparisonConfig:
    for name, start in (("prompts", 0), ("heldout", 100)):
        texts = [f"{start + i} is {'odd' if i % 2 else 'even'}" for i in range(12)]
        lines = [json.dumps({"prompt": text}) + "\n" for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    keys: dict[str, Any] = {
        "prompts": f"{tmp_path}/prompts.jsonl",
        "searches": [UNIFORM_ENTRY, ADAPTIVE_ENTRY],
        "baseline": "uniform",
        "baseline_budget": 6,
        "budgets": [],
        "seeds": [0, 1],
        "agents": [{"name": name, "engine": "scripted"} for name in "ab"],
        "reward": {"kind": "function", "function": f"{__name__}:easy_or_hard"},
        "verifier": f"{__name__}:half_right",
        "train": {**TRAIN, "heldout": f"{tmp_path}/heldout.jsonl"},
        "results": f"{tmp_path}/results.json",
        "output_dir": str(tmp_path / "runs"),
    }
    config: ComparisonConfig = validate(ComparisonConfig, {**keys, **changes})
    return config


def compare(config: ComparisonConfig) -> tuple[dict[str, Any], str]:
    said: list[str] = []
    wait(comparison.compare_searches(config, said.append))
    return json.loads(Path(config.results).read_text()), "\n".join(said)


@pytest.fixture(name="lessons")
def _lessons(monkeypatch: pytest.MonkeyPatch) -> list[Lesson]:
    """What students are given; the more plays, the more problems they solve."""
    lessons: list[Lesson] = []

    async def train(training: TrainingConfig, lesson: Lesson) -> Path:
        lessons.append(lesson)
        return lesson.folder

    async def verdicts(judge: Judge, name: str, model: Any, folder: Path) -> list[float]:
        num_right = 0 if name == "untrained" else lessons[-1].run.budget
        return [float(i < num_right) for i in range(len(judge.problems))]

    monkeypatch.setattr(students, "train_student", train)
    monkeypatch.setattr(Judge, "verdicts", verdicts)
    monkeypatch.setattr(comparison, "save_figures", lambda *_: None)  # slow
    return lessons


def cells(rows: Sequence[dict[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in keys) for row in rows]


def test_a_search_is_compared_as_uniform_and_as_adaptive(
    tmp_path: Path, lessons: list[Lesson]
) -> None:
    # the gain is learned from more observations than its nearest 40
    entries = [UNIFORM_ENTRY | {"budgets": [12, 8]}, ADAPTIVE_ENTRY | {"budgets": [8]}]
    changes = {"searches": entries, "baseline_budget": 12, "seeds": [0], "train": None}
    results, said = compare(configured(tmp_path, **changes))
    uniform, _, adaptive = rows = results["searches"]
    assert cells(rows, "name", "budget", "plays") == [
        ("uniform", 8, 8.0),
        ("uniform", 12, 12.0),
        ("adaptive", 8, 8.0),
    ]
    assert adaptive["mean_best_reward"] > uniform["mean_best_reward"]
    assert ["best_reward_over_n" in row for row in rows] == [True, True, False]
    against = cells(results["search_differences"], "name", "budget", "baseline_budget")
    assert against == [("uniform", 8, 12), ("adaptive", 8, 8), ("adaptive", 8, 12)]
    numbers: dict[bool, int] = {False: 0, True: 0}
    for rollout in Rollouts.load(tmp_path / "runs/adaptive-8"):
        numbers["odd" in rollout.prompt.messages[-1].content] += len(rollout.scored)
    assert sum(numbers.values()) == 8 * 12
    assert numbers[True] < numbers[False]  # the plays of easy prompts went to the others
    assert "plays" in said
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize(("data", "column"), [("sft", "completion"), ("dpo", "chosen")])
def test_students_learn_at_the_budgets_of_each_entry(
    tmp_path: Path, lessons: list[Lesson], data: str, column: str
) -> None:
    train = {**TRAIN, "heldout": f"{tmp_path}/heldout.jsonl", "data": data}
    results, said = compare(configured(tmp_path, train=train))
    untrained, *rows = results["data_table"]
    assert untrained["accuracy"] == 0.0
    assert cells(rows, "search", "budget", "plays") == [
        ("uniform", 4, 4.0),
        ("uniform", 6, 6.0),
        ("adaptive", 4, 4.0),
    ]
    assert [row["accuracy"] for row in rows] == pytest.approx([4 / 12, 6 / 12, 4 / 12])
    assert [tuple(lesson.run) for lesson in lessons] == [
        (*cell, seed) for cell in cells(rows, "search", "budget") for seed in (0, 1)
    ]
    assert all(column in row for lesson in lessons for row in lesson.rows)
    differences = results["student_differences"]
    assert cells(differences, "search", "budget", "baseline", "baseline_budget") == [
        ("uniform", 4, "uniform", 6),
        ("adaptive", 4, "uniform", 4),
        ("adaptive", 4, "uniform", 6),
    ]
    assert [row["difference"] for row in differences] == pytest.approx([-2 / 12, 0, -2 / 12])
    assert "interval" in differences[0]
    assert "student" not in "".join(results["searches"][0])
    assert said.count("baseline_budget") >= 2


def test_without_budgets_of_their_own_students_learn_at_the_budget_of_train(
    tmp_path: Path, lessons: list[Lesson]
) -> None:
    train = {**TRAIN, "heldout": f"{tmp_path}/heldout.jsonl", "budget": 2, "seeds": [0]}
    plain = {"name": "sequential"}
    changes = {"searches": [plain, ADAPTIVE_ENTRY], "baseline": "", "baseline_budget": None}
    results, _ = compare(configured(tmp_path, train=train, **changes))
    assert cells(results["searches"], "name", "budget") == [("adaptive", 4)]
    assert cells(results["data_table"][1:], "search", "budget") == [
        ("sequential", 2),
        ("adaptive", 4),
    ]
    assert "student_differences" not in results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"searches": [{"name": "toa"}, {"name": "toa", "allocation": ADAPTIVE}]},
            "searches: 2 entries have the label 'toa'; labels must be different",
        ),
        (
            {"searches": [UNIFORM_ENTRY, {**ADAPTIVE_ENTRY, "name": "prs"}]},
            r"searches\[1\].allocation: adaptive needs a search.*for toa set params: {width: any",
        ),
        (
            {
                "searches": [
                    UNIFORM_ENTRY,
                    {**ADAPTIVE_ENTRY, "name": "toa", "params": {"width": 1}},
                ],
            },
            r"searches\[1\].params.width: must be >= the number of agents \(2\), not 1",
        ),
        (
            {
                "searches": [UNIFORM_ENTRY, {**ADAPTIVE_ENTRY, "name": "parallel"}],
                "agents": [{"name": name, "engine": "scripted"} for name in "abc"],
            },
            r"searches\[1\].allocation.min_plays: must be >= 3",
        ),
        (
            {"searches": [{**ADAPTIVE_ENTRY, "allocation": {**ADAPTIVE, "max_plays": 3}}]},
            r"searches\[0\].allocation.max_plays: must be >= the budget, 4",
        ),
        (
            {"searches": [{**ADAPTIVE_ENTRY, "allocation": {**ADAPTIVE, "waves": 3}}]},
            r"searches\[0\].allocation: unknown key 'waves'.*did you mean 'wave'",
        ),
        ({"searches": [{"name": "toa", "allocation": {"kind": "adaptve"}}]}, "did you mean 'adap"),
        (
            {"searches": [UNIFORM_ENTRY | {"budgets": [0]}]},
            r"searches\[0\].budgets\[0\]: must be >= 1, not 0",
        ),
        (
            {"baseline_budget": 5},
            r"baseline_budget: must be one of \[4, 6\], the budgets of uniform, not 5",
        ),
        ({"baseline": ""}, "baseline_budget: needs a baseline"),
        (
            {"searches": [UNIFORM_ENTRY, {**ADAPTIVE_ENTRY, "budgets": [4, 5]}]}
            | {"baseline_budget": None},
            "baseline: uniform has no budget 5, which adaptive has; add it there, or set",
        ),
        (
            {"searches": [UNIFORM_ENTRY, {"name": "parallel"}]},
            "train.budget: the key is missing, and the search parallel has no budgets of its own",
        ),
        (
            {"searches": [UNIFORM_ENTRY, {"name": "parallel"}], "train": None},
            "budgets: must not be empty without train",
        ),
    ],
)
def test_mistakes_are_named_before_models_are_loaded(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, **changes)


def test_an_allocation_weighs_the_prices_of_entries(tmp_path: Path, lessons: list[Lesson]) -> None:
    priced = {**ADAPTIVE_ENTRY, "allocation": {**ADAPTIVE, "cost": "price"}}
    agents: list[dict[str, Any]] = [{"name": name, "engine": "scripted"} for name in "ab"]
    changes = {"searches": [UNIFORM_ENTRY, priced], "seeds": [0], "train": None}
    with pytest.raises(ConfigError, match=r"allocation.cost: agent 'a' has no price"):
        compare(configured(tmp_path, agents=agents, **changes))
    agents = [{**agent, "price": {"completion": 1.0}} for agent in agents]
    results, _ = compare(configured(tmp_path, agents=agents, **changes))
    assert results["searches"][-1]["plays"] == 4.0
