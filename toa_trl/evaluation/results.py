"""results.json, to which evaluate.py and compare.py each add their part, and the tables on screen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from toa_trl.utils.files import replace_text


def update_results(path: Path, part: str, value: Any) -> None:
    """Replace one part of results.json and keep the others; two processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        results[part] = value
        replace_text(path, json.dumps(results, indent=2) + "\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; numbers with three significant digits, intervals in brackets, a dash for what is missing."""
    header = list(dict.fromkeys(column for row in rows for column in row))
    cells = [header, *([_cell(row.get(column)) for column in header] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(header))]
    lines = [
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) >= 1e4 else f"{value:.3f}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_cell, value)) + "]"
    return str(value)
