"""Likelihood of a response under a causal model: a generative reward that needs no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from toa_trl.errors import RewardError
from toa_trl.models.batching import ScoringQueue, padded, without_gradients
from toa_trl.models.loading import load_model, load_tokenizer
from toa_trl.rewards.base import DetailedReward
from toa_trl.rewards.scoring import chat_template
from toa_trl.types import Prompt, Score, as_dicts
from toa_trl.utils.config import PositiveInt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class _Text:
    ids: list[int]  # prompt and response, with the template's end-of-turn token
    num_prompt: int

    def __len__(self) -> int:
        return len(self.ids)


class LikelihoodReward(DetailedReward):
    """log p(response | prompt) in the model's chat template, <= 0.

    Args:
        model: folder or Hub name of a causal language model with a chat template.
        aggregate: over the tokens of the response, its end included: "mean" (independent of
            length) or "sum".
        floor: lower limit of a token's log-probability, < 0, so that one surprising token does
            not outweigh the rest. Default: none.
        dtype: a torch dtype's name, or "auto".
        device: e.g. "cuda:1"; default: a GPU if there is one.
        max_batch_size: maximum number of responses in a batch, over all prompts in flight.
        max_batch_tokens: maximum number of tokens in a batch, padding included; a longer text is
            scored alone. Default: 32,768 on a GPU, 2,048 on a CPU.

    Raises:
        ConfigError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        aggregate: Literal["mean", "sum"] = "mean",
        floor: Annotated[float, Field(lt=0)] | None = None,
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: PositiveInt = 128,
        max_batch_tokens: PositiveInt | None = None,
    ) -> None:
        place = "reward 'likelihood'"
        self._model = load_model(place, "AutoModelForCausalLM", model, dtype=dtype, device=device)
        self._template = chat_template(load_tokenizer(place, model))
        self._mean = aggregate == "mean"
        self._floor = floor
        self._queue = ScoringQueue(self._run, self._model, max_batch_size, max_batch_tokens)

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        messages = as_dicts(prompt.messages)
        prefix = self._template.render(messages, add_generation_prompt=True)
        texts = []
        for response in responses:
            ids = self._template.render(messages, response)
            if ids[: len(prefix)] != prefix or len(ids) == len(prefix):
                raise RewardError("the chat template does not put the response behind the prompt")
            texts.append(_Text(ids, len(prefix)))
        return await self._queue.scores(texts)

    @without_gradients
    def _run(self, texts: list[_Text]) -> list[float]:
        import torch

        ids, mask = padded([text.ids for text in texts], 0, self._model.device)
        logits = self._model(input_ids=ids, attention_mask=mask).logits  # [B, T, vocabulary]
        rows = zip(texts, ids, logits, strict=True)
        values = torch.stack([self._value(*row) for row in rows])  # [B]
        return list(values.tolist())

    def _value(self, text: _Text, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        begin, end = text.num_prompt, len(text)
        log_probabilities = logits[begin - 1 : end - 1].float().log_softmax(dim=-1)
        per_token = log_probabilities.gather(1, ids[begin:end, None])
        if self._floor is not None:
            per_token = per_token.clamp_min(self._floor)
        return per_token.mean() if self._mean else per_token.sum()
