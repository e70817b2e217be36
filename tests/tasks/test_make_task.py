"""Which task an entry means, and a task of one's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import play
from toa_trl.data.prompts import as_prompts
from toa_trl.errors import ConfigError
from toa_trl.tasks import make_task
from toa_trl.tasks.alignment import Alignment
from toa_trl.types import Action

PAGE = (Path(__file__).parents[2] / "docs/guides/tasks_and_rewards.md").read_text(encoding="utf-8")
(SUMMARY,) = (
    code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Summary" in code
)
exec(SUMMARY)  # as the page shows it


def test_a_task_of_ones_own_is_one_class() -> None:
    task = make_task(f"{__name__}:Summary")
    (prompt,) = as_prompts([("line 1", {"document": "A b c.", "words": 2})], read=task.read)
    assert prompt.messages[-1].content == "In at most 2 words, what does this say?\n\nA b c."
    rendered = task.render(prompt, Action("a", "refine", (0,), 0, 1), {0: play(0, 1.0, "A.")})
    assert (
        rendered[-1].content == "A b c.\n\nA summary:\nA.\n\nWrite a better one in at most 2 words."
    )
    with pytest.raises(ConfigError, match=r"'words' is missing; columns: document"):
        as_prompts([("line 1", {"document": "A b c."})], read=task.read)
    with pytest.raises(ConfigError, match=r"'words' is null; columns: document"):
        as_prompts([("line 1", {"document": "A b c.", "words": None})], read=task.read)


def test_a_folder_of_templates_is_alignment_in_other_words(tmp_path: Path) -> None:
    for name, text in {
        "refine": "{prompt}{draft}",
        "aggregate": "{prompt}{drafts}",
        "draft": "{number}{draft}",
    }.items():
        (tmp_path / f"{name}.txt").write_text(text)
    assert isinstance(make_task(str(tmp_path)), Alignment)
    assert make_task(str(tmp_path)).templates.refine == "{prompt}{draft}"


def test_an_object_is_taken_as_it_is() -> None:
    task = Alignment()
    assert make_task(task) is task


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("allignment", r"unknown name 'allignment'.*did you mean 'alignment'"),
        (
            {"name": "translation", "target": "English"},
            r"task: unknown key 'target'.*target_language",
        ),
        ({}, "the key 'name' is missing; choose one of alignment"),
        (None, "must be a name, not None"),
        (f"{__name__}:Prompts", "cannot be imported"),
        (f"{__name__}:pytest", "not a subclass of toa_trl.tasks.Task"),
        ({"name": "math", "templates": "/nowhere"}, r"refine\.txt is missing"),
    ],
)
def test_an_entry_that_is_no_task_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(entry)
