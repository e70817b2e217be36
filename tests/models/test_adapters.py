"""Adapters that do not fit their base are found without loading weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from toa_trl.errors import ConfigError
from toa_trl.models.adapters import check_adapter

QUERY = "model.layers.0.self_attn.q_proj"


def save_adapter(
    folder: Path,
    base: Path,
    *,
    module: str = QUERY,
    shape: tuple[int, int] = (32, 32),
    rank: int = 4,
    **config: Any,
) -> Path:
    """Write an adapter of one matrix as peft does, and return its folder."""
    folder.mkdir(exist_ok=True)
    known = {"base_model_name_or_path": str(base), "peft_type": "LORA", "r": rank}
    (folder / "adapter_config.json").write_text(json.dumps({**known, **config}))
    side = f"base_model.model.{module}.lora_{{}}.weight"
    matrices = {
        side.format("A"): np.zeros((rank, shape[1]), np.float32),
        side.format("B"): np.zeros((shape[0], rank), np.float32),
    }
    save_file(matrices, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_that_fits_and_a_whole_model_pass(causal: Path, tmp_path: Path) -> None:
    check_adapter("model 'm'", str(save_adapter(tmp_path / "lora", causal)))
    check_adapter("model 'm'", str(causal))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (64, 64)}, rf"for a matrix {QUERY} of 64 x 64, the base has one of 32 x 32"),
        ({"module": "model.layers.9.self_attn.q_proj"}, "the base has no such module"),
    ],
)
def test_a_base_that_does_not_fit_is_named(
    change: dict[str, Any], message: str, causal: Path, tmp_path: Path
) -> None:
    lora = save_adapter(tmp_path / "lora", causal, **change)
    with pytest.raises(ConfigError, match=rf"model 'm': the adapter .* does not fit .*{message}"):
        check_adapter("model 'm'", str(lora))


def test_an_adapter_without_weights_or_with_damaged_ones_is_named(
    causal: Path, tmp_path: Path
) -> None:
    lora = save_adapter(tmp_path / "lora", causal)
    (lora / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match=r"adapter_model.safetensors' cannot be read"):
        check_adapter("model 'm'", str(lora))
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no weights \(adapter_model.safetensors\)"):
        check_adapter("model 'm'", str(lora))
    (lora / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        check_adapter("model 'm'", str(lora))
