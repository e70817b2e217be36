"""What the agents see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import play
from toa_trl.errors import ConfigError
from toa_trl.tasks import make_task
from toa_trl.tasks.base import Templates, render
from toa_trl.types import Action, Message, Prompt

TEMPLATES = Templates(
    "P={prompt} D={draft}", "P={prompt} DS={drafts}", "<{number}>{draft}</{number}>"
)
PLAYS = {i: play(i, 0.5, text) for i, text in enumerate(["first", "second {prompt}", "third"])}
PROMPT = Prompt(
    "p",
    (
        Message("system", "s"),
        Message("user", "u"),
        Message("assistant", "a"),
        Message("user", "What?"),
    ),
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


@given(
    asked=st.text(st.sampled_from("{}ab\\1 drafptmon")),
    draft=st.text(st.sampled_from("{}ab\\g<1> drafptmon")),
)
def test_braces_and_backslashes_of_prompts_and_drafts_stay_as_they_are(
    asked: str, draft: str
) -> None:
    action = Action("a", "refine", (0,), 0, 1)
    prompt = Prompt("p", f"{{draft}}{asked}{{prompt}}")  # type: ignore[arg-type]
    (message,) = render(prompt, action, {0: play(0, 1.0, f"{draft}{{prompt}}")}, TEMPLATES)
    assert message.content == f"P={{draft}}{asked}{{prompt}} D={draft}{{prompt}}"
    drafts = {i: play(i, 1.0, f"{draft}{{number}}{{drafts}}") for i in range(2)}
    (message,) = render(prompt, Action("a", "aggregate", (0, 1), 0, 1), drafts, TEMPLATES)
    assert message.content.count(f"{draft}{{number}}{{drafts}}") >= 2


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_templates_are_a_folder_of_text_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        refine="{prompt}|{draft}\n",
        aggregate="{prompt}|{drafts}",
        draft="{number}|{draft}",
    )
    assert Templates.load(tmp_path) == Templates(
        "{prompt}|{draft}", "{prompt}|{drafts}", "{number}|{draft}"
    )
    write(tmp_path, answer="Q: {prompt}")
    assert Templates.load(tmp_path).answer == "Q: {prompt}"


def test_columns_of_the_prompts_file_are_fields_and_other_braces_stay() -> None:
    templates = Templates("{topic}: {prompt} {draft} \\boxed{} {x}", "{drafts}", "{number}{draft}")
    prompt = Prompt("p", "What?", {"topic": "{draft}", "number": 3})  # type: ignore[arg-type]
    (message,) = render(
        prompt, Action("a", "refine", (0,), 0, 1), PLAYS, templates, {"prompt": "Asked"}
    )
    assert message.content == "{draft}: Asked first \\boxed{} {x}"


def test_templates_that_are_none_are_refused(tmp_path: Path) -> None:
    write(tmp_path, refine="{prompt} {draft}", draft="{number} {draft}")
    with pytest.raises(ConfigError, match=r"aggregate\.txt is missing"):
        Templates.load(tmp_path)
    write(tmp_path, aggregate="{prompt} {draft}")
    with pytest.raises(ConfigError, match=r"aggregate\.txt.*\{drafts\} is missing"):
        Templates.load(tmp_path)
    write(tmp_path, aggregate="{drafts}")
    with pytest.raises(ConfigError, match=r"aggregate\.txt.*\{prompt\} is missing"):
        Templates.load(tmp_path)


def test_drafts_may_be_in_a_system_message() -> None:
    templates = replace(TEMPLATES, aggregate_system="DS={drafts}", refine_system="D={draft}")
    messages = render(PROMPT, Action("a", "aggregate", (2, 0), 2, 1), PLAYS, templates)
    system = Message("system", "s\n\nDS=<1>third</1>\n\n<2>first</2>")
    assert messages == (system, *PROMPT.messages[1:])
    without = replace(PROMPT, messages=PROMPT.messages[3:])
    messages = render(without, Action("a", "refine", (0,), 0, 1), PLAYS, templates)
    assert messages == (Message("system", "D=first"), Message("user", "What?"))


def test_the_built_in_templates_of_moa_use_it_and_others_stay_the_same_run(tmp_path: Path) -> None:
    moa = make_task({"name": "alignment", "templates": "moa_system"})
    first, *rest = moa.render(PROMPT, Action("a", "aggregate", (0, 2), 2, 1), PLAYS)
    assert first.content.startswith("s\n\n")
    assert first.content.endswith("1. first\n\n2. third")
    assert tuple(rest) == PROMPT.messages[1:]
    assert "aggregate_system" in moa.identity["templates"]
    assert "aggregate_system" not in make_task("alignment").identity["templates"]
    (tmp_path / "aggregate_system.txt").write_text("no field")
    for name in ("refine", "aggregate", "draft"):
        (tmp_path / f"{name}.txt").write_text("{prompt}{draft}{drafts}{number}")
    with pytest.raises(ConfigError, match=r"aggregate_system\.txt: the field \{drafts\}"):
        Templates.load(tmp_path)
