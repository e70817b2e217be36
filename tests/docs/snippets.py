"""The blocks of code of README and docs/, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
GENERATED = {ROOT / f"docs/reference/{n}.md" for n in ("commands", "columns", "configuration")}
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - GENERATED)]
VARIABLE = re.compile(r"[A-Z_]+=")


class Block(NamedTuple):
    """A block of code."""

    language: str
    text: str
    place: str  # page:line


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^ *```(\w+)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        line = text[: match.start()].count("\n") + 1
        yield Block(match[1], match[2], f"{page.relative_to(ROOT)}:{line}")


def of(language: str, pages: list[Path] = PAGES) -> list[Block]:
    """Return the blocks in a language."""
    return [block for page in pages for block in blocks(page) if block.language == language]


def at(block: Block) -> str:
    """Return the name of a test."""
    return block.place


def page_of(block: Block) -> Path:
    """Return the page that has a block."""
    return ROOT / block.place.rpartition(":")[0]


def shell_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command, without comments and variables before it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = list[str]()
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word == "&&":
                if words:
                    yield words
                words = []
            elif words or not VARIABLE.match(word):
                words.append(word)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of toa-trl, also of one behind another command."""
    for words in shell_commands(text):
        for number, word in enumerate(words):
            if word.rpartition("/")[2] == "toa-trl":
                yield words[number + 1 :]


def files_of(page: Path) -> dict[str, str]:
    """Return the text of the files that a page shows, as "`run.yaml`, ...:" says before them."""
    text = page.read_text(encoding="utf-8")
    shown = r"`(\w+\.(?:yaml|jsonl))`(?:(?!\n\n).)*:\n\n```(?:yaml|json)\n(.*?)^```$"
    return {match[1]: match[2] for match in re.finditer(shown, text, re.DOTALL | re.MULTILINE)}


def sentences(page: Path) -> list[str]:
    """Return the commands of toa-trl in the sentences of a page."""
    text = re.sub(
        r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    return [" ".join(command.split()) for command in re.findall(r"`(toa-trl [^`]*)`", text)]
