"""Languages of real texts: what is certain is right."""

from __future__ import annotations

from typing import Any

import pytest

from tests.report.audit.conftest import real
from toa_trl.utils.language import asked_language, language_of

SOURCES = ("cs", "de", "is", "ru", "zh")


def asked(text: str, **columns: Any) -> str | None:
    return asked_language([{"role": "user", "content": text}], columns)


@pytest.mark.parametrize("code", SOURCES)
def test_sources_and_translations_are_told_apart(code: str) -> None:
    rows = real(f"wmt22/{code}-en.jsonl")[:500]
    sources = [found for row in rows if (found := language_of(row["source"]))]
    references = [found for row in rows if (found := language_of(row["reference"]))]
    assert len(sources) > 0.75 * len(rows)  # the others are short
    assert set(references) == {"en"}
    assert sources.count(code) >= len(sources) - 1  # one sentence of the German side is English


def test_outputs_in_another_language_are_found() -> None:
    found = []
    for number, row in enumerate(real("alpaca_eval/outputs.jsonl")):
        if number % 4 and "".join(row["outputs"].values()).isascii():
            continue  # a quarter of what is likely to be English is enough
        wanted = asked(row["prompt"])
        for name, text in row["outputs"].items():
            answered = language_of(text)
            if wanted and answered and wanted != answered:
                found.append((row["id"], name, wanted, answered))
    # all three answer in Chinese what was asked in English
    assert len(found) == 3
    assert {(wanted, answered) for _, _, wanted, answered in found} == {("en", "zh")}


def test_what_is_asked_for() -> None:
    english = "Please tell me how I can wrap a present so that it looks neat."
    german = "Bitte erkläre mir in wenigen Sätzen, wie ich ein Geschenk ordentlich einpacke."
    assert (asked(english), asked(german), asked("Hi!"), asked("")) == ("en", "de", None, None)
    assert asked(german, target_language="English") == "en"
    names = {
        "zh_CN": "zh",
        "Simplified Chinese": "zh",
        "Serbian": "hr",
        "de-AT": "de",
        "Brazilian Portuguese": "pt",
    }
    for name, code in {**names, "Klingon": None, "": None, "xx": None}.items():
        assert asked(english, target_language=name) == code
    assert asked(f"{english} Answer in French.") is None
    assert asked(f"Übersetze bitte ins Polnische: {german}") is None
    assert asked_language([], {}) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes.",
        "42 " * 100,
        "```\nfor (int i = 0; i < number; i++) { total += i; }\n```" * 3,
        "\ud800" * 50,
    ],
)
def test_what_is_not_certain_is_not_judged(text: str) -> None:
    assert language_of(text) is None
