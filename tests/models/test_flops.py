"""Against the parameters of real architectures, counted on torch's meta device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf

from toa_trl.errors import ConfigError
from toa_trl.models.flops import flops_of, num_parameters_of


def shape(
    kind: type,
    vocabulary: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    **more: Any,
) -> Any:
    """Real widths, few layers: the shares of the parts are those of real models."""
    return kind(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        **more,
    )


CONFIGS = {
    "llama-3-8b": shape(tf.LlamaConfig, 128_256, 4096, 14_336, 32, 8),
    "llama-3-1b, tied": shape(
        tf.LlamaConfig, 128_256, 2048, 8192, 32, 8, head_dim=64, tie_word_embeddings=True
    ),
    "qwen2-7b": shape(tf.Qwen2Config, 152_064, 3584, 18_944, 28, 4),
    "qwen3, wide heads": shape(
        tf.Qwen3Config, 151_936, 1024, 3072, 16, 8, head_dim=128, tie_word_embeddings=True
    ),
    "mistral-7b": shape(tf.MistralConfig, 32_000, 4096, 14_336, 32, 8),
    "gemma-7b": shape(tf.GemmaConfig, 256_000, 3072, 24_576, 16, 16, head_dim=256),
    "gemma2-2b": shape(tf.Gemma2Config, 256_000, 2304, 9216, 8, 4, head_dim=256),
    "mixtral-8x7b": shape(
        tf.MixtralConfig, 32_000, 4096, 14_336, 32, 8, num_local_experts=8, num_experts_per_tok=2
    ),
    "qwen2-moe": shape(
        tf.Qwen2MoeConfig, 151_936, 2048, 5632, 16, 16, num_experts=60, num_experts_per_tok=4,
        moe_intermediate_size=1408, shared_expert_intermediate_size=5632,
    ),
    "qwen3-moe": shape(
        tf.Qwen3MoeConfig, 151_936, 2048, 6144, 32, 4, num_experts=128, num_experts_per_tok=8,
        moe_intermediate_size=768, head_dim=128,
    ),
}  # fmt: skip


def parameters(config: Any, active: bool) -> int:
    """Of a model built without memory; if active, of its experts those that work on a token."""
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(config)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    total = 0
    for name, parameter in model.named_parameters():  # tied ones once
        is_shared = active and ".experts." in name
        share = config.num_experts_per_tok / experts if is_shared else 1
        total += round(share * parameter.numel())
    return total


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("active", [True, False])
def test_counts_the_parameters_of_real_architectures(name: str, active: bool) -> None:
    config = CONFIGS[name]
    counted = num_parameters_of(config, active=active)
    # biases, norms and routers are left out
    assert counted == pytest.approx(parameters(config, active), rel=0.002)
    is_mixture = hasattr(config, "num_experts_per_tok")
    assert (counted == flops_of(config).num_parameters) == (active or not is_mixture)


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
