"""Responses of the models of an evaluation, side by side, page by page."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.utils.files import read_jsonl

FILE = "side_by_side.jsonl"
JUDGED = ("verifier", "judge")


def page(path: Path, words: str, differ: bool, after: int, limit: int) -> dict[str, Any]:
    """Return {models, baseline, prompts, next, total (that match)}.

    Args:
        path: folder of the evaluation.
        words: looked for in ids, messages and responses.
        differ: only prompts on which the verifier or the judge tells models apart.
        after: number of the row after which the page begins.
        limit: prompts per page.

    Raises:
        ConfigError: the file is damaged.
    """
    file = path / FILE
    state = file.stat()
    head, rows = _read(file, (state.st_mtime_ns, state.st_size))
    matching = [
        (number, row)
        for number, row in enumerate(rows, 1)
        if (not differ or _differs(row)) and _has(row, words.lower())
    ]
    shown = [(number, row) for number, row in matching if number > after][: limit + 1]
    more = len(shown) > limit
    return {
        "models": head["models"],
        "baseline": head.get("baseline", ""),
        "prompts": [row for _, row in shown[:limit]],
        "next": shown[limit - 1][0] if more else None,
        "total": len(matching),
    }


@lru_cache(maxsize=4)
def _read(file: Path, stamp: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the first line and the rows; `stamp` changes with the file."""
    lines = [row for _, row in read_jsonl(file)]
    is_sound = bool(lines) and all(isinstance(line, dict) for line in lines)
    if not is_sound or not isinstance(lines[0].get("models"), list):
        raise ConfigError(f"{file}: not responses of an evaluation; evaluate again")
    for number, row in enumerate(lines[1:], 2):
        if not {"id", "messages", "responses"} <= row.keys():
            raise ConfigError(f"{file}, line {number}: not a prompt with its responses")
    return lines[0], lines[1:]


def _differs(row: dict[str, Any]) -> bool:
    verdicts = [[response.get(key) for response in row["responses"]] for key in JUDGED]
    by_verifier = {verdict for verdict in verdicts[0] if verdict is not None}
    return len(by_verifier) > 1 or any(verdict not in (None, 0.5) for verdict in verdicts[1])


def _has(row: dict[str, Any], words: str) -> bool:
    texts = [row["id"], *(text for _, text in row["messages"])]
    texts += [response["text"] for response in row["responses"]]
    return not words or any(words in str(text).lower() for text in texts)
