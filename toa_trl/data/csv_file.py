"""Reading CSV files without guessing what a text means: "007", "1e5" and "NaN" stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError


def read_csv(path: Path, texts: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of every row of a CSV file, which may end in .gz; an empty field is None.

    Args:
        path: the file.
        texts: columns whose values are texts. Another column has numbers or truth values if each of
            its values is written as Python writes it; else texts, too.

    Raises:
        ConfigError: the file cannot be read.
    """
    import pandas

    compression: Any = "gzip" if path.suffix.lower() == ".gz" else None
    try:
        table = pandas.read_csv(
            path, dtype=str, na_filter=False, encoding="utf-8-sig", compression=compression
        )
    except (OSError, EOFError, ValueError) as error:  # pandas' errors are ValueErrors
        reason = " ".join(str(error).split())
        raise ConfigError(f"prompts: cannot read {path}: {reason}") from error
    if not isinstance(table.index, pandas.RangeIndex):
        raise ConfigError(f"prompts: {path}: rows have more values than the header has columns")
    names = [str(name) for name in table.columns]
    columns = [
        _read(table[name].tolist(), [] if name in texts else [int, float, _truth_value])
        for name in names
    ]
    for number, values in enumerate(zip(*columns, strict=True)):
        yield f"{path}, row {number}", dict(zip(names, values, strict=True))


def _read(values: Sequence[str], kinds: Sequence[Callable[[str], Any]]) -> list[Any]:
    """Return the values of the first kind that writes all of them as they are."""
    for kind in kinds:
        try:
            read = [kind(value) if value else None for value in values]
        except ValueError:
            continue
        pairs = zip(read, values, strict=True)
        if all(new is None or (math.isfinite(new) and str(new) == old) for new, old in pairs):
            return read
    return [value or None for value in values]


def _truth_value(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"
