"""results.json, to which evaluate and compare each add their part, and the tables on screen."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock
from tabulate import MIN_PADDING, tabulate

from toa_trl.utils.escape import for_terminal
from toa_trl.utils.files import read_object, write_json
from toa_trl.utils.targets import check_file, marked

MISSING = "–"
WIDTH = 100  # columns of a terminal
HEADS = {
    "oracle_accuracy": "oracle",
    "mean_best_reward": "best_reward",
    "mean_top10_reward": "top10_reward",
    "win_rate_matched_length": "matched_length",
}
# the first columns, if they are of these
LABELS = {"model", "name", "search", "round", "budget", "baseline", "baseline_budget"}
PARTS = {"student", "win_rates", "alpaca_eval", "lm_eval", "searches", "data_table", "rounds"}


def update_results(path: Path, part: str, value: Any) -> None:
    """Replace one part of results.json and keep the others; safe for concurrent processes."""
    check_results(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        results[part] = value
        write_json(path, marked(results))


def check_results(path: Path) -> None:
    """Check that results.json can be written, and that nothing else is under its name.

    Raises:
        ConfigError: see `toa_trl.utils.targets.check_file`.
    """
    check_file(path, "results", is_results)


def is_results(path: Path) -> bool:
    """Return whether a file is a results.json; before the marker, it had only known parts."""
    content = read_object(path)
    return bool(content) and ("toa_trl" in content or content.keys() <= PARTS)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table.

    Numbers have three digits after the point, intervals stand in brackets, and missing values are
    dashes.
    """
    cells = [{column: _cell(value) for column, value in row.items()} for row in rows]
    return tabulate(
        cells, headers="keys", tablefmt="github", missingval=MISSING, disable_numparse=True
    )


def terminal_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as Markdown tables that are at most `WIDTH` columns wide.

    An interval stands behind its value. Columns that do not fit are in further tables, which repeat
    the `LABELS`.
    """
    cells = [_with_intervals(row) for row in rows]
    columns = list(dict.fromkeys(chain.from_iterable(cells)))
    width = {}
    for column in columns:
        lengths = [len(row.get(column, MISSING)) for row in cells]
        width[column] = len(" | ") + max(len(column) + MIN_PADDING, *lengths)
    labels = columns[:1]
    for column in takewhile(LABELS.__contains__, columns[1:]):
        if sum(width[label] for label in [*labels, column]) > WIDTH // 2:
            break  # room for the values
        labels.append(column)
    tables, left = list[list[str]](), 0
    for column in columns[len(labels) :]:
        if width[column] > left:
            tables.append(labels)
            left = WIDTH - 1 - sum(width[label] for label in labels)
        tables[-1] = [*tables[-1], column]
        left -= width[column]
    shown = [markdown_table(of_columns(cells, table)) for table in tables]
    return "".join(f"{table}\n\n" for table in shown).removesuffix("\n")


def of_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return these columns of rows, with None where a row lacks one."""
    return [{column: row.get(column) for column in columns} for row in rows]


def _with_intervals(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of a row under their heads.

    An interval joins the column before it if it belongs to that.
    """
    cells: dict[str, str] = {}
    before = ""
    for key, value in row.items():
        stem = key.removesuffix("interval").removesuffix("_")
        if before and key != stem and before.startswith(stem):
            cells[before] += "" if value is None else f" {_cell(value)}"
        else:
            cells[key], before = _cell(value), key
    return {HEADS.get(key, key): cell for key, cell in cells.items()}


def _cell(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) >= 1e4 else f"{value:.3f}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_cell, value)) + "]"
    return for_terminal(str(value))
