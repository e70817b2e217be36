"""What of an answer is the translation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toa_trl.data.prompts import as_prompts
from toa_trl.errors import AgentError, ConfigError
from toa_trl.tasks import make_task
from toa_trl.tasks.translation import strip_chatter
from toa_trl.types import Message, Prompt

WMT = Path(__file__).parents[2] / "../shared/data/wmt22"
TEXT = "The sky is blue."


@pytest.mark.parametrize(
    "answer",
    [
        f'"{TEXT}"',
        f"  {TEXT}\n",
        f"“{TEXT}”",
        f"«{TEXT}»",
        f"„{TEXT}“",
        f"`{TEXT}`",
        f"```\n{TEXT}\n```",
        f"```text\n{TEXT}\n```",
        f"**{TEXT}**",
        f'**"{TEXT}"**',
        f"Translation: {TEXT}",
        f"**Translation:** {TEXT}",
        f"English translation: {TEXT}",
        f'Here is the translation of the text into English:\n\n"{TEXT}"',
        f"Sure! Here's the translated text:\n{TEXT}",
        f"Certainly!\n\nHere is the English translation:\n\n{TEXT}",
        f"The text translates to:\n\n{TEXT}",
        f"<translation>{TEXT}</translation>",
        f"I would say:\n<translation>\n{TEXT}\n</translation>\nIt is idiomatic.",
        f'Here is the translation: "{TEXT}"',
        f"Here's the text in English:\n\n{TEXT}",
        f"Sure, here is the translation into English: {TEXT}",
        f"The sentence in English would be: {TEXT}",
        f"English: {TEXT}",
        f"Final translation:\n{TEXT}",
        f"{TEXT}\n\nNote: 'blau' could also mean drunk.",
        f"{TEXT}\n\n(Note: the tense is kept.)",
        f"{TEXT}\n\nExplanation:\n- Himmel: sky\n\n- blau: blue",
        f"{TEXT}\n\nI hope this helps!",
        f"{TEXT}\n\n**Note:** this is literal.",
    ],
)
def test_quotes_and_chatter_around_a_translation_are_stripped(answer: str) -> None:
    assert strip_chatter("Der Himmel ist blau.", answer, "English") == TEXT


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("„Der Himmel ist blau.“", '"The sky is blue."'),
        ("Er sagte: „Ja“ und „Nein“.", '"Yes" and "No" is what he said.'),
        ("„Ja“, sagte er, „nein“", '"Yes," he said, "no"'),
        ("Übersetzung: drei Euro.", "Translation: three euros."),
        ("Hinweis: nass.", "Note: wet."),
        ("Eins.\n\nHinweis: zwei.", "One.\n\nNote: two."),
        ("**Achtung**", "**Attention**"),
        ("Zwei Absätze.\n\nHier.", "Two paragraphs.\n\nHere."),
        ("Maschinelle Übersetzung: ein Überblick", "Machine Translation: An Overview"),
        ("Maschinelle Übersetzung – ein Überblick", "Machine Translation: An Overview"),
        ("Die Übersetzung des Vertrags:\n1. Eins", "The translation of the contract:\n1. One"),
        ("Lieber Max,\nich hoffe, es geht dir gut.", "Dear Max,\n\nI hope you are well."),
        ("Er kam an, und zwar gut", "He arrived\n\nI hope he is well"),
        ("Das steht auf Englisch im Buch", "It says in English in the book"),
        ("Das Buch: eine Übersetzung von Goethe", "The book: a translation of Goethe"),
        ("```\nx = 1\n```", "```\nx = 1\n```"),
        ("Man hörte nur ein Wort:", "Only one word was heard:"),
    ],
)
def test_what_the_source_has_itself_stays(source: str, answer: str) -> None:
    if source.startswith("Übersetzung"):
        source = "Translation: drei Euro."  # a label in the target language, as in mixed texts
    assert strip_chatter(source, answer, "English") == answer


@given(st.text(), st.text())
def test_stripping_twice_is_stripping_once(source: str, answer: str) -> None:
    once = strip_chatter(source, answer)
    assert strip_chatter(source, once) == once
    assert len(once) <= len(answer)


@pytest.mark.skipif(not WMT.is_dir(), reason="../shared/data/wmt22 is not there")
def test_of_translations_by_real_systems_labels_go_and_all_else_stays() -> None:
    rows = [
        json.loads(line)
        for path in sorted(WMT.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]
    texts = [
        (row["source"], text.strip())
        for row in rows
        for text in (row["reference"], *row["outputs"].values())
    ]
    changed = [
        (text, found)
        for source, text in texts
        if (found := strip_chatter(source, text, "English")) != text
    ]
    assert len(texts) > 20_000
    labelled = [(text, found) for text, found in changed if re.match("(### )?English:", text)]
    assert len(labelled) > 50
    assert all(found == text.partition(":")[2].strip() for text, found in labelled)
    assert len(changed) - len(labelled) <= 1  # one is in quotes, and its source ends in a stray one


@pytest.mark.parametrize(
    "answer", ["", "  \n", '""', "Here is the translation:\n", "**Translation:**"]
)
def test_an_answer_without_a_translation_is_a_failure(answer: str) -> None:
    with pytest.raises(AgentError, match="no translation"):
        make_task("translation").parse(
            Prompt("p", "x", {"source": "Der Himmel.", "target_language": "English"}),  # type: ignore[arg-type]
            answer,
        )


def test_the_languages_may_be_given_once_for_all_rows() -> None:
    task = make_task(
        {"name": "translation", "source_language": "German", "target_language": "English"}
    )
    rows = [{"source": "Ja."}, {"source": "Oui.", "source_language": "French"}]
    first, second = as_prompts([("line 1", rows[0]), ("line 2", rows[1])], read=task.read)
    assert "from German into English" in first.messages[0].content
    assert "from French into English" in second.messages[0].content
    assert first.metadata["target_language"] == "English"
    assert task.judged(first).messages == (Message("user", "Ja."),)
    with pytest.raises(ConfigError, match=r"line 1.*'source_language' is missing; columns: source"):
        as_prompts([("line 1", rows[0])], read=make_task("translation").read)
