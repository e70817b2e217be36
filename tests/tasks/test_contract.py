"""What every task does, whichever it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import play
from tests.own_parts import load_example
from toa_trl.data.prompts import as_prompts
from toa_trl.errors import ConfigError
from toa_trl.rewards import KINDS
from toa_trl.tasks import TASKS, Task, make_task
from toa_trl.types import Action, Prompt

ROWS: dict[str, dict[str, Any]] = {
    "alignment": {"prompt": "Why is the sky {blue}?", "topic": "physics"},
    "translation": {
        "source": "Der Himmel ist {blau}.",
        "source_language": "German",
        "target_language": "English",
        "reference": "The sky is blue.",
    },
    "math": {"prompt": r"What is $\frac{1}{2}$ of 8?", "answer": "4"},
    "my task": {"prompt": "Why is the sky {blue}?"},
}
ASKED = {
    "alignment": "Why is the sky {blue}?",
    "translation": "Der Himmel ist {blau}.",
    "math": ROWS["math"]["prompt"],
    "my task": "Why is the sky {blue}?",
}
PLAYS = {0: play(0, 0.5, "first {draft}"), 1: play(1, 0.7, "second")}


@pytest.fixture(params=[*TASKS, load_example("Task")])
def task(request: pytest.FixtureRequest) -> Task:
    """Every built-in task, and the example of docs/own_parts.md; a new one needs a row above."""
    return make_task(request.param)


def read(task: Task, row: Any) -> Prompt:
    (prompt,) = as_prompts([("p.jsonl, line 1", row)], read=task.read)
    return prompt


def test_every_message_shows_what_is_asked_and_every_draft(task: Task) -> None:
    prompt = read(task, ROWS[task.name])
    assert task.question(prompt) == ASKED[task.name]
    answer = task.render(prompt, Action("a"), {})
    assert answer == prompt.messages
    assert ASKED[task.name] in answer[-1].content
    refine = task.render(prompt, Action("a", "refine", (0,), 0, 1), PLAYS)[-1].content
    assert ASKED[task.name] in refine
    assert refine.count("first {draft}") == 1
    aggregate = task.render(prompt, Action("a", "aggregate", (1, 0), 1, 1), PLAYS)[-1].content
    assert ASKED[task.name] in aggregate
    assert 0 < aggregate.index("second") < aggregate.index("first {draft}")


def test_the_reward_never_sees_the_templates_of_the_task(task: Task) -> None:
    prompt = read(task, ROWS[task.name])
    judged = task.judged(prompt)
    assert judged.messages[-1].content == ASKED[task.name]
    assert judged.metadata == prompt.metadata


def test_other_columns_become_metadata(task: Task) -> None:
    prompt = read(task, {**ROWS[task.name], "level": 3})
    assert prompt.metadata["level"] == 3
    assert ROWS[task.name].items() - {("prompt", ASKED[task.name])} <= prompt.metadata.items()


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_column_is_named_beside_the_existing_ones(task: Task, value: str | None) -> None:
    for column in task.columns:
        row = {**ROWS[task.name], "other": 1, column: value}
        with pytest.raises(ConfigError, match=rf"p\.jsonl, line 1.*{column}") as error:
            read(task, row)
        assert value is not None or "other" in str(error.value)


def test_changed_templates_make_another_run(task: Task, tmp_path: Path) -> None:
    for name, text in asdict(task.templates).items():
        if text is not None:
            (tmp_path / f"{name}.txt").write_text(f"{text} Please.")
    other = type(task)(templates=str(tmp_path))
    assert other.identity != task.identity == type(task)().identity
    rendered = other.render(read(other, ROWS[task.name]), Action("a", "refine", (0,), 0, 1), PLAYS)
    assert rendered[-1].content.endswith("Please.")


def test_the_verifier_is_a_reward(task: Task) -> None:
    assert task.verifier is None or task.verifier["kind"] in KINDS.targets


def test_an_ordinary_response_is_not_changed(task: Task) -> None:
    output = "Answer: The sky is blue." if task.name == "my task" else "The sky is blue."
    assert task.parse(read(task, ROWS[task.name]), output) == "The sky is blue."
