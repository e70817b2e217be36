"""Checks before a model is loaded: devices, adapter targets, checkpoints."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from toa_trl.errors import ConfigError
from toa_trl.training import checks
from toa_trl.training.checks import _check_devices, _checkpoint_of, _missing_targets, take_one_gpu

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate_proj"]


@pytest.mark.parametrize(
    ("targets", "missing"),
    [
        (["q_proj", "mlp.gate_proj"], []),
        (["proj", "w_pack"], ["proj", "w_pack"]),  # whole parts of names, as peft matches
        (r".*\.q_proj", []),
        ("q_proj", ["q_proj"]),  # a pattern must match the whole name
    ],
)
def test_targets_are_matched_as_peft_does(targets: str | list[str], missing: list[str]) -> None:
    assert _missing_targets(targets, NAMES) == missing


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "num_accelerators", lambda: 2)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    _check_devices(None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"which has 2 GPUs: .* --num_processes 2"):
        _check_devices("false")
    _check_devices("True")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    _check_devices(None)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "2,3"),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"LOCAL_RANK": "1"}, None),
    ],
)
def test_one_process_takes_one_gpu_and_never_another_than_it_is_given(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    take_one_gpu()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected


@pytest.mark.parametrize("recipe", ["sft", "dpo", "reward", "preference"])
def test_a_recipe_takes_one_gpu_before_it_imports_trl(
    monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is restored
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setattr(sys, "argv", ["recipe", "--method", "kto"])
    with pytest.raises((ImportError, ConfigError), match="import of trl halted"):
        importlib.import_module(f"toa_trl.recipes.{recipe}").main()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_checkpoint_is_named_or_the_newest(tmp_path: Path) -> None:
    def checkpoint(requested: object) -> str | None:
        training = SimpleNamespace(resume_from_checkpoint=requested, output_dir=str(tmp_path))
        return _checkpoint_of(training)

    assert [checkpoint(value) for value in (None, False, "False", True)] == [None] * 4
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = tmp_path / f"checkpoint-{step}/trainer_state.json"
        state.write_text(f'{{"global_step": {step}}}')
    assert checkpoint("true") == str(tmp_path / "checkpoint-10")
    assert checkpoint(tmp_path / "checkpoint-2") == str(tmp_path / "checkpoint-2")
    with pytest.raises(ConfigError, match=r"is not a checkpoint, as it has no trainer_state\.json"):
        checkpoint(tmp_path)
