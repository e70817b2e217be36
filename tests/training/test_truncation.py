"""What max_length cuts off is counted: responses without an end, pairs that became equal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from tests.families import make_family
from toa_trl.errors import ConfigError
from toa_trl.training.data import TrainingData
from toa_trl.training.run import count_rows
from toa_trl.training.truncation import Ends, cuts_of, ends_of, max_tokens_findings

EOS = 9
ROWS: dict[str, tuple[list[dict[str, list[int]]], dict[str, Any], int, int, list[int]]] = {
    # rows as TRL makes them, options, responses that are counted, cut ones, equal pairs
    "DPO": (
        [
            {"prompt_ids": [1], "chosen_ids": [2, EOS], "rejected_ids": [3, EOS]},
            {"prompt_ids": [1], "chosen_ids": [2, 2, 2, EOS], "rejected_ids": [3, EOS]},
            {"prompt_ids": [1], "chosen_ids": [2, 2, 2, EOS], "rejected_ids": [2, 2, 2, 3, EOS]},
            {"prompt_ids": [1], "chosen_ids": [2, EOS], "rejected_ids": [2, EOS]},
        ],
        {},
        *(4, 1, [2, 3]),
    ),
    "DPO that keeps the end": (
        [
            {"prompt_ids": [1], "chosen_ids": [2, 2, 2, 2, EOS], "rejected_ids": [3, EOS]},
            {"prompt_ids": [1], "chosen_ids": [5, 2, 2, 2, EOS], "rejected_ids": [2, 2, 2, EOS]},
        ],
        {"truncation_mode": "keep_end"},
        *(2, 0, [1]),
    ),
    "KTO": (
        [
            {"prompt_ids": [1], "completion_ids": [2, 2, 2, EOS]},
            {"prompt_ids": [1], "completion_ids": [2, 2, EOS]},
        ],
        {},
        *(2, 1, []),
    ),
    "rewards": (
        [
            {"chosen_ids": [1, 2, EOS], "rejected_ids": [1, 3, EOS]},
            {"chosen_ids": [1, 2, EOS], "rejected_ids": [1, 2, EOS]},
        ],
        {},
        *(2, 0, [1]),
    ),
    "SFT": (
        [{"input_ids": [1, 2, 2, EOS]}, {"input_ids": [1, 2, EOS, 8]}, {"input_ids": [1, 2, 2, 2]}],
        {},
        *(3, 1, []),
    ),
    "SFT, packed": (
        [
            {
                "input_ids": [1, EOS, 1, EOS],
                "seq_lengths": [2, 2],
                "labels": [-100, EOS, -100, EOS],
            },
            {"input_ids": [1, 2, 2, 2], "seq_lengths": [4], "labels": [-100, 2, 2, 2]},
            {"input_ids": [1, 1, 1, 1], "seq_lengths": [4], "labels": [-100] * 4},
        ],
        {"packing_strategy": "bfd"},
        *(3, 1, []),
    ),
    "SFT, split": (
        [{"input_ids": [1, 2, 2, 2], "seq_lengths": [4], "labels": [1, 2, 2, 2]}],
        {"packing_strategy": "bfd_split"},
        *(0, 0, []),
    ),
    "another layout": ([{"pixels": [1]}], {}, 0, 0, []),
}


@pytest.mark.parametrize("case", ROWS)
def test_cuts_are_counted(case: str) -> None:
    rows, options, num_responses, num_cut, equal = ROWS[case]
    args = SimpleNamespace(max_length=4, **options)
    # more than a batch, and rows that were selected
    many = Dataset.from_list(rows * 600).select(range(300 * len(rows)))
    cuts = cuts_of(many, args, Ends({EOS}, 2))
    assert (cuts.num_responses, cuts.num_cut) == (300 * num_responses, 300 * num_cut)
    assert cuts.equal == [start + at for start in range(0, len(many), len(rows)) for at in equal]
    assert cuts_of(many, SimpleNamespace(max_length=None), Ends({EOS})).num_cut == 0


def test_pairs_without_a_response_give_no_nan() -> None:
    whole = {"chosen_input_ids": [1, 2, EOS], "chosen_labels": [-100, 2, EOS]}
    whole |= {"rejected_input_ids": [1, 3, 3, 3], "rejected_labels": [-100, 3, 3, 3]}
    empty = {**whole, "chosen_input_ids": [1] * 4, "chosen_labels": [-100] * 4}
    equal = {**whole, "rejected_input_ids": [1, 2, EOS], "rejected_labels": [-100, 2, EOS]}
    rows = Dataset.from_list([whole, empty, equal])
    cuts = cuts_of(rows, SimpleNamespace(max_length=4), Ends({EOS}))
    assert (cuts.num_cut, cuts.empty, cuts.equal) == (1, [1], [2])


def trainer_of(rows: list[dict[str, Any]], max_length: int = 4) -> Any:
    return SimpleNamespace(
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None,
        is_world_process_zero=lambda: True,
        args=SimpleNamespace(max_length=max_length),
        processing_class=SimpleNamespace(eos_token_id=EOS),
    )


def test_pairs_that_became_equal_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    cut = {"prompt_ids": [1], "chosen_ids": [2, 2, 2, EOS], "rejected_ids": [2, 2, 2, 3, EOS]}
    whole = {"prompt_ids": [1], "chosen_ids": [2, EOS], "rejected_ids": [3, 3, 3, EOS]}
    trainer = trainer_of([cut, whole, cut])
    data = TrainingData(Dataset.from_list([{"text": "a"}] * 3), None)
    assert count_rows(trainer, data, "DPO") == 1
    assert trainer.train_dataset.to_list() == [whole]
    said = "2 of 3 rows teach nothing: chosen and rejected are the same tokens within max_length 4"
    assert said in caplog.text
    assert "1 of 2 responses are cut by max_length 4" in caplog.text
    with pytest.raises(
        ConfigError, match="no row is left: chosen and rejected are the same tokens"
    ):
        count_rows(trainer_of([cut] * 3), data, "DPO")


@pytest.mark.parametrize(
    ("family", "end"),
    [("llama3", "<|eot_id|>"), ("qwen2.5", "<|im_end|>"), ("gemma", "<end_of_turn>")],
)
def test_a_turn_of_a_family_ends_with_its_end(family: str, end: str) -> None:
    import numpy as np

    tokenizer = make_family(family)
    ends = ends_of(tokenizer)
    messages = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "It is 5."}]
    ids = np.array(tokenizer.apply_chat_template(messages, return_dict=False))
    last = int(np.flatnonzero(ids == tokenizer.convert_tokens_to_ids(end))[-1])
    assert ends.are_in(ids)
    assert ends.are_in(ids[: last + 1])
    assert not ends.are_in(ids[:last])


def test_a_run_that_sampled_more_than_is_trained_on() -> None:
    sources = [{"dataset": "one", "max_tokens": 2048}, {"dataset": "two", "max_tokens": 1024}]
    (finding,) = max_tokens_findings([*sources, {"dataset": "three"}], 1024)
    assert "one was sampled with max_tokens 2048, and max_length is 1024" in finding.what
    assert not [*max_tokens_findings(sources, None)]
