"""The bundled models with a memory, so that recording a world costs a fraction.

A search asks for the same refinement of the same draft many times. `MemoAgent` samples what
`TransformersAgent` samples, token by token with the play's own seed, but remembers the distribution
of the next token behind every prefix that it has seen: a response that was given before costs no
forward pass, and a new one costs those behind the point where it differs. The FLOPs of a play are
counted as if nothing were remembered. `MemoReward` scores each response to a prompt once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from toa_trl.agents.base import Agent, chat_template
from toa_trl.models.batching import Batcher
from toa_trl.models.flops import known_flops
from toa_trl.models.loading import load_model, load_tokenizer
from toa_trl.rewards import RewardModel
from toa_trl.types import Completion, Flops, Message, Prompt, Sampling, Score, as_dicts


@dataclass(slots=True)
class Node:
    """A prefix."""

    cdf: np.ndarray | None = None  # of the next token, once it is known
    children: dict[int, Node] = field(default_factory=dict)


@dataclass(slots=True)
class Walk:
    """A response on its way."""

    prompt: list[int]
    node: Node
    rng: random.Random
    room: int  # tokens that may follow
    new: list[int] = field(default_factory=list)

    def step(self, eos: int) -> bool:
        """Draw the next token of a node whose distribution is known; return whether it ends."""
        assert self.node.cdf is not None
        at = int(np.searchsorted(self.node.cdf, self.rng.random() * self.node.cdf[-1], "right"))
        token = min(at, len(self.node.cdf) - 1)
        self.new.append(token)
        self.node = self.node.children.setdefault(token, Node())
        return token == eos or len(self.new) == self.room


class MemoAgent(Agent):
    """Sample a small Llama model, whose FLOPs are counted `times` times."""

    def __init__(self, name: str, model: str, times: float = 1.0) -> None:
        self.name, self._place, self._path = name, f"agent {name!r}", model
        self._times = times
        loaded = load_model(self._place, "AutoModelForCausalLM", model, dtype="auto", device="cpu")
        self._tokenizer = load_tokenizer(self._place, model)
        self._template = chat_template(self._place, self._tokenizer)
        self._flops = known_flops(loaded.config)
        self._llama = Llama(loaded)
        self._eos: int = self._tokenizer.eos_token_id
        self._roots: dict[tuple[int, ...], Node] = {}
        self._ids: dict[tuple[tuple[str, str], ...], list[int]] = {}
        self._queue: Batcher[Walk, None] = Batcher(
            self._run, length=lambda walk: len(walk.prompt) + len(walk.new), max_size=256
        )

    @property
    def identity(self) -> Any:
        """The weights."""
        return {"model": self._path}

    @property
    def compute(self) -> Flops | None:
        """See `Agent`."""
        return self._flops

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`; the temperature is that of the first call."""
        key = tuple((message.role, message.content) for message in messages)
        if key not in self._ids:
            asked = as_dicts(messages)
            self._ids[key] = self._template.render(asked, add_generation_prompt=True)
        prompt = self._ids[key]
        self._temperature = sampling.temperature
        root = self._roots.setdefault(tuple(prompt), Node())
        walk = Walk(prompt, root, random.Random(seed), sampling.max_tokens)
        while walk.node.cdf is not None:
            if walk.step(self._eos):
                break
        else:
            await self._queue.submit(walk)
        ended = walk.new[-1] == self._eos
        return Completion(
            text=self._tokenizer.decode(walk.new, skip_special_tokens=True),
            finish_reason="stop" if ended else "length",
            prompt_tokens=len(prompt),
            completion_tokens=len(walk.new),
            flops=self._times * self._flops(len(prompt) + len(walk.new)) if self._flops else None,
        )

    @torch.inference_mode()
    def _run(self, walks: list[Walk]) -> list[None]:
        running = list(walks)
        logits = self._llama.begin([walk.prompt + walk.new for walk in walks])
        while True:
            probabilities = torch.softmax(logits / self._temperature, dim=-1).double()
            cdfs = probabilities.cumsum(dim=-1).float().numpy()
            kept = []
            for row, walk in enumerate(running):
                if walk.node.cdf is None:
                    walk.node.cdf = cdfs[row].copy()
                if not walk.step(self._eos):
                    kept.append(row)
            if not kept:
                return [None] * len(walks)
            if len(kept) < len(running):
                self._llama.keep(kept)
                running = [running[row] for row in kept]
            logits = self._llama.step([walk.new[-1] for walk in running])


