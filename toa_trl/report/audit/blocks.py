"""A run's rollouts in tables of whole prompts, so that no more than some prompts are in memory at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toa_trl.errors import ConfigError


def rollout_files(run_dir: Path) -> list[Path]:
    """The parquet files of a run's rollouts.

    Raises:
        ConfigError: there are none.
    """
    files = sorted((run_dir / "rollouts").glob("*.parquet"))
    if not files:
        raise ConfigError(
            f"{run_dir}: there is no rollouts/*.parquet to report on; is this a finished run's folder?"
        )
    return files


def whole_prompts(
    files: Sequence[Path], needed: Sequence[str], further: Sequence[str], batch_rows: int
) -> Iterator[pa.Table]:
    """Tables of whole prompts; a column of `further` that a file lacks is null.

    Args:
        files: in which the rows of a prompt stand together, over the end of a file if need be.
        needed: columns that every file has; prompt_id among them.
        further: columns that a file may have.
        batch_rows: rows read at once.

    Raises:
        ConfigError: a needed column is missing.
    """
    held: pa.Table | None = None
    for file in files:
        with pq.ParquetFile(file) as parquet:
            there = set(parquet.schema_arrow.names)
            if missing := [name for name in needed if name not in there]:
                raise ConfigError(
                    f"{file}: the column {missing[0]!r} is missing; these are not the rollouts of a run"
                )
            names = [name for name in (*needed, *further) if name in there]
            for batch in parquet.iter_batches(batch_size=batch_rows, columns=names):
                table = pa.Table.from_batches([batch])
                for name in further:
                    if name not in there:
                        table = table.append_column(name, pa.nulls(len(table)))
                held = (
                    table
                    if held is None
                    else pa.concat_tables([held, table], promote_options="permissive")
                )
                whole = pc.index(
                    held["prompt_id"], held["prompt_id"][-1]
                ).as_py()  # the last prompt may go on
                if whole:
                    yield held.slice(0, whole)
                    held = held.slice(whole)
    if held is not None and len(held):
        yield held


def columns_of(metadata: str | None) -> Mapping[str, Any]:
    """The further columns of a prompt; none where they are no JSON object."""
    try:
        columns = json.loads(metadata or "{}")
    except ValueError:
        return {}
    return columns if isinstance(columns, dict) else {}


def questions_of(columns: Mapping[str, Any], whole: str) -> tuple[str, ...]:
    """What is asked: of a translation the source, else the prompt; and what of it a task put words around.

    Args:
        columns: further columns of the prompt. A source alone may just say where a prompt is from.
        whole: the prompt.
    """
    source, problem = columns.get("source"), columns.get("problem")
    if "target_language" in columns and isinstance(source, str):
        return (source,)
    return (
        (whole, problem)
        if isinstance(problem, str) and problem != whole and problem in whole
        else (whole,)
    )
