"""Small files: atomic writes, and YAML and JSONL with errors in one line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from toa_trl.errors import ConfigError


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old or the new contents, never a part."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def read_card(path: Path, text: str) -> dict[str, Any]:
    """Return the metadata block at the start of a model card; empty without one.

    Args:
        path: path of the card, for the message.
        text: content of the card.

    Raises:
        ConfigError: the block is not a YAML mapping.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        block = REGEX_YAML_BLOCK.search(text)
        metadata = yaml.safe_load(block.group(2)) if block else {}
        if not isinstance(metadata, dict):
            raise ValueError("it must contain keys and values")
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{path}: the metadata of this model card cannot be read: {reason}; fix or remove it"
        ) from error
    return metadata


def replace_card(path: Path, text: str, metadata: Mapping[str, Any]) -> None:
    """Write a model card atomically, with another metadata block."""
    from huggingface_hub import metadata_save

    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    metadata_save(fresh, dict(metadata))
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
