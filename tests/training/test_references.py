"""Reference log-probs that TRL keeps are those of the weights that are trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset

from toa_trl.training.data import TrainingData
from toa_trl.training.references import digest_of_weights, tie_references

STUDENT = Path(__file__).parents[2] / "toa_trl/demo/weights/student"


@pytest.mark.filterwarnings("ignore:The `'keep_end'`:FutureWarning")
def test_a_student_trained_again_into_its_folder_gets_new_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import dpo_trainer

    # under ZeRO-3 the parameters are empty when they are hashed
    monkeypatch.setattr(dpo_trainer, "hash_module", lambda module: "empty")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    model = tmp_path / "sft"
    shutil.copytree(STUDENT, model)
    row = {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_text(json.dumps(row) + "\n")

    def references(**changes: Any) -> float:
        options = {"bf16": False, "report_to": "none", "output_dir": str(tmp_path / "out")}
        training = DPOConfig(**options, use_cpu=True, precompute_ref_log_probs=True, **changes)
        rows = load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))["train"]
        tie_references(TrainingData(rows, None), training, str(model))
        trainer = DPOTrainer(model=str(model), args=training, train_dataset=rows)
        found: float = trainer.train_dataset[0]["ref_chosen_logps"]
        return found

    first = references()
    assert references() == first
    tensors = load_file(model / "model.safetensors")
    again = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in tensors.items()}
    save_file(again, model / "model.safetensors", metadata={"format": "pt"})
    second = references()
    assert second != pytest.approx(first)
    # only the end of the sequence is left, without its prompt
    short = references(max_length=2, truncation_mode="keep_end")
    assert references(max_length=3, truncation_mode="keep_end") != pytest.approx(short)


def test_the_digest_follows_the_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = digest_of_weights(str(tmp_path))
    (tmp_path / "README.md").write_text("a card")
    assert digest_of_weights(str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert digest_of_weights(str(tmp_path)) != first
