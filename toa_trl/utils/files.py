"""Small files: atomic writes, and YAML and JSONL with errors in one line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from toa_trl.errors import ConfigError


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old or the new contents, never a part."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def replace_section(text: str, section: str) -> str:
    """Return a card in which one section is replaced; the rest is unchanged.

    Args:
        text: the card, in Markdown.
        section: the section from its heading "## ..." on; without a section of that heading it is
            inserted before the citation, or at the end.
    """
    heading, section = section.partition("\n")[0], section.rstrip() + "\n\n"
    until_next = r"$.*?(?=^## |\Z)"
    replaced, num = re.subn(
        f"^{re.escape(heading)}{until_next}",
        lambda _: section,
        text,
        count=1,
        flags=re.MULTILINE | re.DOTALL,
    )
    if not num:
        citation = re.search(r"^## Citations?$", text, re.MULTILINE)
        at = citation.start() if citation else len(text)
        replaced = f"{text[:at].rstrip()}\n\n{section}{text[at:]}"
    return replaced.rstrip() + "\n"


def read_yaml(path: Path, *, place: str = "", remedy: str = "") -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Args:
        path: the file.
        place: start of the message if the file cannot be read, such as "--config: ".
        remedy: end of the message if the file cannot be read or is no mapping, such as
            "; start it first".

    Raises:
        ConfigError: the file cannot be read, is not YAML, or does not contain a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{place}{path} cannot be read: {error.strerror}{remedy}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must contain keys and values{remedy}")
    return content


def read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of every line that is not blank; the place reads "file, line 3".

    Raises:
        ConfigError: a line is not JSON.
    """
    # not read through datasets, whose errors do not name the line
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                yield place, json.loads(line)
            except ValueError as error:  # UnicodeDecodeError is one too
                raise ConfigError(
                    f"{place}: not JSON ({error}); each line must be a JSON object"
                ) from error
