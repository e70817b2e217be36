"""A sequence-classification reward model with one logit, as TRL's RewardTrainer saves it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import torch

from toa_trl.batching import Batcher
from toa_trl.errors import ConfigError, RewardError
from toa_trl.flops import Flops
from toa_trl.hf import load_model, load_tokenizer
from toa_trl.rewards.base import check_scores
from toa_trl.types import Prompt, Score, as_dicts


class ClassifierReward:
    """The raw logit of [prompt messages + response] in the model's chat template. No sigmoid.

    Args:
        model: folder or Hub name; one label, with a chat template.
        dtype: a torch dtype's name, or "auto".
        device: e.g. "cuda:1"; default: a GPU if there is one.
        max_batch_size: responses that are scored at once, over all prompts in flight.
        max_batch_tokens: of a batch at most, padding included; a longer text is scored alone.

    Raises:
        ConfigError: the model or its chat template cannot be loaded, or it has more than one label.
    """

    def __init__(
        self,
        model: str,
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: int = 128,
        max_batch_tokens: int = 32_768,
    ) -> None:
        place = "reward 'classifier'"
        self._model = load_model(place, "AutoModelForSequenceClassification", model, dtype=dtype, device=device)
        if self._model.config.num_labels != 1:
            raise ConfigError(f"{place}: {model!r} has {self._model.config.num_labels} labels; a reward model has one")
        self._tokenizer = load_tokenizer(place, model)
        self._flops = Flops.if_known(self._model.config)
        self._queue: Batcher[list[int], Score] = Batcher(
            self._run, length=len, max_size=max_batch_size, max_tokens=max_batch_tokens
        )

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        asked = as_dicts(prompt.messages)
        texts = (
            self._tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": r}], return_dict=False)
            for r in responses
        )
        try:
            scores = await asyncio.gather(*(self._queue.submit(ids) for ids in texts))
        except RuntimeError as error:  # torch: out of memory, or more positions than the model has
            raise RewardError(f"the reward model failed: {error}") from error
        return check_scores("the reward model", scores, len(responses))

    @torch.inference_mode()
    def _run(self, texts: list[list[int]]) -> list[Score]:
        # The model scores the last token that is not padding. A padding token that also ends texts (pad = eos) would
        # move that place, so a token that ends no text of the batch is taken; on the right, where nothing attends to it.
        ends = {text[-1] for text in texts}
        pad = next(token for token in range(len(ends) + 1) if token not in ends)
        width = max(map(len, texts))
        ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts], device=self._model.device)
        mask = torch.arange(width, device=ids.device) < torch.tensor([[len(text)] for text in texts], device=ids.device)
        self._model.config.pad_token_id = pad
        logits = self._model(input_ids=ids, attention_mask=mask.long()).logits[:, 0].float().tolist()
        return [
            Score(logit, self._flops(len(text)) if self._flops else None)
            for logit, text in zip(logits, texts, strict=True)
        ]
