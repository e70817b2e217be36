"""Workarounds for single versions of libraries."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from toa_trl.utils.compat import (
    compute_buffers,
    ignore_boolean_buffers,
    ignore_own_default,
    loading_whole_models,
    peak_flops_of,
    undo_rope_parameters,
    unset_device_map,
)


@pytest.mark.parametrize(
    ("text", "is_shown"),
    [
        ("`gradient_checkpointing` is deprecated", False),
        ("`gradient_checkpointing_enable` is deprecated", False),
        ("`is_gradient_checkpointing` is deprecated", False),
        ("`another` is deprecated", True),
    ],
)
def test_warnings_of_no_use_to_a_user_are_hidden(text: str, is_shown: bool) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        ignore_own_default()
        warnings.warn(text, FutureWarning, stacklevel=1)
    assert bool(shown) is is_shown


def test_models_beside_a_zero3_training_are_loaded_whole(tmp_path: Path) -> None:
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    path = tmp_path / "zero3.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    configured = HfDeepSpeedConfig(str(path))  # held, because transformers has a weak reference
    try:
        assert is_deepspeed_zero3_enabled()
        with loading_whole_models():
            assert not is_deepspeed_zero3_enabled()
        with suppress(KeyError), loading_whole_models():
            raise KeyError
        assert is_deepspeed_zero3_enabled()
    finally:
        del configured
    assert not is_deepspeed_zero3_enabled()


def test_an_experimental_trainer_loads_a_quantized_model_on_no_device_map() -> None:
    from trl import ModelConfig

    training = SimpleNamespace(model_init_kwargs={"revision": "main", "device_map": "auto"})
    unset_device_map(training, ModelConfig("model"))
    expected = {"revision": "main", "device_map": None, "quantization_config": None}
    assert training.model_init_kwargs == expected


def test_only_boolean_buffers_are_kept_from_ddp() -> None:
    model = torch.nn.Module()
    model.inner = torch.nn.Module()
    model.inner.register_buffer("causal", torch.ones(2, dtype=torch.bool))
    model.register_buffer("scale", torch.ones(2))
    ignore_boolean_buffers(model)
    assert model._ddp_params_and_buffers_to_ignore == ["inner.causal"]


def test_the_peak_of_a_gpu_is_that_of_dense_bfloat16() -> None:
    from trl.trainer import utils

    if not hasattr(utils, "get_peak_flops"):
        assert peak_flops_of("NVIDIA H100 80GB HBM3") is None
        return
    assert peak_flops_of("NVIDIA H100 80GB HBM3") == pytest.approx(989e12, rel=0.01)
    assert peak_flops_of("no such GPU") is None


@pytest.mark.parametrize(
    ("scaling", "kept"),
    [
        (None, None),
        ({"rope_type": "default", "rope_theta": 1e4}, None),
        ({"rope_type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_only_a_scaling_that_scales_is_kept(scaling: object, kept: object) -> None:
    config = SimpleNamespace(rope_scaling=scaling)
    undo_rope_parameters(config)
    assert config.rope_scaling == kept


class Rotary(torch.nn.Module):
    """As older code of repositories computes it."""

    saved: torch.Tensor
    inv_freq: torch.Tensor

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(config.size))
        self.register_buffer("saved", torch.zeros(config.size))
        self.register_buffer("inv_freq", 1.0 / torch.arange(1, config.size + 1), persistent=False)


class Whole(torch.nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config, self.rotary = config, Rotary(config)


def test_buffers_that_no_checkpoint_holds_are_computed_again() -> None:
    model = Whole(SimpleNamespace(size=4))
    with torch.no_grad():
        model.rotary.weight.fill_(5.0)
        model.rotary.saved.fill_(5.0)
        model.rotary.inv_freq.fill_(torch.nan)
    compute_buffers(model)
    assert torch.equal(model.rotary.inv_freq, 1.0 / torch.arange(1, 5))
    assert set(model.rotary.weight.tolist() + model.rotary.saved.tolist()) == {5.0}
    assert model.state_dict().keys() == {"rotary.weight", "rotary.saved"}
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"  # torch is as it was
