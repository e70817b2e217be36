"""What TRL's RewardTrainer saves is a reward model here, whole or as an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import wait
from tests.integration.conftest import ROOT
from toa_trl.rewards import make_reward
from toa_trl.types import Prompt

STUDENT = ROOT / "toa_trl/demo/weights/student"
TEXTS = ["5 + 3 = 8", "5 + 3 = 9", "I have 5 apples and 3 apples"]


@pytest.mark.parametrize("lora", [False, True])
def test_a_reward_model_trained_by_trl_scores_as_it_did_in_the_trainer(
    tmp_path: Path, lora: bool
) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    def turns(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": text}]

    rows = [{"chosen": turns("5 + 3 = 8"), "rejected": turns("5 + 3 = 9")}] * 8
    settings: dict[str, Any] = {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
    }
    arguments = RewardConfig(
        str(tmp_path), max_steps=3, learning_rate=1e-2, logging_steps=1, seed=0, **settings
    )
    peft = (
        LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"])
        if lora
        else None
    )
    trainer = RewardTrainer(
        str(STUDENT), args=arguments, train_dataset=Dataset.from_list(rows), peft_config=peft
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "reward"))
    assert (tmp_path / "reward" / "adapter_config.json").is_file() == lora

    expected = []
    for text in TEXTS:
        asked = trainer.processing_class.apply_chat_template(
            turns(text), return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            expected.append(float(trainer.model.eval()(**asked).logits[0, 0]))
    reward = make_reward({"kind": "classifier", "model": str(tmp_path / "reward"), "device": "cpu"})
    found = wait(reward.score(Prompt("p", "How many?"), TEXTS))  # type: ignore[arg-type]
    assert found == pytest.approx(expected, abs=1e-4)
    assert found[0] > found[1]
