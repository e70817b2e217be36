"""A process reward model: it judges every step of a response, and the steps become one number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean
from typing import Any, Protocol

import torch

from toa_trl.errors import ConfigError, RewardError
from toa_trl.models.batching import Batcher
from toa_trl.models.flops import Flops
from toa_trl.models.loading import load_model, load_tokenizer, padded, read_config
from toa_trl.rewards.base import DetailedReward
from toa_trl.rewards.heads import (
    PROBE,
    STEP_BY_STEP,
    batch_tokens,
    check_scoring,
    conversation,
    render,
    scored,
    spare_token,
    trusted_class,
    with_flops,
)
from toa_trl.types import Prompt, Score
from toa_trl.utils.registry import choose

AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "last": lambda steps: steps[-1],
    "min": min,
    "mean": fmean,
    "product": math.prod,
}


class _Interface(Protocol):
    """How a model reads steps, and where it judges them."""

    tag: str  # in the text, behind each step: there it is judged
    tokens: dict[str, int | None]  # what the tokenizer must know as one token

    def encode(self, prompt: Prompt, response: str) -> tuple[list[int], int]:
        """Token ids, and the number of steps."""

    def judge(
        self, model: Any, inputs: dict[str, torch.Tensor], places: torch.Tensor
    ) -> torch.Tensor:
        """The probabilities that what ends at these places is a good step [B, places]."""


class _Qwen:
    """Qwen2.5-Math-PRM, from its model card: steps are paragraphs, class 1 is good."""

    tag = "<extra_0>"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.tokens: dict[str, int | None] = {self.tag: tokenizer.convert_tokens_to_ids(self.tag)}

    def encode(self, prompt: Prompt, response: str) -> tuple[list[int], int]:
        steps = _steps(r"\n\s*\n", response, self.tag)
        text = "".join(step + self.tag for step in steps)
        return list(render(self._tokenizer, conversation(prompt, text, STEP_BY_STEP))), len(steps)

    def judge(
        self, model: Any, inputs: dict[str, torch.Tensor], places: torch.Tensor
    ) -> torch.Tensor:
        logits: torch.Tensor = model(**inputs)[0][:, places]
        return logits.float().softmax(dim=-1)[..., 1]


class _Shepherd:
    """Math-Shepherd, from its model card: no chat template; steps are lines, written "Step 1: ..." in its training data.

    It reads the prompt's messages, a system message left out, and is asked for the token "+" or "-" behind each step.
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
            message.content for message in prompt.messages if message.role != "system"
        )
        steps = _steps(r"\n", response, self.tag)
        text = "\n".join(f"{step} {self.tag}" for step in steps)
        return list(self._tokenizer.encode(f"{question} {text}")), len(steps)

    def judge(
        self, model: Any, inputs: dict[str, torch.Tensor], places: torch.Tensor
    ) -> torch.Tensor:
        logits: torch.Tensor = model(**inputs, logits_to_keep=places).logits[..., self._plus_minus]
        return logits.float().softmax(dim=-1)[..., 0]


# architecture -> interface; the second is a language model, and nothing but its name tells it from any other
INTERFACES: dict[str, Callable[[Any], _Interface]] = {
    "Qwen2ForProcessRewardModel": _Qwen,
    "MistralForCausalLM": _Shepherd,
}


@dataclass(frozen=True, slots=True)
class _Text:
    ids: list[int]
    places: list[int]  # of the step tags

    def __len__(self) -> int:
        return len(self.ids)


