"""Cards (README.md): blocks between markers are generated and replaced; everything else stays.

    ---
    pretty_name: ...        generated keys are replaced, those added or edited by hand stay
    ---
    <!-- toa_trl metadata pretty_name=0a1b2c3d -->
    <!-- toa_trl begin card 4e5f6a7b: ... -->
    ...
    <!-- toa_trl end card -->
    text written by hand

The digests tell what was edited by hand from what was generated.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from toa_trl.errors import ConfigError
from toa_trl.utils.files import load_yaml, replace_text

BLOCK = re.compile(
    r"^<!-- toa_trl begin (\w+) (\w+)\b[^\n]*-->\n(.*?)^<!-- toa_trl end \1 -->$\n?",
    re.MULTILINE | re.DOTALL,
)
MARKER = re.compile(r"^<!-- toa_trl (?:begin|end) ", re.MULTILINE)
KEYS = re.compile(r"^<!-- toa_trl metadata (.*) -->\n?", re.MULTILINE)
# cards of version 0.1.0, which had no markers
UNMARKED = (
    "made by [toa_trl](https://arxiv.org/abs/2412.17061)",
    "lineage.json beside the weights contains the same for programs.",
)
HINT = "toa-trl replaces what stands between begin and end; write above or below"

logger = logging.getLogger(__name__)


def is_card(path: Path) -> bool:
    """Return whether a file is a card that this package wrote.

    Raises:
        ConfigError: its markers are incomplete, or its metadata cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    if not MARKER.search(text):
        return is_unmarked(text)
    if len(MARKER.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise ConfigError(
            f"{path}: a marker <!-- toa_trl begin ... --> or <!-- toa_trl end ... --> is missing; "
            "restore it, or move the card away"
        )
    read_metadata(path, text)
    return True


def is_unmarked(text: str) -> bool:
    """Return whether a text is a card of version 0.1.0, which has no markers."""
    return not MARKER.search(text) and any(phrase in text for phrase in UNMARKED)


def read_metadata(path: Path, text: str) -> dict[str, Any]:
    """Return the metadata block at the start of a card; empty without one.

    Raises:
        ConfigError: the block is not a YAML mapping.
    """
    try:
        metadata = load_yaml(_split(text)[0]) or {}
        if not isinstance(metadata, dict):
            raise ValueError("it must contain keys and values")
    except ValueError as error:
        raise ConfigError(
            f"{path}: the metadata of this card cannot be read: {error}; fix or remove it"
        ) from error
    return metadata


def new_card(
    path: Path, previous: str, metadata: Mapping[str, Any], blocks: Mapping[str, str]
) -> str:
    """Return a card with these generated keys and blocks, and all that was written by hand before.

    A copy of the previous card is kept beside it if something would be lost: it has no markers, its
    metadata cannot be read, or a block was edited inside.

    Args:
        path: path of the card.
        previous: the card so far; empty if there is none.
        metadata: all generated keys.
        blocks: all generated blocks by name, in Markdown, in their order.
    """
    edited = [name for name, digest, text in BLOCK.findall(previous) if digest_of(text) != digest]
    reusable = bool(BLOCK.search(previous)) and _is_readable(path, previous)
    if previous and (edited or not reusable):
        copy = next(
            copy
            for number in count(1)
            if not (copy := path.with_name(f"README.edited-{number}.md")).exists()
        )
        replace_text(copy, previous)
        logger.warning(
            "%s is written again; what stood there was edited and is kept in %s", path, copy.name
        )
    previous = previous if reusable else ""
    current, recorded = read_metadata(path, previous), _recorded(previous)
    by_hand = {key: v for key, v in current.items() if recorded.get(key) != digest_of(v)}
    removed = recorded.keys() - current.keys()
    kept = {key: by_hand.get(key, v) for key, v in metadata.items() if key not in removed}
    body = BLOCK.sub(lambda match: match[0] if match[1] in blocks else "", _split(previous)[1])
    text = _with_metadata(previous, {**kept, **by_hand}, _digests(metadata), body)
    return with_blocks(text, blocks)


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """Return a card in which these blocks are replaced, or follow the one before them."""
    at = len(text)
    for name, content in blocks.items():
        content = content.strip() + "\n"
        begin = f"<!-- toa_trl begin {name} {digest_of(content)}: {HINT} -->"
        block = f"{begin}\n{content}<!-- toa_trl end {name} -->\n"
        present = next((match for match in BLOCK.finditer(text) if match[1] == name), None)
        if present is None:
            before = text[:at].rstrip()
            start = f"{before}\n\n" if before else ""
            rest = text[at:].lstrip("\n")
            text, at = start + block + (f"\n{rest}" if rest else ""), len(start + block)
        else:
            text = text[: present.start()] + block + text[present.end() :]
            at = present.start() + len(block)
    return text


def with_keys(path: Path, text: str, metadata: Mapping[str, Any]) -> str:
    """Return a card with these keys of its metadata replaced; all others stay.

    Raises:
        ConfigError: the metadata cannot be read.
    """
    merged = {**read_metadata(path, text), **metadata}
    return _with_metadata(text, merged, _recorded(text) | _digests(metadata), _split(text)[1])


def replace_section(text: str, section: str) -> str:
    """Return Markdown in which one section is replaced; the rest is unchanged.

    Args:
        text: the Markdown.
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


def body_of(text: str) -> str:
    """Return a card without its metadata."""
    return _split(text)[1]


def _is_readable(path: Path, text: str) -> bool:
    try:
        read_metadata(path, text)
    except ConfigError:
        return False
    return True


def _split(text: str) -> tuple[str, str]:
    """Return the YAML of a card, and all that follows it."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    return (block.group(2), text[block.end() :]) if block else ("", text)


def _with_metadata(
    text: str, metadata: Mapping[str, Any], digests: Mapping[str, str], body: str
) -> str:
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

    before = _split(text)[0]
    if not before or yaml.safe_load(before) != metadata:  # otherwise comments stay too
        before = yaml_dump(dict(metadata), sort_keys=False).rstrip()
    keys = " ".join(f"{key}={digest}" for key, digest in digests.items())
    line = f"<!-- toa_trl metadata {keys} -->\n"
    body = KEYS.sub("", body, count=1).lstrip("\n")
    front = f"---\n{before}\n---\n" if metadata else ""
    return f"{front}{line}\n{body}" if keys else f"{front}{body}"


def _recorded(text: str) -> dict[str, str]:
    keys = KEYS.search(text)
    return dict(part.split("=") for part in keys[1].split()) if keys else {}


def with_body(text: str, metadata: Mapping[str, Any], body: str) -> str:
    """Return a card with other metadata and another body, and what is recorded of the metadata."""
    return _with_metadata(text, metadata, _recorded(text), body)


def _digests(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {key: digest_of(value) for key, value in metadata.items()}


def digest_of(value: Any) -> str:
    """Return 8 hexadecimal digits of a text or a value of the metadata."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
