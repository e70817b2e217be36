"""One call of a reward model: what a model in this process reads, and what scores must be."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from toa_trl.errors import ConfigError, RewardError
from toa_trl.models.batching import Batcher
from toa_trl.models.chat import fold_system, takes_system
from toa_trl.models.sources import own_class
from toa_trl.types import Flops, Prompt, Score, as_dicts, checked_score

# from the model cards of Qwen2.5-Math
STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."
PROBE = (Prompt("probe", "What is 1 + 1?"), "1 + 1 = 2")  # type: ignore[arg-type]  # a text becomes messages


class Conversations:
    """Renders the conversations that a reward model reads, in its chat template.

    Args:
        tokenizer: of the model.
        system: system prompt for prompts without one.
    """

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        self._tokenizer, self._system = tokenizer, system

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template shows system messages; found out once, by rendering one."""
        return takes_system(self._tokenizer)

    def render(self, prompt: Prompt, response: str | None = None, **options: Any) -> Any:
        """Return the token ids (or with tokenize=False the text) of a prompt and a response.

        A system message is folded into the first user message where the template has no place for
        it.

        Args:
            prompt: the prompt.
            response: None: the prompt alone.
            options: of the tokenizer's `apply_chat_template`.

        Raises:
            RewardError: the template refuses the messages.
        """
        messages = as_dicts(prompt.messages)
        if self._system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._system})
        if messages[0]["role"] == "system" and not self.takes_system:
            messages = fold_system(messages)
        if response is not None:
            messages.append({"role": "assistant", "content": response})
        try:
            return self._tokenizer.apply_chat_template(messages, return_dict=False, **options)
        except (TemplateError, ValueError) as error:
            raise RewardError(
                f"the reward model: the chat template refuses the conversation: {error}"
            ) from error


def without_padding(ids: Sequence[int], pad: int | None) -> list[int]:
    """Return a text up to the token that a classifier trained with this padding is read at."""
    end = len(ids)
    while end > 1 and ids[end - 1] == pad:
        end -= 1
    return list(ids[:end])


def check_length(num_tokens: int, config: Any) -> None:
    """Check that a text fits the model's context.

    Args:
        num_tokens: of the text.
        config: of the model's text part.

    Raises:
        RewardError: it does not fit; the score would be noise.
    """
    context = getattr(config, "max_position_embeddings", None)
    if context and num_tokens > context:
        raise RewardError(
            f"the text has {num_tokens} tokens, the reward model's context holds {context}"
        )


def scoring_queue(
    run: Callable[[list[Any]], list[float]],
    model: Any,
    max_batch_size: int,
    max_batch_tokens: int | None,
) -> Batcher[Any, float]:
    """Return the queue of a model.

    Args:
        run: scores a batch of texts, whose lengths are their numbers of tokens.
        model: the model.
        max_batch_size: maximum number of texts in a batch.
        max_batch_tokens: maximum number of tokens in a batch; by default 32,768 on a GPU, and 2,048
            on a CPU, which gains nothing from larger batches.
    """
    max_tokens = max_batch_tokens or (2_048 if model.device.type == "cpu" else 32_768)
    return Batcher(run, length=len, max_size=max_batch_size, max_tokens=max_tokens)


def spare_token(texts: Iterable[Sequence[int]], num_tokens: int) -> int | None:
    """Return a token of the vocabulary that occurs in none of the texts."""
    used = set().union(*texts)
    return next((token for token in range(num_tokens) if token not in used), None)


async def scored(
    queue: Batcher[Any, float], texts: Sequence[Sized], flops: Flops | None
) -> list[Score]:
    """Return the scores of texts, computed in the model's queue.

    Args:
        queue: of the model.
        texts: their lengths are their numbers of tokens.
        flops: of the model; None: unknown.

    Raises:
        RewardError: the model failed, or a score is not a finite number.
    """
    try:
        values = await asyncio.gather(*map(queue.submit, texts))
    except RewardError:
        raise
    except Exception as error:  # torch and a model's code have no base of their own
        raise RewardError(f"the reward model failed: {error}") from error
    values = check_scores("the reward model", values, len(texts))
    return [
        Score(value, flops(len(text)) if flops else None)
        for value, text in zip(values, texts, strict=True)
    ]


def as_values(place: str, scores: Any, count: int) -> list[Any]:
    """Return the scores as a list.

    Raises:
        RewardError: they are not `count` values.
    """
    try:
        values = list(scores)
    except TypeError:  # a number, or a tensor without dimensions
        values = []
    if len(values) != count:
        raise RewardError(f"{place}: {count} scores are needed, not {scores!r}")
    return values


def check_scores(place: str, scores: Any, count: int) -> list[float]:
    """Return the scores as floats.

    Raises:
        RewardError: they are not `count` finite numbers within +-LARGEST_SCORE.
    """
    values = as_values(place, scores, count)
    try:
        return [checked_score(value) for value in values]
    except ValueError as error:
        raise RewardError(f"{place}: {error}") from error


def total_flops(parts: Iterable[float | None]) -> float | None:
    """Return the sum of the known FLOPs, or None if none are known."""
    known = [flops for flops in parts if flops is not None]
    return sum(known) if known else None


def trusted_class(
    place: str, model: str, config: Mapping[str, Any], trust_remote_code: bool
) -> str | None:
    """Return the auto class of a model with its own code, or None if transformers implements it.

    Raises:
        ConfigError: the model has its own code, and the entry does not trust it.
    """
    auto_class = own_class(config)
    if auto_class is not None and not trust_remote_code:
        raise ConfigError(
            f"{place}: {model!r} brings its own code ({config['auto_map'][auto_class]}); without "
            "it scores would be noise; read the code, then set trust_remote_code: true to run it "
            "(and revision: to the commit that you have read)"
        )
    return auto_class


def check_scoring(place: str, model: str, score: Callable[[], Sequence[float]]) -> None:
    """Score once, so that a model that cannot score fails before anything is sampled.

    Raises:
        ConfigError: the model failed, or its score is not a finite number.
    """
    try:
        check_scores("the model", score(), 1)
    except Exception as error:  # a model's own code may raise anything
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{place}: {model!r} cannot score a text here ({type(error).__name__}: {reason}); "
            "choose another revision or model, or serve it from a separate environment (kind: http)"
        ) from error