class Llama:
    """Forward passes of a batch, with the keys and values of earlier tokens."""

    def __init__(self, model: Any) -> None:
        config, self._embedding = model.config, model.model.embed_tokens.weight
        self._eps, self._size = config.rms_norm_eps, config.head_dim
        self._heads, self._kv = config.num_attention_heads, config.num_key_value_heads
        self._norm = model.model.norm.weight
        self._layers = [
            (
                layer.input_layernorm.weight,
                torch.cat([getattr(layer.self_attn, f"{c}_proj").weight for c in "qkv"]),
                layer.self_attn.o_proj.weight,
                layer.post_attention_layernorm.weight,
                torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]),
                layer.mlp.down_proj.weight,
            )
            for layer in model.model.layers
        ]
        theta = config.rope_parameters["rope_theta"]
        frequencies = theta ** -(torch.arange(0, self._size, 2) / self._size)
        angles = torch.arange(config.max_position_embeddings)[:, None] * frequencies
        self._cos, self._sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def begin(self, rows: list[list[int]], room: int = 64) -> torch.Tensor:
        """Start a batch; return the logits [B, V] of the next tokens."""
        width = max(map(len, rows))
        pads = torch.tensor([width - len(row) for row in rows])
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        shape = (len(rows), self._kv, width + room, self._size)
        self._cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in self._layers]
        self._used, self._pads = width, pads
        at = torch.arange(width)
        hidden = (at[None, :] < pads[:, None])[:, None, None, :] | (at[None, :] > at[:, None])
        mask = torch.zeros(hidden.shape).masked_fill(hidden, -1e9)
        positions = (at[None, :] - pads[:, None]).clamp_min(0)
        return self._forward(ids, positions, mask, 0)

    def step(self, tokens: list[int]) -> torch.Tensor:
        """Append a token to each row; return the logits [B, V] of the next ones."""
        start, self._used = self._used, self._used + 1
        hidden = (torch.arange(self._used)[None, :] < self._pads[:, None])[:, None, None, :]
        mask = torch.zeros(hidden.shape).masked_fill(hidden, -1e9)
        positions = start - self._pads[:, None]
        return self._forward(torch.tensor(tokens)[:, None], positions, mask, start)

    def keep(self, rows: list[int]) -> None:
        """Drop the other rows."""
        at = torch.tensor(rows)
        self._pads = self._pads[at]
        self._cache = [(keys[at], values[at]) for keys, values in self._cache]

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, start: int
    ) -> torch.Tensor:
        rows, width = ids.shape
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        end, sizes = start + width, [self._heads, self._kv, self._kv]
        x = self._embedding[ids]
        for layer, (keys, values) in zip(self._layers, self._cache, strict=True):
            norm, qkv, out, second_norm, gate_up, down = layer
            mixed = (self._rms(x, norm) @ qkv.T).view(rows, width, -1, self._size).transpose(1, 2)
            q, k, v = mixed.split(sizes, dim=1)
            keys[:, :, start:end] = k * cos + _rotated(k) * sin
            values[:, :, start:end] = v
            attended = scaled_dot_product_attention(
                q * cos + _rotated(q) * sin,
                keys[:, :, :end],
                values[:, :, :end],
                attn_mask=mask,
                enable_gqa=True,
            )
            x = x + attended.transpose(1, 2).reshape(rows, width, -1) @ out.T
            gate, up = (self._rms(x, second_norm) @ gate_up.T).chunk(2, dim=-1)
            x = x + (silu(gate) * up) @ down.T
        return self._rms(x[:, -1], self._norm) @ self._embedding.T

    def _rms(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self._eps) * weight


def _rotated(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


class MemoReward(RewardModel):
    """Score each response to a prompt once."""

    def __init__(self, model: RewardModel, identity: Any) -> None:
        self._model, self._identity = model, identity
        self._scores: dict[tuple[str, str], Score] = {}

    @property
    def identity(self) -> Any:
        """The entry of the model."""
        return self._identity

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        return [score.value for score in await self.score_details(prompt, responses)]

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        missing = [text for text in responses if (prompt.id, text) not in self._scores]
        if missing:
            scores = await self._model.score_details(prompt, missing)
            self._scores.update(
                ((prompt.id, text), score) for text, score in zip(missing, scores, strict=True)
            )
        return [self._scores[prompt.id, text] for text in responses]
