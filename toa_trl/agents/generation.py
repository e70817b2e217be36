"""Batched generation with a transformers model in this process, each row with its own seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from toa_trl.agents.base import chat_template
from toa_trl.errors import AgentError
from toa_trl.models.batching import Batcher
from toa_trl.models.flops import known_flops
from toa_trl.types import Completion, Message, Sampling, as_dicts


@dataclass(frozen=True, slots=True)
class _Request:
    prompt: list[int]  # token ids
    sampling: Sampling
    max_tokens: int  # sampling.max_tokens, less where the context ends before
    seed: int


class Engine:
    """The weights, the tokenizer and the queue."""

    def __init__(self, place: str, model: Any, tokenizer: Any, size: int, tokens: int) -> None:
        self._place = place
        self._model = model
        self._tokenizer = tokenizer
        self._template = chat_template(place, tokenizer)
        self.flops = known_flops(self._model.config)
        text_config = self._model.config.get_text_config()
        self._context = getattr(text_config, "max_position_embeddings", None) or 1 << 30
        eos = self._model.generation_config.eos_token_id
        # transformers takes what is not set from here: a repetition_penalty would change sampling
        self._model.generation_config = GenerationConfig()
        # an adapter may have learned another end token than the configuration of its base names
        ends = [*(eos if isinstance(eos, list) else [eos]), self._tokenizer.eos_token_id]
        self._eos = {end for end in ends if end is not None}
        pad = self._tokenizer.pad_token_id
        # never seen by the model: it is masked
        self._pad = min(self._eos, default=0) if pad is None else pad
        self._queue: Batcher[_Request, Completion] = Batcher(
            torch.inference_mode()(self.run),
            length=lambda request: len(request.prompt),
            max_size=size,
            max_tokens=tokens,
        )

    async def generate(
        self, messages: Sequence[Message], sampling: Sampling, seed: int
    ) -> Completion:
        """Answer one conversation, in a batch with others.

        Raises:
            AgentError: the prompt leaves no room in the model's context, or the model failed.
        """
        prompt = self._template.render(as_dicts(messages), add_generation_prompt=True)
        request = self.request(prompt, sampling, seed)
        try:
            return await self._queue.submit(request)
        except Exception as error:  # torch and a model's code have no base of their own
            reason = f"{type(error).__name__}: {error}"
            raise AgentError(f"{self._place}: the model failed: {reason}") from error

    def request(self, prompt: list[int], sampling: Sampling, seed: int) -> _Request:
        """Return the request of a prompt's token ids.

        Raises:
            AgentError: the prompt leaves no room in the model's context.
        """
        room = self._context - len(prompt)
        if room < 1:
            raise AgentError(
                f"{self._place}: the prompt has {len(prompt)} tokens, "
                f"the context holds {self._context}"
            )
        return _Request(prompt, sampling, min(sampling.max_tokens, room), seed)

    def run(self, requests: list[_Request]) -> list[Completion]:
        """Answer one batch."""
        width = max(len(r.prompt) for r in requests)
        padding = [width - len(r.prompt) for r in requests]
        device = self._model.device
        padded = zip(padding, requests, strict=True)
        ids = torch.tensor([[self._pad] * p + r.prompt for p, r in padded], device=device)
        mask = torch.arange(width, device=device) >= torch.tensor(padding, device=device)[:, None]
        row_ends = _RowEnds(requests, width, self._tokenizer, device)
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            generation_config=GenerationConfig(
                do_sample=False,  # _SeededSampling has drawn the token already
                max_new_tokens=max(r.max_tokens for r in requests),
                eos_token_id=sorted(self._eos) or None,
                pad_token_id=self._pad,
            ),
            logits_processor=LogitsProcessorList([_SeededSampling(requests, device)]),
            stopping_criteria=StoppingCriteriaList([row_ends]),
            # under DeepSpeed, transformers would wait for processes that have other batches
            synced_gpus=False,
        )
        answers = output[:, width:].tolist()
        # behind its stop text a row of a batch is padding
        return [
            self._completion(r, answers[row][: row_ends.stopped.get(row)])
            for row, r in enumerate(requests)
        ]

    def _completion(self, request: _Request, new: list[int]) -> Completion:
        end = next((i + 1 for i, token in enumerate(new) if token in self._eos), None)
        ids = new[: request.max_tokens if end is None else min(end, request.max_tokens)]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        found = [at for stop in request.sampling.stop if (at := text.find(stop)) >= 0]
        ended = bool(found) or (end is not None and end <= request.max_tokens)
        return Completion(
            text=text[: min(found)] if found else text,
            finish_reason="stop" if ended else "length",
            prompt_tokens=len(request.prompt),
            completion_tokens=len(ids),
            flops=self.flops(len(request.prompt) + len(ids)) if self.flops else None,
        )


@torch.no_grad()  # what a model in training caches must not be inference tensors
def complete(
    place: str,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    batch_size: int,
) -> list[Completion]:
    """Sample from a model that is loaded already, such as one in training, and leave it as it was.

    Args:
        place: what error messages begin with.
        model: in evaluation mode.
        tokenizer: of the model.
        prompts: token ids of each prompt.
        sampling: parameters for all of them.
        seeds: of each prompt.
        batch_size: prompts at once.

    Raises:
        AgentError: a prompt leaves no room in the model's context.
    """
    own = model.generation_config
    try:
        engine = Engine(place, model, tokenizer, batch_size, 1 << 60)
        requests = [
            engine.request(prompt, sampling, seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        order = sorted(range(len(requests)), key=lambda number: len(requests[number].prompt))
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = engine.run([requests[number] for number in numbers])
            completions |= zip(numbers, batch, strict=True)
    finally:
        model.generation_config = own
    return [completions[number] for number in range(len(requests))]


class _SeededSampling(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Draw each row's token with the row's own seed: one uniform number, through the inverse CDF.

    transformers samples a batch with one generator, so that a row would depend on the others.
    """

    def __init__(self, requests: list[_Request], device: torch.device) -> None:
        self._generators = [random.Random(r.seed) for r in requests]
        sampling = [r.sampling for r in requests]
        temperature = torch.tensor([[float(s.temperature)] for s in sampling], device=device)
        self._greedy = temperature == 0
        self._temperature = temperature.masked_fill(self._greedy, 1.0)
        self._top_p = torch.tensor([[s.top_p] for s in sampling], device=device)

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor:  # [B, V] -> [B, V]
        probabilities = torch.softmax(scores.float() / self._temperature, dim=-1)
        if bool((self._top_p < 1).any()):
            ordered, order = probabilities.sort(dim=-1, descending=True)
            outside = ordered.cumsum(dim=-1) - ordered >= self._top_p
            probabilities = probabilities.scatter(1, order, ordered.masked_fill(outside, 0.0))
        cdf = probabilities.double().cumsum(dim=-1)
        if not bool(torch.isfinite(cdf[:, -1]).all()):  # any token could be drawn
            raise ValueError("its logits are not finite numbers (NaN or infinity)")
        uniform = torch.tensor(
            [[g.random()] for g in self._generators], dtype=torch.float64, device=scores.device
        )
        drawn = torch.searchsorted(cdf, uniform * cdf[:, -1:], right=True).clamp_max(
            scores.shape[-1] - 1
        )
        token = torch.where(self._greedy, scores.argmax(dim=-1, keepdim=True), drawn)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class _RowEnds(StoppingCriteria):  # type: ignore[misc]
    """End each row at its own max_tokens and stop texts."""

    def __init__(
        self, requests: list[_Request], prompt_width: int, tokenizer: Any, device: torch.device
    ) -> None:
        self._limit = torch.tensor([r.max_tokens for r in requests], device=device)
        self._stops = [(row, r.sampling.stop) for row, r in enumerate(requests) if r.sampling.stop]
        self._prompt_width = prompt_width
        self._tokenizer = tokenizer
        self.stopped: dict[int, int] = {}  # row -> number of its tokens, where a stop text ended it

    def __call__(
        self, input_ids: torch.Tensor, scores: Any, **kwargs: Any
    ) -> torch.Tensor:  # [B, T] -> [B]
        num_new = input_ids.shape[1] - self._prompt_width
        ended = num_new >= self._limit
        for row, stops in self._stops:
            # only the last tokens matter: a stop text has at most as many tokens as bytes
            num_read = min(num_new, max(len(stop.encode()) for stop in stops))
            text = self._tokenizer.decode(input_ids[row, -num_read:], skip_special_tokens=True)
            if any(stop in text for stop in stops):
                self.stopped.setdefault(row, num_new)
                ended[row] = True
        return ended
