"""The likelihood of a response under a causal model: a generative reward that needs no training of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from toa_trl.batching import Batcher
from toa_trl.errors import ConfigError, RewardError
from toa_trl.flops import Flops
from toa_trl.hf import load_model, load_tokenizer
from toa_trl.rewards.base import check_scores
from toa_trl.types import Prompt, Score, as_dicts


@dataclass(frozen=True, slots=True)
class _Text:
    ids: list[int]  # prompt and response, with the template's end of the turn
    num_prompt: int

    def __len__(self) -> int:
        return len(self.ids)


class LikelihoodReward:
    """log p(response | prompt) in the model's chat template, <= 0.

    Args:
        model: folder or Hub name of a causal language model with a chat template.
        aggregate: over the tokens of the response, its end included: "mean" (length does not count) or "sum".
        floor: the least log-probability of one token, < 0: one surprising token shall not outweigh the rest.
        dtype: a torch dtype's name, or "auto".
        device: e.g. "cuda:1"; default: a GPU if there is one.
        max_batch_size: responses that are scored at once, over all prompts in flight.
        max_batch_tokens: of a batch at most, padding included; a longer text is scored alone.

    Raises:
        ConfigError: the model cannot be loaded, or a value is out of range.
    """

    def __init__(
        self,
        model: str,
        aggregate: str = "mean",
        floor: float = float("-inf"),
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: int = 128,
        max_batch_tokens: int = 32_768,
    ) -> None:
        place = "reward 'likelihood'"
        if aggregate not in ("mean", "sum"):
            raise ConfigError(f"{place}: aggregate is mean or sum, not {aggregate!r}")
        if not isinstance(floor, int | float) or not floor < 0:
            raise ConfigError(f"{place}: floor must be < 0, not {floor!r}")
        self._model = load_model(place, "AutoModelForCausalLM", model, dtype=dtype, device=device)
        self._tokenizer = load_tokenizer(place, model)
        self._flops = Flops.if_known(self._model.config)
        self._mean = aggregate == "mean"
        self._floor = floor
        self._queue: Batcher[_Text, Score] = Batcher(
            self._run, length=len, max_size=max_batch_size, max_tokens=max_batch_tokens
        )

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        asked = as_dicts(prompt.messages)
        prefix = self._tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        texts = []
        for response in responses:
            messages = [*asked, {"role": "assistant", "content": response}]
            ids = self._tokenizer.apply_chat_template(messages, return_dict=False)
            if ids[: len(prefix)] != prefix or len(ids) == len(prefix):
                raise RewardError("the chat template does not put the response behind the prompt")
            texts.append(_Text(ids, len(prefix)))
        try:
            scores = await asyncio.gather(*map(self._queue.submit, texts))
        except RuntimeError as error:  # torch: out of memory, or more positions than the model has
            raise RewardError(f"the reward model failed: {error}") from error
        return check_scores("the reward model", scores, len(responses))

    @torch.inference_mode()
    def _run(self, texts: list[_Text]) -> list[Score]:
        device = self._model.device
        width = max(map(len, texts))
        ids = torch.tensor([text.ids + [0] * (width - len(text)) for text in texts], device=device)  # [B, T]
        place = torch.arange(width, device=device)
        mask = place < torch.tensor([[len(text)] for text in texts], device=device)
        of_response = mask & (place >= torch.tensor([[text.num_prompt] for text in texts], device=device))
        logits = self._model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float()
        per_token = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None])[:, :, 0].clamp_min(self._floor)
        kept = of_response[:, 1:]
        totals = torch.where(kept, per_token, 0.0).sum(dim=1)
        values = (totals / kept.sum(dim=1) if self._mean else totals).tolist()
        return [
            Score(value, self._flops(len(text)) if self._flops else None)
            for value, text in zip(values, texts, strict=True)
        ]
