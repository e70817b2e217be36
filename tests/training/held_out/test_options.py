"""Options of the evaluation during training: what is refused before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from trl import SFTConfig, TrlParser

from toa_trl.errors import ConfigError
from toa_trl.training.held_out.options import HeldOutArguments, check_options

STEPS = {"eval_strategy": "steps"}


@pytest.mark.parametrize(
    ("options", "training", "message"),
    [
        ({"held_out_samples": -1}, {}, "held_out_samples: "),
        ({"held_out_max_tokens": 0}, {}, "held_out_max_tokens: "),
        ({"held_out_temperature": -1.0}, {}, "held_out_temperature: "),
        ({"held_out_samples": 4}, {}, "held_out_samples: eval_strategy decides when"),
        (
            {},
            {**STEPS, "metric_for_best_model": "held_out_reward"},
            "metric_for_best_model: held_out_reward is measured on the responses of held_out_sam",
        ),
        (
            {"held_out_samples": 4},
            {**STEPS, "metric_for_best_model": "eval_held_out_rewards"},
            "metric_for_best_model: 'held_out_rewards' is not measured; there are held_out_reward",
        ),
        (
            {"early_stopping_patience": 2},
            STEPS,
            "early_stopping_patience: eval_strategy and metric_for_best_model are needed",
        ),
        ({"early_stopping_patience": 0}, STEPS, "early_stopping_patience: "),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], training: dict[str, Any], message: str
) -> None:
    config = SFTConfig(output_dir="x", use_cpu=True, bf16=False, **training)
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_options(HeldOutArguments(**options), config, "SFT")


def test_what_cannot_be_sampled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SFTConfig(output_dir="x", use_cpu=True, bf16=False, eval_strategy="epoch")
    options = HeldOutArguments(held_out_samples=4)
    check_options(options, config, "DPO")
    with pytest.raises(ConfigError, match="a reward model writes no responses"):
        check_options(options, config, "reward modeling")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="a model that FSDP shards cannot be sampled"):
        check_options(options, config, "SFT")


def test_an_entry_may_be_a_text_on_the_command_line() -> None:
    parser = TrlParser((HeldOutArguments,))
    (options,) = parser.parse_args_and_config(["--held_out_reward", "{kind: length}"])
    assert options.held_out_reward == "{kind: length}"
