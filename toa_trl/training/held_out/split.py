"""Divide a dataset into training and held-out rows, so that no prompt is in both parts."""

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import takewhile
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.training.rows import rows_of

OPTION = "test_split_size"
IGNORED = re.compile(r"[\s.,;:!?'\"‘’“”`]+")  # differences that make no other prompt


def check_size(size: float | None) -> None:
    """Check a share of the prompts in (0, 1), or a number of prompts.

    Raises:
        ConfigError: it is neither.
    """
    if size is None or 0 < size < 1 or (size >= 1 and float(size).is_integer()):
        return
    raise ConfigError(
        f"{OPTION}: must be a share of the prompts between 0 and 1, or a number of prompts, not "
        f"{size!r}"
    )


def held_out_rows(
    place: str, rows: Any, size: float, seed: int, text_column: str = "text"
) -> list[bool]:
    """Return for each row whether it is held out: all rows of a prompt are in the same part.

    Prompts are the same when their texts differ in case, spaces and punctuation only, or when rows
    have the same `prompt_id`, as a draft that is refined has that of its prompt. A share is drawn
    for each prompt by a hash of its text and the seed, so that a prompt stays in its part when the
    run grows; of a number of prompts those with the lowest hashes are held out.

    Args:
        place: what error messages begin with.
        rows: datasets.Dataset.
        size: share of the prompts in (0, 1), or their number.
        seed: another seed holds out other prompts.
        text_column: column of rows without a prompt.

    Raises:
        ConfigError: one of the parts would have no prompt.
    """
    draws = [draw(text, seed) for text in _prompt_of_each_row(rows, text_column)]
    prompts = sorted(set(draws))
    limit = size if size < 1 else math.inf
    if 1 <= size < len(prompts):
        limit = prompts[int(size)]
    flags = [draw < limit for draw in draws]
    if all(flags) or not any(flags):
        part = "training" if all(flags) else "the held-out part"
        raise ConfigError(
            f"{OPTION}: {size:g} of {len(prompts)} prompts of {place} leaves none for {part}; "
            f"give a number of prompts from 1 to {len(prompts) - 1}"
            if len(prompts) > 1
            else f"{OPTION}: {place} has one prompt only, which cannot be divided"
        )
    return flags


def draw(text: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the text and the seed alone."""
    digest = blake2b(f"{seed}\n{text}".encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)


def _prompt_of_each_row(rows: Any, text_column: str) -> list[str]:
    """Return the normalized prompt of each row; the shortest one of those that belong together."""
    from scipy.cluster.hierarchy import DisjointSet  # takes a second

    columns = [*PROMPT_COLUMNS, text_column, "prompt_id"]
    present = [name for name in dict.fromkeys(columns) if name in rows.column_names]
    texts: list[str] = []
    groups = DisjointSet()  # texts and ids of the same prompt
    for row in rows_of(rows, present):
        prompt = prompt_of(row)
        texts.append(normalized(row.get(text_column) if prompt is None else prompt))
        groups.add(("text", texts[-1]))
        if row.get("prompt_id") is not None:
            groups.add(("id", row["prompt_id"]))
            groups.merge(("text", texts[-1]), ("id", row["prompt_id"]))
    shortest: dict[Any, str] = {}
    for text in dict.fromkeys(texts):
        root = groups["text", text]
        shortest[root] = min(shortest.get(root, text), text, key=lambda one: (len(one), one))
    return [shortest[groups["text", text]] for text in texts]


PROMPT_COLUMNS = ("prompt", "messages", "conversations", "chosen", "rejected", "input_ids")


def prompt_of(row: Mapping[str, Any]) -> Any:
    """Return what a row asks, a text or messages; None where it cannot be told from the rest."""
    if row.get("prompt"):
        return row["prompt"]
    for name in ("messages", "conversations"):
        if row.get(name):
            return _before_response(row[name])
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen and rejected:
        both = zip(chosen, rejected, strict=False)
        same = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
        if not isinstance(chosen, str):
            return same
        text = "".join(same)
        return text[: text.rfind("\n") + 1] or text
    return row.get("input_ids")


def _before_response(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the messages before the last one of the assistant."""
    roles = [message.get("role", message.get("from")) for message in messages]
    last = max((at for at, role in enumerate(roles) if role in ("assistant", "gpt")), default=None)
    return list(messages[:last])


def normalized(prompt: Any) -> str:
    """Return the text of a prompt without case, spaces and punctuation, and without system text."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        parts = []
        for message in prompt:
            content = message.get("content", message.get("value"))
            if message.get("role", message.get("from")) != "system":
                parts.append(content if isinstance(content, str) else _as_text(content))
        text = " ".join(parts)
    else:
        text = prompt if isinstance(prompt, str) else _as_text(prompt)
    folded = unicodedata.normalize("NFKC", text).casefold()
    return IGNORED.sub(" ", folded).strip() or text


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