class ProcessReward(DetailedReward):
    """The probabilities that the steps are good, aggregated, in [0, 1].

    Qwen2.5-Math-PRM (steps are split at blank lines) and Math-Shepherd (at line breaks). A response without any text is
    one empty step.

    Args:
        model: folder or Hub name; Qwen2.5-Math-PRM, or a Mistral that judges steps as Math-Shepherd does.
        aggregate: over the steps: "min" (as Math-Shepherd ranks, arXiv 2312.08935), "product" (as Qwen's PRMs are
            compared, arXiv 2501.07301), "last" or "mean".
        trust_remote_code: run the code that the model brings; Qwen's does.
        revision: of the Hub repository, its code included: a branch, a tag or a commit.
        dtype: a torch dtype's name, or "auto".
        device: e.g. "cuda:1"; default: a GPU if there is one.
        max_batch_size: responses that are scored at once, over all prompts in flight.
        max_batch_tokens: of a batch at most, padding included; a longer text is scored alone. Default: 32,768 on a GPU,
            2,048 on a CPU.

    Raises:
        ConfigError: the model cannot be loaded, brings code that is not trusted or does not run, or judges no steps.
    """

    def __init__(
        self,
        model: str,
        aggregate: str = "min",
        trust_remote_code: bool = False,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: int = 128,
        max_batch_tokens: int | None = None,
    ) -> None:
        place = "reward 'process'"
        self._aggregate = choose(place, "aggregate", AGGREGATES, aggregate)
        config = read_config(place, model, revision)
        architecture = (config.get("architectures") or [None])[0]
        if architecture not in INTERFACES:
            raise ConfigError(
                f"{place}: {model!r} is a {architecture}, which judges no steps as far as is known; "
                f"known: {', '.join(INTERFACES)}"
            )
        auto_class = (
            trusted_class(place, model, config, trust_remote_code) or "AutoModelForCausalLM"
        )
        code: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
        self._model = load_model(place, auto_class, model, dtype=dtype, device=device, **code)
        self._model.config.use_cache = (
            False  # nothing is generated, and older code knows another cache
        )
        tokenizer = load_tokenizer(place, model, template=INTERFACES[architecture] is _Qwen, **code)
        self._interface = INTERFACES[architecture](tokenizer)
        tokens = self._interface.tokens
        if missing := [
            t
            for t, token in tokens.items()
            if token is None or tokenizer.decode([token]).strip() != t
        ]:
            raise ConfigError(
                f"{place}: the tokenizer of {model!r} has no token of its own for {', '.join(missing)}"
            )
        self._flops = Flops.if_known(self._model.config)
        self._queue: Batcher[_Text, Score] = Batcher(
            self._run,
            length=len,
            max_size=max_batch_size,
            max_tokens=batch_tokens(max_batch_tokens, self._model),
        )
        check_scoring(place, model, lambda: self._run([self._text(*PROBE)]))

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        return await scored(self._queue, [self._text(prompt, response) for response in responses])

    def _text(self, prompt: Prompt, response: str) -> _Text:
        ids, num_steps = self._interface.encode(prompt, response)
        tag = self._interface.tag
        places = [place for place, token in enumerate(ids) if token == self._interface.tokens[tag]]
        if (
            len(places) != num_steps
        ):  # a response that writes the tag would add steps of its own choice
            raise RewardError(
                f"{num_steps} steps, but the step tag {tag!r} is {len(places)} times in the text"
            )
        return _Text(ids, places)

    @torch.inference_mode()
    def _run(self, texts: list[_Text]) -> list[Score]:
        ids_of = [text.ids for text in texts]
        self._model.config.pad_token_id = pad = (
            spare_token(ids_of, self._model.config.vocab_size) or 0
        )
        ids, mask = padded(ids_of, pad, self._model.device)
        places = sorted({place for text in texts for place in text.places})
        inputs = {"input_ids": ids, "attention_mask": mask}
        judged = self._interface.judge(
            self._model, inputs, torch.tensor(places, device=ids.device)
        ).tolist()
        good = [dict(zip(places, row, strict=True)) for row in judged]  # place -> probability
        values = [
            self._aggregate([row[place] for place in text.places])
            for text, row in zip(texts, good, strict=True)
        ]
        return with_flops(values, texts, self._flops)


def _steps(separator: str, response: str, tag: str) -> list[str]:
    """The steps; a tag at the end of one, as models write that were trained on such steps, is left out."""
    steps = (step.strip().removesuffix(tag).rstrip() for step in re.split(separator, response))
    return [step for step in steps if step] or [""]
