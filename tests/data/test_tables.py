"""Rows as parquet files that load_dataset reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

import toa_trl.data.tables
from tests.helpers import play, rollout
from toa_trl.data.preference import preference_rows
from toa_trl.data.recipes import make_plan
from toa_trl.data.sft import sft_rows
from toa_trl.data.tables import (
    PREFERENCE,
    ROLLOUTS,
    SFT,
    as_dataset,
    is_table,
    rollout_rows,
    write_parquet,
)
from toa_trl.types import Action, Completion, Play

IT = rollout(
    *(play(i, i / 10 if i % 4 else None, f"text {i} \x00 🧮", parent=None) for i in range(11)),
    answer="ä",
)
TABLES: dict[str, Any] = {
    "rollouts": (ROLLOUTS, lambda: list(rollout_rows([IT]))),
    "sft": (SFT, lambda: list(sft_rows([IT], top_k=7)[0])),
    "dpo": (PREFERENCE, lambda: list(preference_rows([IT] * 7, policy="worst")[0])),
}


def load(folder: Path) -> Any:
    return load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache"))


@pytest.mark.parametrize("name", TABLES)
def test_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    schema, make = TABLES[name]
    rows = make()
    assert len(rows) >= 7
    assert write_parquet(rows, schema, tmp_path / name) == len(rows)
    assert [p.name for p in (tmp_path / name).iterdir()] == ["train-00000-of-00001.parquet"]
    assert load(tmp_path / name).to_list() == rows
    assert as_dataset(rows, schema).to_list() == rows
    assert load(tmp_path / name).features == as_dataset(rows, schema).features


@pytest.mark.parametrize("name", TABLES)
def test_no_rows_are_a_data_set_with_its_columns(name: str, tmp_path: Path) -> None:
    schema, _ = TABLES[name]
    assert write_parquet([], schema, tmp_path / name) == 0
    (path,) = (tmp_path / name).iterdir()
    assert pq.read_table(path).schema.names == schema.names
    with pytest.raises(ValueError, match="no data"):  # what datasets says of any file without rows
        load(tmp_path / name)
    assert as_dataset([], schema).column_names == schema.names


def test_rows_with_many_responses_are_written_in_small_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toa_trl.data.tables, "ROWS_PER_BATCH", 100)
    monkeypatch.setattr(toa_trl.data.tables, "ROWS_PER_FILE", 200)
    plan = make_plan(recipes=[{"builder": "groups"}])
    rows = list(plan.build([IT] * 7, (), None)["groups"].rows)
    assert write_parquet(iter(rows), plan.schema("groups"), tmp_path / "groups") == 7
    files = sorted((tmp_path / "groups").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [4, 3]
    assert pq.read_metadata(files[0]).num_row_groups == 2
    assert load(tmp_path / "groups").to_list() == rows


@pytest.mark.parametrize("name", TABLES)
def test_many_rows_are_several_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toa_trl.data.tables, "ROWS_PER_BATCH", 2)
    monkeypatch.setattr(toa_trl.data.tables, "ROWS_PER_FILE", 4)
    schema, make = TABLES[name]
    rows = make()
    write_parquet(iter(rows), schema, tmp_path / name)
    files = sorted((tmp_path / name).iterdir())
    count = -(-len(rows) // 4)
    assert [p.name for p in files] == [
        f"train-{i:05d}-of-{count:05d}.parquet" for i in range(count)
    ]
    assert all(pq.read_metadata(p).num_rows <= 4 for p in files)
    assert load(tmp_path / name).to_list() == rows


def test_a_folder_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    rows = TABLES["sft"][1]()
    write_parquet(rows, SFT, folder)

    def breaks() -> Any:
        yield rows[0]
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_parquet(breaks(), SFT, folder)
    assert load(folder).to_list() == rows
    write_parquet(rows[:1], SFT, folder)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["sft"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("http://10.0.0.7:8000/v1: answered 500: oops", "a server: answered 500: oops"),
        (
            "Cannot connect to host gpu-7:80 ssl:default",
            "Cannot connect to host a server ssl:default",
        ),
        (
            "failed ('10.0.0.7', 8000), ('::1', 8000, 0, 0)",
            "failed ('a server', 8000), ('a server', 8000, 0, 0)",
        ),
        ("of [fe80::1]:8000 or localhost.", "of a server or a server."),
        ("at https://user@gpu.lab/x, tcp://gpu:1.", "at a server, a server."),
        ('TimeoutError: 2 of {"code":500}; std::bad_alloc in 1.5 s', None),
    ],
)
def test_an_error_tells_what_and_not_where(error: str, said: str | None) -> None:
    (row,) = rollout_rows([rollout(Play(0, Action("a"), error=error))])
    assert row["error"] == (said or error)


def test_a_folder_with_a_file_of_another_program_is_no_table(tmp_path: Path) -> None:
    assert is_table(tmp_path / "sft") is False
    write_parquet([], SFT, tmp_path / "sft")
    assert is_table(tmp_path / "sft") is True
    foreign = tmp_path / "sft/train-00001-of-00002.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    assert is_table(tmp_path / "sft") is False
    foreign.rename(tmp_path / "sft/notes.txt")
    assert is_table(tmp_path / "sft") is False


def test_reasoning_stands_beside_its_response() -> None:
    done = Completion("text", "stop", 1, 2, 3.0, "hmm")
    thought = Play(0, Action("a"), done, 0.5)
    row, other = rollout_rows([rollout(thought, play(1, 0.5))])
    assert (row["response"], row["reasoning"], other["reasoning"]) == ("text", "hmm", None)
    assert ROLLOUTS.names.index("reasoning") == ROLLOUTS.names.index("response") + 1
    assert (
        "written_s" not in ROLLOUTS.names
    )  # a run that was killed exports what one in one piece does


def test_columns_that_json_does_not_have_are_null_and_stand_once_per_prompt() -> None:
    nan, inf = float("nan"), float("inf")
    first = rollout(play(0, 1.0), play(1, 2.0), play(2, None), a=nan, b=[1.5, {"c": -inf}], d="NaN")
    rows = list(rollout_rows([first, rollout(play(0, 1.0), id="q")]))
    assert [row["metadata"] for row in rows[1:]] == [None, None, "{}"]
    assert json.loads(rows[0]["metadata"], parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, {"c": None}],
        "d": "NaN",
    }
