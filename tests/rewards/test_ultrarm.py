"""UltraRM's interface, with a small random model of its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.helpers import wait
from tests.rewards import tiny
from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.types import Message, Prompt

TEXTS = ["", "x", "a longer answer: 1 + 1 = 2"]


@pytest.fixture(scope="module")
def ultrarm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("models") / "ultrarm"
    return folder, tiny.build("ultrarm", folder)


def make(folder: Path) -> RewardModel:
    return make_reward({"kind": "ultrarm", "model": str(folder), "device": "cpu"})


def test_the_score_is_read_at_the_last_token_of_the_cards_format(ultrarm: tuple[Path, Any]) -> None:
    folder, model = ultrarm
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "What is 1 + 1?"),
    )
    tokenizer, expected = AutoTokenizer.from_pretrained(folder), []
    for text in TEXTS:
        asked = "Human: Be brief.\n\nHi\n\nAssistant: Hello\n\nHuman: What is 1 + 1?"
        ids = tokenizer(f"{asked}\n\nAssistant: {text}", return_tensors="pt")["input_ids"]
        with torch.inference_mode():  # LlamaRewardModel of the model card
            hidden = model.model(ids).last_hidden_state
            expected.append(float(model.score(hidden)[0, -1, 0]))
    assert len({round(value, 3) for value in expected}) == len(TEXTS)
    scores = wait(make(folder).score_details(Prompt("p", turns), TEXTS))
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)
    assert all(score.flops for score in scores)


def test_other_models_and_roles_are_refused(ultrarm: tuple[Path, Any], tmp_path: Path) -> None:
    tiny.build("causal", tmp_path)
    with pytest.raises(ConfigError, match=r"reward 'ultrarm'.*has no weights for score"):
        make(tmp_path)
    messages = (Message("tool", "42"), Message("user", "Why?"))
    with pytest.raises(RewardError, match="no place for role 'tool'"):
        wait(make(ultrarm[0]).score(Prompt("p", messages), ["x"]))
