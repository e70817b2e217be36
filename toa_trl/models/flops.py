"""Forward FLOPs of a decoder from its configuration, so that methods are compared at equal compute.

FLOPs per token = 2 * parameters (of a mixture of experts, the active ones) + 2 * layers * context *
hidden for the attention, as in the paper's accounting; a call with T tokens in all costs T times
that, at a context of T.
"""

import logging
from dataclasses import dataclass
from typing import Any, Self

from toa_trl.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flops:
    """The compute of one model."""

    num_parameters: int  # active per token, input embeddings included
    num_layers: int
    hidden_size: int

    def __call__(self, num_tokens: int, context: int | None = None) -> float:
        """Return the FLOPs of a forward pass.

        Args:
            num_tokens: prompt and completion together.
            context: tokens that each token attends to; by default `num_tokens`.
        """
        context = num_tokens if context is None else context
        return num_tokens * (
            2.0 * self.num_parameters + 2.0 * self.num_layers * context * self.hidden_size
        )

    @classmethod
    def if_known(cls, config: Any) -> Self | None:
        """`from_config`, or None for a model of another shape.

        It can be used, only its compute is not counted.
        """
        try:
            return cls.from_config(config)
        except ConfigError as error:
            logger.warning("%s", error)
            return None

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """Count the parameters of a Llama-shaped decoder from its transformers configuration.

        Raises:
            ConfigError: the configuration has no such shape.
        """
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        try:
            hidden, layers, heads = (
                text.hidden_size,
                text.num_hidden_layers,
                text.num_attention_heads,
            )
            vocabulary, intermediate = text.vocab_size, text.intermediate_size
        except AttributeError as error:
            raise ConfigError(
                f"FLOPs of a {type(config).__name__} are not known: {error}"
            ) from error
        head_dim = getattr(text, "head_dim", None) or hidden // heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)  # query, key, value, output
        experts = getattr(text, "num_experts_per_tok", None) or 1
        shared = getattr(text, "shared_expert_intermediate_size", None) or 0
        expert_size = getattr(text, "moe_intermediate_size", None) or intermediate
        mlp = (
            3 * hidden * ((expert_size if experts > 1 else intermediate) * experts + shared)
        )  # gate, up, down
        embeddings = vocabulary * hidden * (1 if getattr(text, "tie_word_embeddings", False) else 2)
        return cls(layers * (attention + mlp) + embeddings, layers, hidden)
