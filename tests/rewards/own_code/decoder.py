"""A decoder written like model code of 2024, with everything that breaks under transformers 5.

Its rotary embedding is computed in the constructor and is in no checkpoint, any `rope_scaling` has
a type, and it uses removed methods of the cache.
"""

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel


class Rotary(nn.Module):
    inv_freq: torch.Tensor
    cos_cached: torch.Tensor
    sin_cached: torch.Tensor

    def __init__(self, dim, base, num_positions):
        super().__init__()
        self.register_buffer(
            "inv_freq", 1.0 / base ** (torch.arange(0, dim, 2).float() / dim), persistent=False
        )
        angles = torch.outer(torch.arange(num_positions).float(), self.inv_freq)
        self.register_buffer(
            "cos_cached", torch.cat((angles, angles), dim=-1).cos(), persistent=False
        )
        self.register_buffer(
            "sin_cached", torch.cat((angles, angles), dim=-1).sin(), persistent=False
        )

    def forward(self, x):  # [B, heads, T, dim]
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * self.cos_cached[: x.shape[2]] + turned * self.sin_cached[: x.shape[2]]


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.rope_scaling is not None and config.rope_scaling["type"] not in (
            "linear",
            "dynamic",
        ):
            raise ValueError("rotary embedding's type")
        self.num_heads = config.num_attention_heads
        hidden = config.hidden_size
        self.wqkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.wo = nn.Linear(hidden, hidden, bias=False)
        self.w1 = nn.Linear(hidden, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, hidden, bias=False)
        self.rotary_emb = Rotary(
            hidden // self.num_heads, config.rope_theta, config.max_position_embeddings
        )

    def forward(self, x, mask):  # [B, T, hidden], [B, 1, T, T]
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.wqkv(nn.functional.rms_norm(x, x.shape[-1:])).chunk(3, dim=-1)
        )
        seen = nn.functional.scaled_dot_product_attention(
            self.rotary_emb(query), self.rotary_emb(key), value, mask
        )
        x = x + self.wo(seen.transpose(1, 2).flatten(2))
        return x + self.w2(nn.functional.silu(self.w1(nn.functional.rms_norm(x, x.shape[-1:]))))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        num_tokens = input_ids.shape[1]
        if self.config.use_cache if use_cache is None else use_cache:
            DynamicCache().get_usable_length(num_tokens)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        causal = torch.ones(
            num_tokens, num_tokens, dtype=torch.bool, device=input_ids.device
        ).tril()
        mask = causal & attention_mask.bool()[:, None, None, :]
        x = self.tok_embeddings(input_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return nn.functional.rms_norm(x, x.shape[-1:])


class OldPreTrainedModel(PreTrainedModel):
    base_model_prefix = "model"

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(0.0, self.config.initializer_range)

    def get_input_embeddings(self):
        return self.model.tok_embeddings
