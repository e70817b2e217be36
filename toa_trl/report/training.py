"""The data sets that a run wrote for TRL: chosen and rejected responses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toa_trl.report.rollout_tables import Floats, floats, read_batches


@dataclass
class Column:
    """One side of a data set: a number per row, nan if unknown."""

    reward: Floats = field(default_factory=lambda: np.zeros(0))
    chars: Floats = field(default_factory=lambda: np.zeros(0))  # of the response
    tokens: Floats = field(default_factory=lambda: np.zeros(0))  # of the response
    rank: Floats = field(default_factory=lambda: np.zeros(0))
    agents: Counter[str] = field(default_factory=Counter)
    plays: list[tuple[Any, Any]] = field(default_factory=list)  # (prompt_id, play) of each row

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.chars)


def read_pairs(run_dir: Path, rollouts: Sequence[Path] = ()) -> tuple[Column, Column]:
    """Read chosen and rejected of dpo/, if any; the plays' tokens come from `rollouts`."""
    chosen, rejected = (_read(run_dir / "dpo", side, f"{side}_") for side in ("chosen", "rejected"))
    if len(chosen):
        _add_tokens((chosen, rejected), rollouts)
    return chosen, rejected


def read_sft(run_dir: Path) -> Column:
    """Read the completions of sft/, if any."""
    return _read(run_dir / "sft", "completion", "")


def _read(folder: Path, text: str, prefix: str) -> Column:
    parts: dict[str, list[Floats]] = {name: [] for name in ("reward", "chars", "rank")}
    column = Column()
    names = [text, "prompt_id", *(prefix + name for name in ("reward", "rank", "agent", "play"))]
    for batch in read_batches(sorted(folder.glob("*.parquet")), names):
        parts["chars"].append(_num_chars(batch[text]))
        parts["reward"].append(_numbers(batch, prefix + "reward"))
        parts["rank"].append(_numbers(batch, prefix + "rank"))
        column.agents.update(filter(None, _values(batch, prefix + "agent")))
        plays = _values(batch, prefix + "play")
        column.plays += zip(_values(batch, "prompt_id"), plays, strict=True)
    for name, values in parts.items():
        setattr(column, name, np.concatenate(values) if values else np.zeros(0))
    column.tokens = np.full(len(column), np.nan)
    return column


def _add_tokens(columns: Sequence[Column], rollouts: Sequence[Path]) -> None:
    rows_of: dict[tuple[Any, Any], list[tuple[Column, int]]] = {}
    for column in columns:
        for row, play in enumerate(column.plays):
            rows_of.setdefault(play, []).append((column, row))
    names = ["prompt_id", "play", "completion_tokens"]
    for batch in read_batches(rollouts, names):
        values = (_values(batch, name) for name in names)
        for prompt_id, play, tokens in zip(*values, strict=True):
            for column, row in rows_of.get((prompt_id, play), ()):
                column.tokens[row] = np.nan if tokens is None else tokens


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    return list(batch[name].to_pylist()) if name in batch.schema.names else [None] * len(batch)


def _numbers(batch: pa.RecordBatch, name: str) -> Floats:
    if name not in batch.schema.names:
        return np.full(len(batch), np.nan)
    return floats(batch[name])


def _num_chars(texts: Any) -> Floats:
    """Return the characters of each row: of a text, or of all messages of a list."""
    if not pa.types.is_list(texts.type) and not pa.types.is_large_list(texts.type):
        return np.asarray(pc.fill_null(pc.utf8_length(texts), 0), dtype=np.float64)
    lengths = pc.utf8_length(pc.struct_field(pc.list_flatten(texts), "content"))
    weights = np.asarray(pc.fill_null(lengths, 0), dtype=np.float64)
    sums = np.bincount(np.asarray(pc.list_parent_indices(texts)), weights, minlength=len(texts))
    return sums.astype(np.float64)  # whole numbers where there is no row
