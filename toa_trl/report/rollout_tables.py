"""Reading a run's rollouts in tables of whole prompts, so that memory stays flat."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from toa_trl.errors import ConfigError

Floats = NDArray[np.float64]
BATCH_ROWS = 4_096  # responses may be long


def rollout_files(run_dir: Path) -> list[Path]:
    """Return the parquet files of a run's rollouts.

    Raises:
        ConfigError: there are none.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: not a folder; name the folder of a run")
    files = sorted((run_dir / "rollouts").glob("*.parquet"))
    if not files:
        raise ConfigError(
            f"{run_dir}: no rollouts/*.parquet; name the folder of a run, or write the files with "
            "`toa-trl data`"
        )
    return files


def read_batches(files: Iterable[Path], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield batches of the columns that a file has; files without the first one are skipped."""
    for file in files:
        with pq.ParquetFile(file) as parquet:
            names = [name for name in parquet.schema_arrow.names if name in columns]
            if columns[0] in names:
                yield from parquet.iter_batches(batch_size=BATCH_ROWS, columns=names)


def check_columns(files: Sequence[Path], needed: Sequence[str]) -> None:
    """Raise ConfigError if a file lacks one of the columns."""
    for file in files:
        names = pq.read_schema(file).names
        for name in needed:
            if name not in names:
                raise ConfigError(
                    f"{file}: the column {name!r} is missing; not the rollouts of a run"
                )


def whole_prompts(
    files: Sequence[Path], needed: Sequence[str], further: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield tables of whole prompts.

    Args:
        files: files in which the rows of a prompt are consecutive, also across files.
        needed: required columns, the first of them prompt_id.
        further: optional columns; null if a file lacks them.

    Raises:
        ConfigError: a required column is missing, or the rows of a prompt are not consecutive.
    """
    check_columns(files, needed)
    seen: set[Any] = set()
    held: pa.Table | None = None
    for batch in read_batches(files, [*needed, *further]):
        table = pa.Table.from_batches([batch])
        for name in further:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table)))
        if held is not None:
            table = pa.concat_tables([held, table], promote_options="permissive")
        held = table
        # the last prompt may continue in the next batch
        whole = pc.index(held["prompt_id"], held["prompt_id"][-1]).as_py()
        if whole:
            yield _new_prompts(held.slice(0, whole), seen)
            held = held.slice(whole)
    if held is not None and len(held):
        yield _new_prompts(held, seen)


def _new_prompts(table: pa.Table, seen: set[Any]) -> pa.Table:
    """Return the table, after adding its prompts to those seen before it."""
    ids = table["prompt_id"].to_pylist()
    for start, _ in prompt_spans(ids):
        if ids[start] in seen:
            raise ConfigError(
                f"rollouts: the rows of prompt {ids[start]!r} are not consecutive; sort by "
                "prompt_id"
            )
        seen.add(ids[start])
    return table


def prompt_spans(prompt_ids: Sequence[Any] | NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Yield the start and end of the consecutive rows of each prompt."""
    ids = np.asarray(prompt_ids, dtype=object)
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]).tolist()
    yield from zip(starts, [*starts[1:], len(ids)], strict=True)


def named_agents(configuration: Mapping[str, Any]) -> list[str]:
    """Return the names of a run's agents, whose order decides their colours."""
    entries = configuration.get("agents")
    listed = entries if isinstance(entries, list) else []
    names = [entry.get("name") for entry in listed if isinstance(entry, Mapping)]
    return [name for name in names if isinstance(name, str)]


def floats(column: pa.Array | pa.ChunkedArray) -> Floats:
    """Return a column as floats; nan for null, nan and infinite values."""
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(values), values, np.nan)


def half_width(values: Floats) -> float:
    """Return the half width of the normal 95 % interval of a mean; 0 for a single value."""
    return 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0


def messages_of(prompt: Any) -> list[dict[str, Any]]:
    """Return the messages of a row; they are JSON where they have more than role and content."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [json.loads(entry) if isinstance(entry, str) else entry for entry in prompt or ()]


def columns_of(metadata: str | None) -> Mapping[str, Any]:
    """Return the further columns of a prompt; empty if they are not a JSON object."""
    try:
        columns = json.loads(metadata or "{}")
    except ValueError:
        return {}
    return columns if isinstance(columns, dict) else {}


def questions_of(columns: Mapping[str, Any], whole: str) -> tuple[str, ...]:
    """Return the texts that a prompt asks about.

    Of a translation that is the source, otherwise the prompt, and the problem that it contains.

    Args:
        columns: further columns of the prompt. A column "source" without a target language may
            name the origin of a prompt.
        whole: the prompt.
    """
    source, problem = columns.get("source"), columns.get("problem")
    if "target_language" in columns and isinstance(source, str):
        return (source,)
    if isinstance(problem, str) and problem != whole and problem in whole:
        return (whole, problem)
    return (whole,)
