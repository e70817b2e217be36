"""Translation between two named languages; the response is the translation and nothing else."""

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
LANGUAGES = {  # of WMT'22, and of the test sets of later years
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "hr": "Croatian",
    "is": "Icelandic",
    "ja": "Japanese",
    "ru": "Russian",
    "uk": "Ukrainian",
    "zh": "Chinese",
}
FENCE = re.compile(r"```[\w-]*\n(.*?)\n?```", re.DOTALL)
TAG = re.compile(r"<(translation|target|draft)>\s*(.*?)\s*</\1>", re.DOTALL | re.IGNORECASE)
# "Sure! Here is the English translation:", "Translation:" or "English:" before the text
OPENING = (
    r"(?:(?:sure|certainly|of course|okay|ok)\b[^\n:]{{0,60}}\n+)?"
    r"(?:(?:(?:sure|certainly|of course|okay|ok)\b\W+)?"
    r"(?:here(?:'s|’s| is| are)|below is|this is|the following is|the (?:text|sentence)|it|this)\b"
    r"[^\n:]{{0,80}}\b(?:translat(?:ion|ed|es)|in(?:to)? {language})\b[^\n:]{{0,60}}"
    r"|\W*(?:(?:the|final|my|best|improved|revised) )*(?:{language} )?translation\W*"
    r"(?:into {language}\W*)?"
    r"|\W*{language}\W*):[ \t*]*(?:\n+|\Z)?"
)
# a last paragraph about the translation
CLOSING = re.compile(
    r"\n\s*\n\W*(?:notes?|explanation|translator's notes?|translation notes?|please note"
    r"|i hope (?:this|that|it)|let me know|this translation|in this translation"
    r"|i (?:have )?(?:translated|kept|chose))\b.*",
    re.IGNORECASE | re.DOTALL,
)


class Translation(Task):
    """Ask for a translation; the reward model sees only the source and the translation.

    A row may hold a pair as WMT data sets do: a column "cs-en" with {"cs": ..., "en": ...} is the
    source, the reference and their languages.

    Args:
        templates: folder of templates that replace the task's own.
        source_language: language of rows without a column of that name, such as "German".
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
        known = {key: value for key, value in row.items() if value is not None}
        return super().read(place, {**_pair_of(known), **self._languages, **known})

    def parse(self, prompt: Prompt, text: str) -> str:
        """Return the translation without quotes and chatter around it.

        Raises:
            AgentError: the output contains no translation.
        """
        language = str(prompt.metadata.get("target_language", ""))
        translation = strip_chatter(self.question(prompt), text, language)
        if not translation:
            raise AgentError(f"no translation in the answer {text.strip()[:80]!r}")
        return translation


def _pair_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a pair in the layout of WMT data sets, or nothing."""
    for column, value in row.items():
        source, dash, target = str(column).partition("-")
        if dash and isinstance(value, Mapping) and value.keys() >= {source, target}:
            return {
                "source": value[source],
                "reference": value[target],
                "source_language": LANGUAGES.get(source),
                "target_language": LANGUAGES.get(target),
            }
    return {}


def strip_chatter(source: str, text: str, language: str = "") -> str:
    """Return the translation in an output, or "" if it contains none.

    Only what the source cannot explain is removed: a label if the source's first line has no
    colon, a last paragraph of notes if the source has one line, quotes if the source has none.
    """
    language = re.escape(language) or r"(?!)"
    opening = re.compile(OPENING.format(language=language), re.IGNORECASE)
    source = source.strip()
    while True:  # removing one layer may expose another
        stripped = _without_layer(source, text.strip(), opening)
        if stripped == text:
            return text
        text = stripped


def _without_layer(source: str, text: str, opening: re.Pattern[str]) -> str:
    for block, group in ((TAG, 2), (FENCE, 1)):
        match = block.search(text)
        if match and not block.search(source):
            return match[group].strip()
    if not re.search("[:：]", source.partition("\n")[0]) and opening.match(text):
        text = opening.sub("", text, count=1)
    if "\n" not in source:
        text = CLOSING.sub("", text)
    if text[:2] == text[-2:] == "**" and len(text) > 4 and not source.startswith("**"):
        text = text[2:-2]
    inner = text[1:-1]
    is_quoted = len(text) > 1 and QUOTES.get(text[0]) == text[-1]
    source_is_quoted = source[:1] in QUOTES or source[-1:] in QUOTES.values()
    if is_quoted and not {text[0], text[-1]} & set(inner) and not source_is_quoted:
        text = inner
    return text.strip()
