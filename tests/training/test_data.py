"""Training data: which folder is read, which rows and columns stay, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from toa_trl.errors import ConfigError
from toa_trl.training.data import FORMATS, data_folder, usable_rows

PAIR = {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}


def usable(kind: str, *rows: dict[str, Any]) -> Any:
    return usable_rows("x", {"train": Dataset.from_list([*rows])}, "train", FORMATS[kind])


@pytest.mark.parametrize("file", ["journal.sqlite", "lineage.json"])
def test_of_a_run_the_folder_of_the_kind_is_read(tmp_path: Path, file: str) -> None:
    (tmp_path / "sft").mkdir()
    assert data_folder(str(tmp_path), "sft") == str(tmp_path)
    (tmp_path / file).touch()
    assert data_folder(str(tmp_path), "sft") == str(tmp_path / "sft")
    assert data_folder(str(tmp_path), "dpo") == str(tmp_path)


def test_pairs_of_equal_responses_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    kept = usable("dpo", PAIR, {**PAIR, "rejected": "5"})
    assert kept.to_list() == [PAIR]
    assert "x: dropped 1 of 2 rows: chosen equals rejected" in caplog.text
    with pytest.raises(ConfigError, match="in every row of 'train' chosen equals rejected"):
        usable("dpo", {**PAIR, "rejected": "5"})


def test_pairs_of_a_stream_are_filtered_without_counting() -> None:
    rows = IterableDataset.from_generator(lambda: iter([PAIR, {**PAIR, "rejected": "5"}]))
    rows = rows.cast(Dataset.from_list([PAIR]).features)
    kept = usable_rows("x", {"train": rows}, "train", FORMATS["dpo"])
    assert list(kept) == [PAIR]


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("sft", {"question": "a"}, "the columns prompt and completion, or messages.*: question"),
        ("dpo", {"chosen": "5"}, "the columns chosen and rejected are needed"),
        ("dpo", {**PAIR, "chosen": 5}, "in the first row prompt is a text, chosen is 5"),
        (
            "sft",
            {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]},
            "completion is a list of messages",
        ),
    ],
)
def test_another_format_is_refused(kind: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        usable(kind, row)


def test_a_missing_split_and_one_without_rows_are_refused() -> None:
    splits = {"train": Dataset.from_list([PAIR]), "empty": Dataset.from_list([PAIR]).select([])}
    with pytest.raises(ConfigError, match="there is no split 'test', only train, empty"):
        usable_rows("x", splits, "test", FORMATS["dpo"])
    with pytest.raises(ConfigError, match="the split 'empty' has no rows"):
        usable_rows("x", splits, "empty", FORMATS["dpo"])
