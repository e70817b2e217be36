"""What was edited in a card on the Hub stays there when the card is pushed again.

A pushed card ends with a line of digests: of the metadata and of the paragraphs outside the
generated blocks, as this machine had them. What differs from them was edited on the Hub.

    <!-- toa_trl pushed license=0a1b2c3d 4e5f6a7b 8c9d0e1f -->
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from toa_trl.errors import ConfigError
from toa_trl.utils.cards import BLOCK, KEYS, body_of, digest_of, read_metadata, with_body
from toa_trl.utils.files import replace_text

PUSHED = re.compile(r"^<!-- toa_trl pushed (.*)-->\n?", re.MULTILINE)

logger = logging.getLogger(__name__)


def keep_edits(path: Path, repo_id: str, token: str | None = None) -> None:
    """Add what was edited by hand in the card of a model on the Hub to the card here.

    Args:
        path: the card here, which is about to be pushed.
        repo_id: name of the model on the Hub.
        token: by default HF_TOKEN, or that of `hf auth login`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        EntryNotFoundError,
        HfHubHTTPError,
        HTTPError,
        RepositoryNotFoundError,
    )

    there = None
    try:
        file = Path(hf_hub_download(repo_id, "README.md", token=token))
        there = file.read_text(encoding="utf-8", errors="replace")
    except (RepositoryNotFoundError, EntryNotFoundError):
        pass  # it is not there yet
    except (HfHubHTTPError, HTTPError, OSError) as error:
        logger.warning("the card of %s could not be read on the Hub: %s", repo_id, error)
        return
    replace_text(path, card_to_push(path.read_text(encoding="utf-8"), there))


def card_to_push(text: str, there: str | None) -> str:
    """Return a card with what was edited by hand in the card on the Hub since the last push.

    Generated blocks are replaced; a paragraph or key that was changed or removed on the Hub stays
    so; one that was changed or removed here since then is changed or removed there.

    Args:
        text: the card here.
        there: the card on the Hub; None if there is none.
    """
    text = PUSHED.sub("", text).rstrip() + "\n"
    metadata, here = read_metadata(Path("README.md"), text), _paragraphs(text)
    parts = [f"{key}={digest_of(value)}" for key, value in metadata.items()]
    parts += [digest_of(paragraph) for paragraph in here]
    if there is not None and BLOCK.search(there):  # else it was not pushed by this package
        text = _with_edits(text, there)
    return f"{text.rstrip()}\n\n<!-- toa_trl pushed {' '.join(parts)} -->\n"


def _with_edits(text: str, there: str) -> str:
    pushed, there = PUSHED.search(there), PUSHED.sub("", there)
    recorded = pushed[1].split() if pushed else []
    keys = dict(part.split("=", 1) for part in recorded if "=" in part)
    before = {part for part in recorded if "=" not in part}
    if not pushed:  # by an earlier version: the generated values are known, no paragraphs
        generated = KEYS.search(there)
        keys = dict(part.split("=") for part in generated[1].split()) if generated else {}
    for name, digest, block in BLOCK.findall(there):
        if digest_of(block) != digest:
            logger.warning(
                "README.md: the block %r was edited on the Hub and is written again; text outside "
                "the blocks stays",
                name,
            )
    metadata = read_metadata(Path("README.md"), text)
    try:
        theirs = read_metadata(Path("README.md"), there)
        edited = {key: v for key, v in theirs.items() if keys.get(key) != digest_of(v)}
        removed = keys.keys() - theirs.keys()
        metadata = {k: v for k, v in metadata.items() if k not in removed} | edited
    except ConfigError:  # it cannot be read, so nothing in it is kept
        pass
    return with_body(text, metadata, _merged_body(text, there, before))


def _merged_body(text: str, there: str, before: set[str]) -> str:
    here, theirs = _paragraphs(text), _paragraphs(there)
    known = {digest_of(paragraph) for paragraph in theirs}
    added = [p for p in theirs if digest_of(p) not in before and p not in here]
    dropped = {digest_of(p) for p in here} & before - known  # on the Hub
    if not added and not dropped:
        return body_of(text)
    if not added:
        return _filtered(body_of(text), dropped, {})
    gone = before - {digest_of(p) for p in here}  # dropped here
    blocks = {match[1]: match[0] for match in BLOCK.finditer(text)}
    body = _filtered(body_of(there), gone, blocks)
    missing = [block for block in blocks.values() if block.strip("\n") not in body]
    missing += [p for p in here if digest_of(p) not in before | known]
    return "\n\n".join([body.rstrip(), *missing]) + "\n"


def _filtered(body: str, dropped: set[str], blocks: dict[str, str]) -> str:
    """Return a body without some paragraphs, and with other blocks where some are given."""
    parts: list[str] = []
    at = 0
    for match in [*BLOCK.finditer(body), None]:
        outside = body[at : match.start() if match else len(body)]
        parts += [p for p in _split(outside) if digest_of(p) not in dropped]
        if match is not None:
            parts.append(blocks.get(match[1], "") if blocks else match[0])
            at = match.end()
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _paragraphs(text: str) -> list[str]:
    """Return what stands outside the generated blocks."""
    return _split(BLOCK.sub("\n\n", body_of(text)))


def _split(text: str) -> list[str]:
    parts = re.split(r"\n\s*\n", PUSHED.sub("", KEYS.sub("", text)))
    return [part.strip("\n") for part in parts if part.strip()]
