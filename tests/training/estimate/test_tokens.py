"""Tokens, padding, steps and FLOPs from the lengths of sequences."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toa_trl.training.estimate.tokens import lengths, num_steps, padded_tokens, training_flops

rows = st.lists(st.lists(st.integers(1, 500), min_size=2, max_size=2), min_size=1, max_size=40)


@given(rows, st.integers(1, 9))
def test_padding_only_adds(pairs: list[list[int]], batch_size: int) -> None:
    tokens = sum(map(sum, pairs))
    longest = max(map(max, pairs))
    assert tokens <= padded_tokens(pairs, batch_size) <= longest * 2 * len(pairs)
    assert padded_tokens([[longest]] * 7, batch_size) == 7 * longest
    assert padded_tokens(pairs, len(pairs)) == longest * 2 * len(pairs)


def test_flops_are_six_per_parameter_and_token() -> None:
    assert (
        training_flops([[10], [30]], lambda tokens: 2 * 1000 * tokens, frozen=False)
        == 6 * 1000 * 40
    )
    assert training_flops([[10]], lambda tokens: 2 * 1000 * tokens, frozen=True) == 4 * 1000 * 10
    pair = training_flops(
        [[10, 10]], lambda tokens: 2 * 1000 * tokens, frozen=False, reference_passes=1
    )
    assert pair == 8 * 1000 * 20


def test_steps() -> None:
    assert num_steps(59_876, 128, 1.0) == 468
    assert num_steps(100, 32, 3.0) == 12
    assert num_steps(100, 32, 3.0, max_steps=5) == 5


def test_the_lengths_are_those_that_trl_makes(tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    student = Path(__file__).parents[3] / "toa_trl/demo/weights/student"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(student),
        AutoTokenizer.from_pretrained(student),
    )
    options = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "max_length": 256,
    }

    def said(content: str, role: str = "user") -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    pair = {
        "prompt": said("3 apples"),
        "chosen": said("3", "assistant"),
        "rejected": said("4 apples", "assistant"),
    }
    for row in (
        {"prompt": said("3 apples"), "completion": said("4 + 5", "assistant")},
        {"messages": said("3 apples") + said("4 + 5", "assistant")},
        {"text": "3 apples and 4"},
        {"prompt": "3 apples", "completion": " and 4"},
    ):
        data = Dataset.from_list([row])
        trainer = SFTTrainer(
            model, SFTConfig(**options), train_dataset=data, processing_class=tokenizer
        )
        assert lengths(row, tokenizer) == [len(trainer.train_dataset[0]["input_ids"])], row
    trainer = DPOTrainer(
        model, args=DPOConfig(**options), train_dataset=Dataset.from_list([pair]),
        processing_class=tokenizer
    )  # fmt: skip
    made = trainer.train_dataset[0]
    prompt = len(made["prompt_ids"])
    assert lengths(pair, tokenizer) == [
        prompt + len(made["chosen_ids"]),
        prompt + len(made["rejected_ids"]),
    ]


@pytest.mark.parametrize("row", [{"input_ids": [1, 2, 3]}])
def test_tokens_that_are_there_are_counted(row: dict[str, list[int]]) -> None:
    assert lengths(row, tokenizer=None) == [3]
