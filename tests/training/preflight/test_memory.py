"""Whether a training fits is known before the weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trl import DPOConfig, GRPOConfig, KTOConfig, ModelConfig, SFTConfig

from toa_trl.training.estimate.sizes import Sharding
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


QLORA: dict[str, Any] = {"load_in_4bit": True, "use_peft": True}
QLORA |= {"lora_target_modules": ["all-linear"], "per_device_train_batch_size": 2}


def found(tmp_path: Path, sharding: Sharding, gpu_memory: float | None, **options: Any) -> Any:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    given = {"dtype": "bfloat16", **options}
    names = ("dtype", "use_peft", "lora_r", "load_in_4bit", "lora_target_modules")
    model = {key: given.pop(key) for key in names if key in given}
    method = given.pop("method", "SFT")
    config = {"DPO": DPOConfig, "KTO": KTOConfig}.get(method, SFTConfig)
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
            "and 36 GiB are available; any of these makes it fit: --per_device_train_batch_size 1",
        ),
        (Sharding("zero3", 8), 80, {"method": "KTO"}, "fine", "GiB on each of 8 GPUs, ZeRO-3"),
        (Sharding(), 24, QLORA, "fine", "GiB on 1 GPU, where a row fills max_length, of 24 GiB"),
        (Sharding(), 20, {**QLORA, "load_in_4bit": False}, "warning", "and 20 GiB are available"),
        (Sharding("zero3", 8), 24, QLORA, "fine", "no estimate of a quantized model with ZeRO-3"),
        (Sharding(), 80, {"load_in_4bit": True}, "fine", "load_in_4bit: a quantized model is"),
        (Sharding(), 80, {"method": "Nash"}, "fine", "there is no estimate for Nash"),
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


def test_reinforcement_learning_counts_vllm_and_the_reward(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    options = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.35, "use_cpu": True}
    options |= {"max_completion_length": 2048, "gradient_accumulation_steps": 4}
    training = GRPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=2, **options)
    training.vllm_mode = "colocate"
    lora: dict[str, Any] = {"use_peft": True, "lora_target_modules": ["all-linear"]}
    model = ModelConfig(str(tmp_path), dtype="bfloat16", **lora)
    reward = 2.0 * 8e9
    fits = memory_finding("GRPO", training, model, Sharding(), 80, reward_bytes=reward)
    assert fits.level == "fine"
    assert "with prompts of 512 tokens" in str(fits)
    tight = str(memory_finding("GRPO", training, model, Sharding(), 36))
    assert "and 36 GiB are available; any of these makes it fit" in tight
    assert "--max_completion_length 512" in tight
    assert "--max_length" not in tight
    training.vllm_mode = "server"
    assert memory_finding("GRPO", training, model, Sharding(), 32).level == "fine"


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
