"""Every row of a training is checked, and a row that cannot be used is named with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from toa_trl.errors import ConfigError
from toa_trl.training.data import FORMATS, UNPAIRED, usable_rows
from toa_trl.training.rows import fault_of


def says(text: Any, role: str = "assistant") -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


SFT = {"prompt": says("2 + 3?", "user"), "completion": says("5")}
DPO = {"prompt": says("2 + 3?", "user"), "chosen": says("5"), "rejected": says("6")}
LONE = says("5")
LINES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "missing": ("sft", SFT, {"completion": None}, "completion is null"),
    "empty list": ("sft", SFT, {"completion": []}, "completion is an empty list"),
    "content null": (
        "sft",
        SFT,
        {"completion": says(None)},
        "completion has a message of assistant whose content is null",
    ),
    "role null": (
        "sft",
        SFT,
        {"prompt": [{"role": None, "content": "a"}]},
        "prompt has a message whose role is null",
    ),
    "prompt missing": ("sft", SFT, {"prompt": None}, "prompt is null"),
    "blank": ("sft", SFT, {"completion": says(" \n")}, "completion is empty"),
    "chosen missing": ("dpo", DPO, {"chosen": None}, "chosen is null"),
    "rejected empty": ("dpo", DPO, {"rejected": []}, "rejected is an empty list"),
    "text missing": ("sft", {"text": "a"}, {"text": None}, "text is null"),
    "messages missing": ("sft", {"messages": LONE}, {"messages": None}, "messages is null"),
    "tokens missing": (
        "sft",
        {"input_ids": [1]},
        {"input_ids": []},
        "input_ids is an empty list",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_the_last_of_many_rows_is_checked(case: str) -> None:
    kind, row, change, fault = LINES[case]
    rows = Dataset.from_list([row] * 4999 + [{**row, **change}])
    with pytest.raises(ConfigError) as error:
        usable_rows("x", {"train": rows}, "train", FORMATS[kind])
    said = f"x: in row 5000 of 5000 {fault} (1 of 5000 rows cannot be used)"
    assert str(error.value) == said


def test_several_rows_are_counted() -> None:
    rows = Dataset.from_list([SFT, {**SFT, "completion": None}, SFT, {**SFT, "completion": []}])
    with pytest.raises(ConfigError, match=r"row 2 of 4 .*null \(2 of 4 rows .* used: 2, 4\)"):
        usable_rows("x", {"train": rows}, "train", FORMATS["sft"])


def test_a_row_of_a_stream_is_checked_when_it_is_read() -> None:
    stream = IterableDataset.from_generator(lambda: iter([SFT, {**SFT, "completion": None}]))
    stream = stream.cast(Dataset.from_list([SFT]).features)
    rows = usable_rows("x", {"train": stream}, "train", FORMATS["sft"])
    assert rows.column_names == ["prompt", "completion"]
    with pytest.raises(ConfigError, match="x: in row 2 completion is null"):
        list(rows)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": '[{"role": "user", "content": "a"}]'}, "messages is a JSON text of messages"),
        ({"messages": "a"}, "messages is a text; a list of messages is needed"),
        ({"prompt": '[{"role": "user"}]', "completion": "a"}, "prompt is a JSON text of messages"),
        ({"text": '[{"a": 1}]'}, None),
        ({"conversations": [{"from": "human", "value": None}]}, "a message of human whose value"),
        ({"conversations": [{"from": "human", "value": "a"}]}, None),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, None),
        ({"messages": says([{"type": "text", "text": "a"}])}, None),
        ({"messages": says([])}, "whose content is []"),
        ({"prompt": "", "completion": "a"}, None),
        ({"chosen": "a", "rejected": ""}, None),
        ({"chosen": "", "rejected": "a"}, "chosen is empty"),
        ({"prompt": "a", "completion": "", "label": False}, None),
        ({"prompt": "a", "completion": "b", "label": None}, "label is null"),
        ({"prompt": "a", "completion": "b", "label": "yes"}, "label is 'yes'"),
        ({"prompt": "a", "completion": LONE}, "prompt is a text, completion is a list of messages"),
    ],
)
def test_what_can_be_trained_on(row: dict[str, Any], fault: str | None) -> None:
    found = fault_of(row, [*row])
    assert (found is None) if fault is None else fault in (found or "")


def test_a_label_is_checked() -> None:
    row = {"prompt": "a", "completion": "b", "label": True}
    rows = Dataset.from_list([row, {**row, "label": None}])
    with pytest.raises(ConfigError, match="row 2 of 2 label is null"):
        usable_rows("x", {"train": rows}, "train", [UNPAIRED])
