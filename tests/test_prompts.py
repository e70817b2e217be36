"""What the agents see."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import play
from toa_trl.errors import ConfigError
from toa_trl.prompts import BUILT_IN, Templates, render
from toa_trl.types import Action, Message, Prompt

TEMPLATES = Templates("P={prompt} D={draft}", "P={prompt} DS={drafts}", "<{number}>{draft}</{number}>")
PLAYS = {i: play(i, 0.5, text) for i, text in enumerate(["first", "second {prompt}", "third"])}
PROMPT = Prompt(
    "p", (Message("system", "s"), Message("user", "u"), Message("assistant", "a"), Message("user", "What?"))
)


def test_an_answer_sees_the_prompt_as_it_is() -> None:
    assert render(PROMPT, Action("a"), {}, TEMPLATES) == PROMPT.messages
    fresh = Action("a", parent=1, depth=1)
    assert render(PROMPT, fresh, PLAYS, TEMPLATES) == PROMPT.messages


def test_a_refinement_sees_one_draft_and_keeps_the_earlier_turns() -> None:
    messages = render(PROMPT, Action("a", "refine", (0,), 0, 1), PLAYS, TEMPLATES)
    assert messages == (*PROMPT.messages[:-1], Message("user", "P=What? D=first"))


def test_an_aggregation_sees_its_drafts_in_the_order_of_the_refs() -> None:
    messages = render(PROMPT, Action("a", "aggregate", (2, 0), 2, 1), PLAYS, TEMPLATES)
    assert messages[-1].content == "P=What? DS=<1>third</1>\n\n<2>first</2>"


@given(asked=st.text(st.sampled_from("{}ab\\1 drafptmon")), draft=st.text(st.sampled_from("{}ab\\g<1> drafptmon")))
def test_braces_and_backslashes_of_prompts_and_drafts_stay_as_they_are(asked: str, draft: str) -> None:
    action = Action("a", "refine", (0,), 0, 1)
    prompt = Prompt("p", f"{{draft}}{asked}{{prompt}}")  # type: ignore[arg-type]
    (message,) = render(prompt, action, {0: play(0, 1.0, f"{draft}{{prompt}}")}, TEMPLATES)
    assert message.content == f"P={{draft}}{asked}{{prompt}} D={draft}{{prompt}}"
    drafts = {i: play(i, 1.0, f"{draft}{{number}}{{drafts}}") for i in range(2)}
    (message,) = render(prompt, Action("a", "aggregate", (0, 1), 0, 1), drafts, TEMPLATES)
    assert message.content.count(f"{draft}{{number}}{{drafts}}") >= 2


@pytest.mark.parametrize("task", sorted(p.name for p in BUILT_IN.iterdir()))
def test_the_built_in_tasks_load_and_show_everything(task: str) -> None:
    templates = Templates.load(task)
    refined = render(PROMPT, Action("a", "refine", (0,), 0, 1), PLAYS, templates)[-1].content
    merged = render(PROMPT, Action("a", "aggregate", (0, 2), 0, 1), PLAYS, templates)[-1].content
    assert "What?" in refined
    assert "first" in refined
    assert all(text in merged for text in ("What?", "first", "third", "1", "2"))


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_a_folder_is_a_task(tmp_path: Path) -> None:
    write(tmp_path, refine="{prompt}|{draft}\n", aggregate="{prompt}|{drafts}", draft="{number}|{draft}")
    assert Templates.load(str(tmp_path)) == Templates("{prompt}|{draft}", "{prompt}|{drafts}", "{number}|{draft}")


def test_a_task_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'nothing'.*refine.txt.*chat"):
        Templates.load("nothing")
    write(tmp_path, refine="{prompt} {draft}", draft="{number} {draft}")
    with pytest.raises(ConfigError, match=r"aggregate\.txt is missing"):
        Templates.load(str(tmp_path))
    write(tmp_path, aggregate="{prompt} {draft}")
    with pytest.raises(ConfigError, match=r"aggregate\.txt.*\{drafts\} is missing"):
        Templates.load(str(tmp_path))
