"""Rows as datasets, and as parquet files that load_dataset and TRL's own scripts read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from toa_trl.types import Rollout, as_dicts
from toa_trl.utils.files import fresh_path, replace_path, without_nan
from toa_trl.utils.redaction import without_addresses

if TYPE_CHECKING:
    from datasets import Dataset

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
ROLLOUTS = pa.schema(
    {
        "prompt_id": pa.string(),
        "prompt": MESSAGES,
        "metadata": pa.string(),  # JSON, in the first row of each prompt
        "play": pa.int64(),
        "agent": pa.string(),
        "kind": pa.string(),
        "refs": pa.list_(pa.int64()),
        "parent": pa.int64(),
        "depth": pa.int64(),
        "response": pa.string(),
        "reasoning": pa.string(),
        "reward": pa.float64(),
        "second_reward": pa.float64(),  # of a held-out reward model
        "finish_reason": pa.string(),
        "prompt_tokens": pa.int64(),
        "completion_tokens": pa.int64(),
        "tokens_estimated": pa.bool_(),  # from the texts: neither a server nor a tokenizer counted
        "flops": pa.float64(),
        "reward_flops": pa.float64(),
        "seed": pa.int64(),
        "error": pa.string(),
    }
)
SFT = pa.schema(
    {
        "prompt": MESSAGES,
        "completion": MESSAGES,
        "prompt_id": pa.string(),
        "reward": pa.float64(),
        "rank": pa.int64(),
        "agent": pa.string(),
        "play": pa.int64(),
    }
)
PREFERENCE = pa.schema(
    {
        "prompt": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "prompt_id": pa.string(),
        "chosen_reward": pa.float64(),
        "rejected_reward": pa.float64(),
        "chosen_rank": pa.int64(),
        "rejected_rank": pa.int64(),
        "chosen_agent": pa.string(),
        "rejected_agent": pa.string(),
        "chosen_play": pa.int64(),
        "rejected_play": pa.int64(),
    }
)
KTO = pa.schema([*SFT, pa.field("label", pa.bool_())])
GROUPS = pa.schema(
    {
        "prompt": MESSAGES,
        "completions": pa.list_(MESSAGES),
        "rewards": pa.list_(pa.float64()),
        "ranks": pa.list_(pa.int64()),
        "agents": pa.list_(pa.string()),
        "plays": pa.list_(pa.int64()),
        "prompt_id": pa.string(),
    }
)
FORMATS = {"sft": SFT, "dpo": PREFERENCE, "kto": KTO, "groups": GROUPS}
"""Format of rows, also the folder of the data set -> columns."""
OF_RECIPES = [pa.field("recipe", pa.string())]
"""Further columns of rows that recipes made."""
OF_DRAFTS = [pa.field("draft_play", pa.int64())]
"""Of SFT rows that recipes made: the draft in the prompt, if there is one."""
MARKER = b"toa_trl"  # a key of the metadata of every file
FILE_NAME = re.compile(r"train(-\d{5,}-of-\d{5,})?\.parquet")
# columns by which files from before the marker are recognized
OLD_COLUMNS = (
    {"prompt_id", "play", "agent", "kind", "refs", "parent"},
    {"prompt", "completion", "prompt_id", "reward", "rank", "agent", "play"},
    {"prompt", "chosen", "rejected", "chosen_play", "rejected_play", "chosen_agent"},
)
ROWS_PER_FILE = 200_000
ROWS_PER_BATCH = 2_000
GROUP_SIZE = 50  # rows of groups, which have many responses each, count as this many


def rollout_rows(rollouts: Iterable[Rollout]) -> Iterator[dict[str, Any]]:
    """Yield one row per play, including failed plays.

    The further columns of a prompt are in its first row alone. NaN and infinities, which JSON does
    not have, are null there.
    """
    for rollout in rollouts:
        prompt = as_dicts(rollout.prompt.messages)
        columns = without_nan(dict(rollout.prompt.metadata))
        metadata = json.dumps(columns, ensure_ascii=False, allow_nan=False)
        for number, play in enumerate(rollout.plays):
            action, done = play.action, play.completion
            yield {
                "prompt_id": rollout.prompt.id,
                "prompt": prompt,
                "metadata": None if number else metadata,
                "play": play.index,
                "agent": action.agent,
                "kind": action.kind,
                "refs": list(action.refs),
                "parent": action.parent,
                "depth": action.depth,
                "response": done.text if done else None,
                "reasoning": done.reasoning if done else None,
                "reward": play.reward,
                "second_reward": play.second_reward,
                "finish_reason": done.finish_reason if done else None,
                "prompt_tokens": done.prompt_tokens if done else None,
                "completion_tokens": done.completion_tokens if done else None,
                "tokens_estimated": done.tokens_estimated if done else None,
                "flops": done.flops if done else None,
                "reward_flops": play.reward_flops,
                "seed": play.seed,
                # the journal keeps the original message
                "error": play.error and without_addresses(play.error),
            }


def schema_of(kind: str, of_recipes: bool) -> pa.Schema:
    """Return the columns of rows of a format, with those that only rows of recipes have."""
    further = [*(OF_DRAFTS if kind == "sft" else []), *OF_RECIPES] if of_recipes else []
    return pa.schema([*FORMATS[kind], *further])


def with_message_fields(schema: pa.Schema) -> pa.Schema:
    """Return a schema for prompts whose messages have more than a role and a content.

    Their column is a list of `datasets.Json`, so that a message has the keys that it was given and
    no others; a chat template takes a tool call that is null for a tool call.
    """
    from datasets import Features, Json, List

    features = Features.from_arrow_schema(schema)
    with_fields: pa.Schema = Features({**features, "prompt": List(Json())}).arrow_schema
    return with_fields


def as_dataset(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Dataset:
    """Return the rows as a `datasets.Dataset` in memory."""
    from datasets import Dataset

    return Dataset(pa.Table.from_batches(_batches(rows, schema), schema=schema))


def write_parquet(rows: Iterable[dict[str, Any]], schema: pa.Schema, folder: Path) -> int:
    """Write the rows as train-*.parquet, and replace the folder once all of them are written.

    Memory does not grow with the number of rows. See `is_table` for whether the folder may be
    replaced.

    Returns:
        The number of rows.
    """
    fresh, marked = fresh_path(folder), schema.with_metadata({MARKER: b"1"})
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    paths, num_rows, writer = list[Path](), 0, None
    try:
        for batch in _batches(rows, schema):
            if writer is None or num_rows // _rows_per(ROWS_PER_FILE, schema) >= len(paths):
                if writer is not None:
                    writer.close()
                paths.append(fresh / f"{len(paths):05d}.parquet")
                writer = pq.ParquetWriter(paths[-1], marked, compression="zstd")
            if batch.num_rows:  # datasets cannot read an empty row group
                writer.write_batch(batch)
            num_rows += batch.num_rows
    finally:
        if writer is not None:
            writer.close()
    for number, path in enumerate(paths):
        path.rename(fresh / f"train-{number:05d}-of-{len(paths):05d}.parquet")
    replace_path(fresh, folder)
    return num_rows


def is_table(folder: Path) -> bool:
    """Return whether a folder has nothing but files of `write_parquet`, with or without marker."""
    if not folder.is_dir():
        return False
    for path in folder.iterdir():
        if path.is_symlink() or not FILE_NAME.fullmatch(path.name) or not _is_ours(path):
            return False
    return True


def _is_ours(path: Path) -> bool:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid):
        return False
    metadata = schema.metadata or {}
    old = not metadata and any(columns <= set(schema.names) for columns in OLD_COLUMNS)
    return MARKER in metadata or old


def _batches(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows = iter(rows)
    chunk = list(islice(rows, _rows_per(ROWS_PER_BATCH, schema)))
    is_json = schema.field("prompt").type != MESSAGES
    as_text = pa.field("prompt", pa.list_(pa.string()))
    stored = schema.set(schema.get_field_index("prompt"), as_text) if is_json else schema
    while True:  # an empty data set still gives one batch, with its columns
        if is_json:
            chunk = [{**row, "prompt": [*map(_json, row["prompt"])]} for row in chunk]
        batch = pa.RecordBatch.from_pylist(chunk, schema=stored)
        yield batch.cast(schema) if is_json else batch
        chunk = list(islice(rows, _rows_per(ROWS_PER_BATCH, schema)))
        if not chunk:
            return


def _rows_per(number: int, schema: pa.Schema) -> int:
    return max(1, number // GROUP_SIZE) if "completions" in schema.names else number


def _json(message: dict[str, Any]) -> str:
    return json.dumps(without_nan(message), ensure_ascii=False, allow_nan=False)
