"""The tokens of a row, and which of them are learned, are those of TRL's own trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from tests.families import make_family, save_family_model
from toa_trl.training.padding import with_pad_token
from toa_trl.training.preflight.tokens import tokens_of
from toa_trl.training.reference_free import with_ends

USER = {"role": "user", "content": "2 + 3?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "It is 5."}
WORSE = {"role": "assistant", "content": "six"}
TURNS = [USER, WORSE, {"role": "user", "content": "no"}, ANSWER]
PAIR = {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}
WHOLE_PAIR = {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}
TEXT_PAIR = {"prompt": "2 + 3?", "chosen": " It is 5.", "rejected": " six"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that saves a tiny model of a family, once."""
    folder = tmp_path_factory.mktemp("models")

    def save(family: str, labels: int | None = None) -> Path:
        path = folder / f"{family}-{labels}"
        return path if path.exists() else save_family_model(
            path, make_family(family), labels=labels
        )  # fmt: skip

    return save


def make(method: str, path: Path, row: dict[str, Any], folder: Path, **options: Any) -> Any:
    """Make the trainer of a method, as the recipes do."""
    if method == "SimPO":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        kinds: Any = (with_ends(CPOTrainer), CPOConfig)
        options["model_init_kwargs"] = {"device_map": None}
    else:
        kinds = {
            "SFT": (SFTTrainer, SFTConfig),
            "DPO": (DPOTrainer, DPOConfig),
            "KTO": (KTOTrainer, KTOConfig),
            "reward modeling": (with_pad_token(RewardTrainer), RewardConfig),
        }[method]
    options |= {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none"}
    if method == "KTO":
        options["per_device_train_batch_size"] = 2
    args = kinds[1](**options)
    rows = Dataset.from_list([row] * 2)
    return kinds[0](model=str(path), args=args, train_dataset=rows)


def by_trl(row: dict[str, Any], column: str) -> tuple[list[int], list[bool]]:
    """Return ids and mask of a row that a trainer made."""
    if "labels" in row:
        return row["input_ids"], [label != -100 for label in row["labels"]]
    if f"{column}_labels" in row:
        return row[f"{column}_input_ids"], [label != -100 for label in row[f"{column}_labels"]]
    prompt, response = row.get("prompt_ids", []), row[f"{column}_ids"]
    return prompt + response, [False] * len(prompt) + [True] * len(response)


@pytest.mark.parametrize(
    ("family", "method", "row", "options"),
    [
        ("llama3", "SFT", {"prompt": [SYSTEM, USER], "completion": [ANSWER]}, {}),
        ("qwen2.5", "SFT", {"prompt": [USER], "completion": [ANSWER]}, {}),
        (
            "mistral",
            "SFT",
            {"prompt": [USER], "completion": [ANSWER]},
            {"completion_only_loss": False},
        ),
        ("qwen2.5", "SFT", {"messages": TURNS}, {}),
        ("qwen2.5", "SFT", {"messages": TURNS}, {"assistant_only_loss": True}),
        ("llama3", "SFT", {"text": "2 + 3 = 5"}, {}),
        ("gemma", "SFT", {"prompt": "2 + 3?", "completion": " It is 5."}, {}),
        ("llama3", "DPO", PAIR, {}),
        ("qwen2.5", "DPO", WHOLE_PAIR, {}),
        ("mistral", "DPO", TEXT_PAIR, {}),
        ("gemma", "KTO", PAIR, {}),
        ("qwen2.5", "SimPO", PAIR, {}),
        ("llama3", "reward modeling", PAIR, {}),
        ("qwen2.5", "reward modeling", TEXT_PAIR, {}),
    ],
)
def test_the_tokens_are_those_of_trl(
    family: str,
    method: str,
    row: dict[str, Any],
    options: dict[str, Any],
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    labels = 1 if method == "reward modeling" else None
    trainer = make(method, model(family, labels), row, tmp_path, **options)
    found = tokens_of(row, make_family(family), trainer.args, method)
    made = trainer.train_dataset
    for number, part in enumerate(found):
        if method == "KTO":
            column, trl_row = "completion", made[number * 2]
        else:
            column, trl_row = part.column, made[0]
        ids, learned = by_trl(trl_row, column)
        assert part.ids == ids
        if method == "reward modeling":  # the score is read there
            assert part.learned == [False] * (len(ids) - 1) + [True]
        else:
            assert part.learned == learned
    assert not any(part.lost for part in found)
