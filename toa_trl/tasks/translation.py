"""Translation: a source text, the names of two languages, and a response that is the translation and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from toa_trl.errors import AgentError
from toa_trl.tasks.base import Task
from toa_trl.types import Prompt

QUOTES = {
    '"': '"',
    "“": "”",
    "„": "“",
    "«": "»",
    "»": "«",
    "「": "」",
    "『": "』",
    "'": "'",
    "‘": "’",
    "`": "`",
}
FENCE = re.compile(r"```[\w-]*\n(.*?)\n?```", re.DOTALL)
TAG = re.compile(r"<(translation|target|draft)>\s*(.*?)\s*</\1>", re.DOTALL | re.IGNORECASE)
# "Sure! Here is the English translation:", "Translation:" or "English:" before the text, in a line of its own or not
OPENING = (
    r"(?:(?:sure|certainly|of course|okay|ok)\b[^\n:]{{0,60}}\n+)?"
    r"(?:(?:(?:sure|certainly|of course|okay|ok)\b\W+)?"
    r"(?:here(?:'s|’s| is| are)|below is|this is|the following is|the (?:text|sentence)|it|this)\b"
    r"[^\n:]{{0,80}}\b(?:translat(?:ion|ed|es)|in(?:to)? {language})\b[^\n:]{{0,60}}"
    r"|\W*(?:(?:the|final|my|best|improved|revised) )*(?:{language} )?translation\W*(?:into {language}\W*)?"
    r"|\W*{language}\W*):[ \t*]*(?:\n+|\Z)?"
)
# a last paragraph about the translation
CLOSING = re.compile(
    r"\n\s*\n\W*(?:notes?|explanation|translator's notes?|translation notes?|please note|i hope (?:this|that|it)|"
    r"let me know|this translation|in this translation|i (?:have )?(?:translated|kept|chose))\b.*",
    re.IGNORECASE | re.DOTALL,
)


class Translation(Task):
    """The reward sees the source and the translation alone.

    Args:
        templates: folder with other words than the task's own.
        source_language: name of the language of every row without a column of that name, e.g. "German".
        target_language: likewise.
    """

    name = "translation"
    columns = ("source", "source_language", "target_language")
    asked = "source"
    verifier: ClassVar[Mapping[str, Any]] = {"kind": "chrf"}
    verifier_column = "reference"

    def __init__(
        self,
        templates: str | Path | None = None,
        source_language: str | None = None,
        target_language: str | None = None,
    ) -> None:
        super().__init__(templates)
        given = {"source_language": source_language, "target_language": target_language}
        self._languages = {column: name for column, name in given.items() if name is not None}

    @property
    def identity(self) -> dict[str, Any]:
        """See `Task.identity`."""
        return {**super().identity, **self._languages}

    def read(self, place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Task.read`."""
        return super().read(
            place, {**self._languages, **{key: v for key, v in row.items() if v is not None}}
        )

    def parse(self, prompt: Prompt, text: str) -> str:
        """The translation without the quotes and the chatter around it; what the source has itself stays.

        Raises:
            AgentError: nothing is left.
        """
        found = strip_chatter(
            self.question(prompt), text, str(prompt.metadata.get("target_language", ""))
        )
        if not found:
            raise AgentError(f"no translation in the answer {text.strip()[:80]!r}")
        return found


def strip_chatter(source: str, text: str, language: str = "") -> str:
    """The translation in `text`; "" where there is none.

    Only what the source cannot be the reason for is taken away: a label where the source's first line has no colon, a last
    paragraph of notes where the source has one line, quotes where it has none.
    """
    opening = re.compile(OPENING.format(language=re.escape(language) or r"(?!)"), re.IGNORECASE)
    source = source.strip()
    while (shorter := _stripped(source, text.strip(), opening)) != text:
        text = shorter
    return text


def _stripped(source: str, text: str, opening: re.Pattern[str]) -> str:
    for block, group in ((TAG, 2), (FENCE, 1)):
        if (match := block.search(text)) and not block.search(source):
            return match[group].strip()
    if not re.search("[:：]", source.partition("\n")[0]):
        text = opening.sub("", text, count=1) if opening.match(text) else text
    if "\n" not in source:
        text = CLOSING.sub("", text)
    if text[:2] == text[-2:] == "**" and len(text) > 4 and not source.startswith("**"):
        text = text[2:-2]
    inner = text[1:-1]
    quoted = (
        len(text) > 1 and QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(inner)
    )
    if quoted and source[:1] not in QUOTES and source[-1:] not in QUOTES.values():
        text = inner
    return text.strip()
