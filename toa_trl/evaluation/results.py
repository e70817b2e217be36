"""results.json, to which evaluate and compare each add their part, and the tables on screen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from tabulate import tabulate

from toa_trl.utils.files import replace_text

MISSING = "–"


def update_results(path: Path, part: str, value: Any) -> None:
    """Replace one part of results.json and keep the others; safe for concurrent processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        results[part] = value
        replace_text(path, json.dumps(results, indent=2) + "\n")


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table.

    Numbers have three digits after the point, intervals stand in brackets, and missing values are
    dashes.
    """
    cells = [{column: _cell(value) for column, value in row.items()} for row in rows]
    return tabulate(
        cells, headers="keys", tablefmt="github", missingval=MISSING, disable_numparse=True
    )


def _cell(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) >= 1e4 else f"{value:.3f}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_cell, value)) + "]"
    return str(value)
