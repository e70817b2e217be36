"""Against the parameters of real architectures, counted on torch's meta device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf

from toa_trl.errors import ConfigError
from toa_trl.models.flops import flops_of

# real widths, few layers: the shares of the parts are those of real models
CONFIGS: dict[str, Any] = {
    "llama-3-8b": tf.LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=4,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "llama-3-1b, tied": tf.LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=4,
        num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    ),
    "qwen2-7b": tf.Qwen2Config(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=4,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
    "qwen3, wide heads": tf.Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "mistral-7b": tf.MistralConfig(
        vocab_size=32_000, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=4,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "gemma-7b": tf.GemmaConfig(
        vocab_size=256_000, hidden_size=3072, intermediate_size=24_576, num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=16, head_dim=256,
    ),
    "gemma2-2b": tf.Gemma2Config(
        vocab_size=256_000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4, head_dim=256,
    ),
    "mixtral-8x7b": tf.MixtralConfig(
        vocab_size=32_000, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=4,
        num_attention_heads=32,
        num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2,
    ),
    "qwen2-moe": tf.Qwen2MoeConfig(
        vocab_size=151_936, hidden_size=2048, intermediate_size=5632, moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632, num_hidden_layers=4, num_attention_heads=16,
        num_key_value_heads=16,
        num_experts=60, num_experts_per_tok=4,
    ),
    "qwen3-moe": tf.Qwen3MoeConfig(
        vocab_size=151_936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128,
        num_experts_per_tok=8,
    ),
}  # fmt: skip


def active_parameters(config: Any) -> int:
    """Of a model built without memory; of its experts only those that work on a token."""
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(config)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    total = 0
    for name, parameter in model.named_parameters():  # tied ones once
        routed = ".experts." in name
        total += (
            parameter.numel() * config.num_experts_per_tok // experts
            if routed
            else parameter.numel()
        )
    return total


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_the_active_parameters_of_real_architectures(name: str) -> None:
    config = CONFIGS[name]
    # biases, norms and routers are left out
    assert flops_of(config).num_parameters == pytest.approx(active_parameters(config), rel=0.002)


def test_the_text_part_of_a_composite_configuration_counts() -> None:
    text = CONFIGS["llama-3-8b"]

    class Composite:
        def get_text_config(self) -> Any:
            return text

    assert flops_of(Composite()) == flops_of(text)


def test_embeddings_count_twice_unless_they_are_tied() -> None:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    sizes = dict.fromkeys((*names, "intermediate_size"), 1)
    untied = flops_of(SimpleNamespace(**sizes))
    tied = flops_of(SimpleNamespace(**sizes, tie_word_embeddings=True))
    assert untied.num_parameters - tied.num_parameters == 1


def test_another_shape_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"FLOPs of a T5Config"):
        flops_of(tf.T5Config())
