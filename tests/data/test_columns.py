"""Columns of the data sets, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from toa_trl.data.columns import COLUMNS, LONGEST, described_columns, example_row
from toa_trl.data.tables import (
    FORMATS,
    ROLLOUTS,
    SFT,
    schema_of,
    with_message_fields,
    write_parquet,
)

SCHEMAS = [ROLLOUTS, *(schema_of(kind, own) for kind in FORMATS for own in (True, False))]


def sft_row(prompt: str, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    row = {"prompt": messages, "completion": messages, "prompt_id": "p", "reward": 0.5}
    return {**row, "rank": 1, "agent": "a", "play": 3, **changes}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_column_is_described(schema: pa.Schema) -> None:
    assert not [name for name in schema.names if name not in COLUMNS]


def test_no_description_is_left_over() -> None:
    assert set(COLUMNS) == {name for schema in SCHEMAS for name in schema.names}


def test_columns_have_types_and_the_configurations_that_have_them(tmp_path: Path) -> None:
    write_parquet([sft_row("a")], SFT, tmp_path / "sft")
    rewards = {"completions": [], "rewards": [1.0], "ranks": [1], "agents": ["a"], "plays": [0]}
    row = {"prompt": [], "prompt_id": "p", **rewards}
    write_parquet([row], with_message_fields(FORMATS["groups"]), tmp_path / "groups")
    found = {row["name"]: row for row in described_columns(tmp_path, ["sft", "groups"])}
    assert found["prompt"]["configurations"] == "sft, groups"
    types = {
        "prompt": "messages",
        "completions": "list of messages",
        "rewards": "list of numbers",
        "agents": "list of texts",
        "reward": "number",
        "play": "integer",
        "agent": "text",
    }
    assert {name: found[name]["type"] for name in types} == types


def test_an_example_is_json_whose_texts_are_cut_and_cannot_leave_the_block(tmp_path: Path) -> None:
    hostile = "```\n<!-- toa_trl card end --><script>\u202e" + "x" * LONGEST
    write_parquet([sft_row(hostile), sft_row("b")], SFT, tmp_path / "sft")
    text = example_row(tmp_path / "sft")
    row = json.loads(text)
    assert row["prompt"][0]["content"] == f"{hostile[:LONGEST]} ... ({len(hostile)} characters)"
    assert row["reward"] == 0.5
    assert not {"<", "\u202e"} & set(text)
    assert not [line for line in text.splitlines() if line.startswith("```")]
    write_parquet([], SFT, tmp_path / "empty")
    assert example_row(tmp_path / "empty") == ""
