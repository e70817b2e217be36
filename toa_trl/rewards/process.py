"""Process reward models: every step of a response is judged, and the steps become one number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, Protocol

from toa_trl.errors import ConfigError, RewardError
from toa_trl.models.batching import ScoringQueue, padded, spare_token, without_gradients
from toa_trl.models.loading import load_model, load_tokenizer
from toa_trl.models.sources import read_config
from toa_trl.rewards.base import DetailedReward
from toa_trl.rewards.scoring import (
    PROBE,
    STEP_BY_STEP,
    chat_template,
    check_scoring,
    trusted_class,
)
from toa_trl.types import Prompt, Score, as_dicts
from toa_trl.utils.config import PositiveInt

if TYPE_CHECKING:
    import torch

Aggregate = Literal["last", "min", "mean", "product"]
AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "last": lambda steps: steps[-1],
    "min": min,
    "mean": fmean,
    "product": math.prod,
}


class _Interface(Protocol):
    """How a model reads steps, and at which positions it judges them."""

    tag: str  # marks the end of each step in the text
    tokens: dict[str, int | None]  # texts that must be single tokens -> their ids

    def encode(self, prompt: Prompt, response: str) -> tuple[list[int], int]:
        """Return token ids and the number of steps."""

    def judge(
        self, model: Any, inputs: dict[str, torch.Tensor], positions: torch.Tensor
    ) -> torch.Tensor:
        """Return the probability of a good step at each of these positions [B, positions]."""


class _Qwen:
    """Qwen2.5-Math-PRM as in its model card: steps are paragraphs, class 1 is good."""

    tag = "<extra_0>"

    def __init__(self, tokenizer: Any) -> None:
        self._template = chat_template(tokenizer, STEP_BY_STEP)
        self.tokens: dict[str, int | None] = {self.tag: tokenizer.convert_tokens_to_ids(self.tag)}

    def encode(self, prompt: Prompt, response: str) -> tuple[list[int], int]:
        steps = _steps(r"\n\s*\n", response, self.tag)
        text = "".join(step + self.tag for step in steps)
        return list(self._template.render(as_dicts(prompt.messages), text)), len(steps)

    def judge(
        self, model: Any, inputs: dict[str, torch.Tensor], positions: torch.Tensor
    ) -> torch.Tensor:
        logits: torch.Tensor = model(**inputs)[0][:, positions]
        return logits.float().softmax(dim=-1)[..., 1]


class _Shepherd:
    """Math-Shepherd as in its model card: no chat template; steps are lines ("Step 1: ...").

    It reads the prompt without system messages and predicts "+" or "-" after each step.
    """

    tag = "ки"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._plus_minus = tokenizer.encode("+ -", add_special_tokens=False)[-2:]
        tag = [None, *tokenizer.encode(self.tag, add_special_tokens=False)][-1]
        self.tokens: dict[str, int | None] = dict(
            zip_longest((self.tag, "+", "-"), (tag, *self._plus_minus))
        )

    def encode(self, prompt: Prompt, response: str) -> tuple[list[int], int]:
        question = "\n".join(
            message.text for message in prompt.messages if message.role != "system"
        )
        steps = _steps(r"\n", response, self.tag)
        text = "\n".join(f"{step} {self.tag}" for step in steps)
        return list(self._tokenizer.encode(f"{question} {text}")), len(steps)

    def judge(
        self, model: Any, inputs: dict[str, torch.Tensor], positions: torch.Tensor
    ) -> torch.Tensor:
        logits: torch.Tensor = model(**inputs, logits_to_keep=positions).logits[
            ..., self._plus_minus
        ]
        return logits.float().softmax(dim=-1)[..., 0]


# By architecture; Math-Shepherd is a plain language model and can only be recognized by it.
INTERFACES: dict[str, Callable[[Any], _Interface]] = {
    "Qwen2ForProcessRewardModel": _Qwen,
    "MistralForCausalLM": _Shepherd,
}


@dataclass(frozen=True, slots=True)
class _Text:
    ids: list[int]
    positions: list[int]  # of the step tags

    def __len__(self) -> int:
        return len(self.ids)


class ProcessReward(DetailedReward):
    """The aggregated probabilities that the steps are good, in [0, 1].

    Qwen2.5-Math-PRM (steps are separated by blank lines) and Math-Shepherd (by line breaks). An
    empty response is one empty step.

    Args:
        model: folder or Hub name; Qwen2.5-Math-PRM, or a Mistral trained like Math-Shepherd.
        aggregate: over the steps: "min" (as Math-Shepherd ranks, arXiv 2312.08935), "product" (as
            Qwen's PRMs are compared, arXiv 2501.07301), "last" or "mean".
        trust_remote_code: run the code in the model's repository; Qwen's needs it.
        revision: branch, tag or commit of the Hub repository, code included.
        dtype: a torch dtype's name, or "auto".
        device: e.g. "cuda:1"; default: a GPU if there is one.
        max_batch_size: maximum number of responses in a batch, over all prompts in flight.
        max_batch_tokens: maximum number of tokens in a batch, padding included; a longer text is
            scored alone. Default: 32,768 on a GPU, 2,048 on a CPU.

    Raises:
        ConfigError: the model cannot be loaded, its code is not trusted or does not run, or it
            does not judge steps.
    """

    def __init__(
        self,
        model: str,
        aggregate: Aggregate = "min",
        trust_remote_code: bool = False,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: PositiveInt = 128,
        max_batch_tokens: PositiveInt | None = None,
    ) -> None:
        place = "reward 'process'"
        self._aggregate = AGGREGATES[aggregate]
        config = read_config(place, model, revision)
        architecture = (config.get("architectures") or [None])[0]
        if architecture not in INTERFACES:
            raise ConfigError(
                f"{place}: {model!r} is a {architecture}, which is not known to judge steps; "
                f"known: {', '.join(INTERFACES)}"
            )
        own_class = trusted_class(place, model, config, trust_remote_code)
        auto_class = own_class or "AutoModelForCausalLM"
        code: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
        self._model = load_model(place, auto_class, model, dtype=dtype, device=device, **code)
        # Nothing is generated, and older model code does not know the cache of transformers 5.
        self._model.config.use_cache = False
        tokenizer = load_tokenizer(place, model, template=INTERFACES[architecture] is _Qwen, **code)
        self._interface = INTERFACES[architecture](tokenizer)
        tokens = self._interface.tokens
        missing = []
        for text, token in tokens.items():
            if token is None or tokenizer.decode([token]).strip() != text:
                missing.append(text)
        if missing:
            raise ConfigError(
                f"{place}: the tokenizer of {model!r} has no single token for {', '.join(missing)}"
            )
        self._queue = ScoringQueue(self._run, self._model, max_batch_size, max_batch_tokens)
        check_scoring(place, model, lambda: self._run([self._text(*PROBE)]))

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        return await self._queue.scores([self._text(prompt, response) for response in responses])

    def _text(self, prompt: Prompt, response: str) -> _Text:
        ids, num_steps = self._interface.encode(prompt, response)
        tag = self._interface.tag
        tag_id = self._interface.tokens[tag]
        positions = [position for position, token in enumerate(ids) if token == tag_id]
        if len(positions) != num_steps:  # the response contains the tag and would add steps
            raise RewardError(
                f"{num_steps} steps, but the step tag {tag!r} occurs {len(positions)} times"
            )
        return _Text(ids, positions)

    @without_gradients
    def _run(self, texts: list[_Text]) -> list[float]:
        import torch

        ids_of = [text.ids for text in texts]
        pad = spare_token(ids_of, self._model.config.vocab_size) or 0
        self._model.config.pad_token_id = pad
        ids, mask = padded(ids_of, pad, self._model.device)
        positions = sorted(set().union(*(text.positions for text in texts)))
        inputs = {"input_ids": ids, "attention_mask": mask}
        at = torch.tensor(positions, device=ids.device)
        probabilities = self._interface.judge(self._model, inputs, at).tolist()
        values = []
        for text, row in zip(texts, probabilities, strict=True):
            by_position = dict(zip(positions, row, strict=True))
            values.append(self._aggregate([by_position[p] for p in text.positions]))
        return values


def _steps(separator: str, response: str, tag: str) -> list[str]:
    """Return the steps without the tag that models trained on such steps write at their ends."""
    steps = (step.strip().removesuffix(tag).rstrip() for step in re.split(separator, response))
    return [step for step in steps if step] or [""]
