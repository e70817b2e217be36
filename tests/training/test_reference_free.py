"""ORPO and SimPO: padding, the end of a response, and SimPO's own defaults."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from tests.families import make_family, save_family_model
from toa_trl.errors import ConfigError
from toa_trl.training.reference_free import set_simpo_defaults, with_ends


@pytest.fixture(autouse=True)
def expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL warns that its experimental part may change."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def trainer(method: str, model: Path, folder: Path) -> Any:
    if method == "simpo":
        from trl.experimental.cpo import CPOConfig as Config
        from trl.experimental.cpo import CPOTrainer as Trainer
    else:
        from trl.experimental.orpo import ORPOConfig as Config
        from trl.experimental.orpo import ORPOTrainer as Trainer
    answers = {"chosen": turns("assistant", "5"), "rejected": turns("assistant", "six")}
    rows = Dataset.from_list([{"prompt": turns("user", "2 + 3?"), **answers}] * 2)
    options = {"bf16": False, "report_to": "none", "max_steps": 1, "disable_tqdm": True}
    options |= {"output_dir": str(folder), "save_strategy": "no", "use_cpu": True}
    args = Config(**options, per_device_train_batch_size=2, model_init_kwargs={"device_map": None})
    return with_ends(Trainer)(model=str(model), args=args, train_dataset=rows)


@pytest.mark.parametrize("method", ["simpo", "orpo"])
@pytest.mark.parametrize("family", ["llama3", "qwen2.5"])
def test_a_response_ends_once_and_is_padded(family: str, method: str, tmp_path: Path) -> None:
    tokenizer = make_family(family)
    model = save_family_model(tmp_path / "model", tokenizer)
    made = trainer(method, model, tmp_path / "out")
    for name, text in {"chosen": "5", "rejected": "six"}.items():
        labels = [token for token in made.train_dataset[0][f"{name}_labels"] if token != -100]
        assert tokenizer.decode(labels) == text + tokenizer.eos_token
    made.train()  # the two responses differ in length, so one is padded


@pytest.mark.parametrize(
    ("given", "beta", "gamma"),
    [
        ({}, 2.5, 1.25),
        ({"beta": 10.0}, 10.0, 5.0),
        ({"beta": 10.0, "simpo_gamma": 3.0}, 10.0, 3.0),
        ({"simpo_gamma": 1.0}, 2.5, 1.0),
    ],
)
def test_simpo_has_its_own_defaults(given: dict[str, float], beta: float, gamma: float) -> None:
    training = SimpleNamespace(**{"beta": 0.1, "simpo_gamma": 0.5, "cpo_alpha": 1.0, **given})
    set_simpo_defaults(training, given.get)
    assert (training.loss_type, training.cpo_alpha) == ("simpo", 0.0)
    assert (training.beta, training.simpo_gamma) == (beta, gamma)


def test_simpo_is_one_loss() -> None:
    with pytest.raises(ConfigError, match="loss_type: method simpo"):
        set_simpo_defaults(SimpleNamespace(), {"loss_type": "hinge"}.get)
