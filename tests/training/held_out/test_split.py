"""A held-out split: no prompt is in both parts, and a prompt stays in its part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import DatasetMixtureConfig, ScriptArguments, SFTConfig
from trl.scripts.utils import DatasetConfig

from toa_trl.errors import ConfigError
from toa_trl.training.data import load_training_data
from toa_trl.training.held_out.split import held_out_rows


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def held_out(rows: list[dict[str, Any]], size: float, seed: int = 0) -> list[bool]:
    return held_out_rows("x", Dataset.from_list(rows), size, seed)


QUESTIONS = [f"How many is {number} and {number}?" for number in range(40)]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=12, max_size=30),
    seed=st.integers(0, 3),
    size=st.sampled_from([0.5, 1, 2]),
)
def test_rows_that_share_a_prompt_or_an_id_are_in_one_part(
    rows: list[tuple[int, int]], seed: int, size: float
) -> None:
    made = [{"prompt": user(QUESTIONS[q]), "prompt_id": str(i)} for q, i in rows]
    try:
        flags = held_out(made, size, seed)
    except ConfigError:
        return
    for position in (0, 1):
        kept = {row[position] for row, flag in zip(rows, flags, strict=True) if not flag}
        assert not kept & {row[position] for row, flag in zip(rows, flags, strict=True) if flag}


@pytest.mark.parametrize(
    "row",
    [
        lambda text: {"prompt": text, "completion": "a"},
        lambda text: {"prompt": user(text), "completion": answer("a")},
        lambda text: {"messages": [{"role": "system", "content": "s"}, *user(text), *answer("a")]},
        lambda text: {"chosen": user(text) + answer("a"), "rejected": user(text) + answer("b")},
        lambda text: {"chosen": f"{text}\nA: 1", "rejected": f"{text}\nA: 2"},
        lambda text: {"text": text},
        lambda text: {"input_ids": list(text.lower().strip().encode())},
    ],
)
def test_every_format_is_divided_by_its_prompt(row: Any) -> None:
    rows = [row(text) for text in QUESTIONS]
    once = held_out(rows, 0.3)
    assert 0 < sum(once) < len(rows)
    assert held_out(rows + rows, 0.3) == once + once


@pytest.mark.parametrize("variant", ["{}  ", "{}!", " {}", "\u201c{}\u201d"])
def test_near_identical_prompts_with_other_ids_are_one_prompt(variant: str) -> None:
    rows = [{"prompt": text, "prompt_id": f"a{i}"} for i, text in enumerate(QUESTIONS)]
    for i, text in enumerate(QUESTIONS):
        rows.append({"prompt": variant.format(text.upper()), "prompt_id": f"b{i}"})
    flags = held_out(rows, 0.5)
    assert flags[:40] == flags[40:]


def test_a_draft_to_refine_is_in_the_part_of_its_prompt() -> None:
    rows = [{"prompt": text, "prompt_id": str(i)} for i, text in enumerate(QUESTIONS)]
    drafts = [{**row, "prompt": f"{row['prompt']} Improve: 7"} for row in rows]
    flags = held_out(rows + drafts, 0.4)
    assert flags[:40] == flags[40:] == held_out(rows, 0.4)


def test_a_prompt_stays_in_its_part_when_the_run_grows_and_changes_with_the_seed() -> None:
    rows = [{"prompt": text} for text in QUESTIONS]
    flags = held_out(rows, 0.4)
    assert held_out(rows[5:25][::-1], 0.4)[::-1] == flags[5:25]
    assert held_out(rows, 0.4, seed=1) != flags
    assert sum(held_out(rows, 7)) == 7


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (40, "40 of 40 prompts of x leaves none for training; give a number .* from 1 to 39"),
        (0.001, "0.001 of 40 prompts of x leaves none for the held-out part"),
    ],
)
def test_a_size_that_leaves_a_part_empty_is_refused(size: float, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^test_split_size: {message}"):
        held_out([{"prompt": text} for text in QUESTIONS], size)
    with pytest.raises(ConfigError, match=r"^test_split_size: x has one prompt only"):
        held_out([{"prompt": "a"}, {"prompt": "A"}], size)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"prompt": user(text), "completion": answer(str(i)), "prompt_id": str(n)}
        for n, text in enumerate(QUESTIONS)
        for i in range(2)
    ]
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return folder


def load(dataset: Path, size: float, *, mixed: bool = False, **script: Any) -> Any:
    training = SFTConfig(output_dir="x", eval_strategy="steps", use_cpu=True, bf16=False)
    part = DatasetConfig(path=str(dataset))
    mixture = DatasetMixtureConfig(datasets=[part] if mixed else [], test_split_size=size)
    name = None if mixed else str(dataset)
    arguments = ScriptArguments(dataset_name=name, **script)
    return load_training_data("sft", arguments, training, mixture)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_dataset_and_a_mixture_are_divided_alike(dataset: Path, mixed: bool) -> None:
    data = load(dataset, 0.25, mixed=mixed)
    train, test = ({row["prompt_id"] for row in part} for part in (data.train, data.test))
    assert not train & test
    assert len(train | test) == 40
    assert len(data.test) == 2 * len(test)
    assert test == {row["prompt_id"] for row in load(dataset, 0.25).test}
    assert "_held_out" not in data.train.column_names


@pytest.mark.parametrize("size", [0, -1, 2.5, float("nan"), float("inf")])
def test_a_size_that_is_none_is_refused(dataset: Path, size: float) -> None:
    with pytest.raises(ConfigError, match="test_split_size: must be a share of the prompts"):
        load(dataset, size)


def test_a_stream_is_not_divided(dataset: Path) -> None:
    with pytest.raises(ConfigError, match="test_split_size: a stream cannot be divided by prompt"):
        load(dataset, 0.25, dataset_streaming=True)
