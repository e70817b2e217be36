"""The size of a decoder from its configuration, for the FLOPs by which methods are compared."""

import logging
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.types import Flops

logger = logging.getLogger(__name__)

# names of the number of experts in configurations
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def known_flops(config: Any) -> Flops | None:
    """Return `flops_of`, or None for a model of another shape.

    It can be used, only its compute is not counted.
    """
    try:
        return flops_of(config)
    except ConfigError as error:
        logger.warning("%s", error)
        return None


def flops_of(config: Any) -> Flops:
    """Return the compute of a Llama-shaped decoder from its transformers configuration.

    Raises:
        ConfigError: the configuration has no such shape.
    """
    num_parameters = num_parameters_of(config, active=True)
    text = _text_config(config)
    return Flops(num_parameters, text.num_hidden_layers, text.hidden_size)


def num_parameters_of(config: Any, *, active: bool) -> int:
    """Count the parameters of a Llama-shaped decoder from its transformers configuration.

    Args:
        config: of the model.
        active: of a mixture of experts, count those that one token passes through.

    Raises:
        ConfigError: the configuration has no such shape.
    """
    text = _text_config(config)
    try:
        hidden, intermediate = text.hidden_size, text.intermediate_size
        layers, heads = text.num_hidden_layers, text.num_attention_heads
        vocabulary = text.vocab_size
    except AttributeError as error:
        raise ConfigError(f"FLOPs of a {type(config).__name__} are not known: {error}") from error
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)  # query, key, value, output
    experts = getattr(text, "num_experts_per_tok", None) or 1
    if not active:
        experts = max(experts, *(getattr(text, name, None) or 1 for name in EXPERTS))
    shared = getattr(text, "shared_expert_intermediate_size", None) or 0
    if experts > 1:
        intermediate = experts * (getattr(text, "moe_intermediate_size", None) or intermediate)
    mlp = 3 * hidden * (intermediate + shared)  # gate, up, down
    embeddings = vocabulary * hidden * (1 if getattr(text, "tie_word_embeddings", False) else 2)
    return int(layers * (attention + mlp) + embeddings)


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
