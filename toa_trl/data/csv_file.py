"""Reading CSV files without guessing what a text means: "007", "1e5" and "NaN" stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
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
    columns = {str(name): table[name].tolist() for name in table.columns}
    for number, row in enumerate(typed_rows(columns, texts)):
        yield f"{path}, row {number}", row


def typed_rows(
    columns: Mapping[str, Sequence[str]], texts: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV file, given as the texts of its columns; see `read_csv`."""
    read = [
        _read(values, [] if name in texts else [int, float, _truth_value])
        for name, values in columns.items()
    ]
    for values in zip(*read, strict=True):
        yield dict(zip(columns, values, strict=True))


def options_of_texts(name: str, config: str | None, **options: Any) -> dict[str, Any] | None:
    """Return the options with which `datasets` reads all columns of its CSV files as texts.

    Args:
        name: folder or Hub data set, or "csv".
        config: its configuration.
        options: options of `load_dataset`.

    Returns:
        None where there are no CSV files, or they are not reachable and were loaded before.
    """
    import pandas
    from datasets import Features, Value, load_dataset_builder
    from datasets.packaged_modules.csv.csv import CsvConfig

    settings = load_dataset_builder(name, config, **options).config
    files = list(chain.from_iterable((settings.data_files or {}).values()))
    if not isinstance(settings, CsvConfig) or not files:
        return None
    kept = {**settings.pd_read_csv_kwargs, "na_filter": False, "nrows": 0, "chunksize": None}
    header = pandas.read_csv(files[0], dtype=str, **kept).columns
    return {
        "features": Features({str(name): Value("string") for name in header}),
        "na_filter": False,
    }


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
