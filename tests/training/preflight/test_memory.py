"""Whether a training fits is known before the weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trl import DPOConfig, ModelConfig, SFTConfig

from toa_trl.training.estimate.memory import Sharding
from toa_trl.training.preflight.memory import memory_finding, running_sharding

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "tie_word_embeddings": False,
}


def found(tmp_path: Path, sharding: Sharding, gpu_memory: float | None, **options: Any) -> Any:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    given = {"dtype": "bfloat16", **options}
    names = ("dtype", "use_peft", "lora_r", "load_in_4bit")
    model = {key: given.pop(key) for key in names if key in given}
    method = given.pop("method", "SFT")
    config = DPOConfig if method == "DPO" else SFTConfig
    training = config(output_dir=str(tmp_path), use_cpu=True, max_length=4096, **given)
    named = ModelConfig(model_name_or_path=str(tmp_path), **model)
    return memory_finding(method, training, named, sharding, gpu_memory)


@pytest.mark.parametrize(
    ("sharding", "gpu_memory", "options", "level", "said"),
    [
        (Sharding("zero3", 8), 80, {}, "fine", "GiB on each of 8 GPUs, ZeRO-3"),
        (Sharding("zero3", 8), None, {}, "fine", "needs 3"),
        (
            Sharding(),
            80,
            {"dtype": "float32"},
            "error",
            "weights, gradients and optimizer alone need",
        ),
        (Sharding(), 80, {"dtype": "float32"}, "error", "--use_peft True"),
        (
            Sharding("zero3", 8),
            36,
            {"per_device_train_batch_size": 16},
            "warning",
            "and 36 GiB are there; any of these makes it fit: --per_device_train_batch_size 1",
        ),
        (Sharding(), 80, {"method": "KTO"}, "fine", "there is no estimate for KTO"),
        (Sharding(), 80, {"load_in_4bit": True}, "fine", "no estimate for a quantized model"),
    ],
)
def test_what_fits(
    sharding: Sharding,
    gpu_memory: float | None,
    options: dict[str, Any],
    level: str,
    said: str,
    tmp_path: Path,
) -> None:
    finding = found(tmp_path, sharding, gpu_memory, **options)
    assert (finding.level, True) == (level, said in str(finding)), finding


def test_what_accelerate_launch_tells_a_process() -> None:
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    offload = "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "false"}
    for environment, expected in (
        ({}, Sharding()),
        ({"WORLD_SIZE": "4"}, Sharding("ddp", 4)),
        ({"WORLD_SIZE": "8", **zero}, Sharding("zero3", 8)),
        ({"WORLD_SIZE": "8", **zero, offload: "cpu"}, Sharding("zero3", 8, True)),
        ({"WORLD_SIZE": "2", **fsdp}, Sharding("fsdp2", 2)),
    ):
        assert running_sharding(environment) == expected
