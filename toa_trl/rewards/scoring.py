"""What reward models share: what scores must be, and how a model in this process is prepared."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from toa_trl.errors import ConfigError, RewardError
from toa_trl.models.chat import ChatTemplate
from toa_trl.models.sources import own_class
from toa_trl.types import Prompt, Score

# from the model cards of Qwen2.5-Math
STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."
PROBE = (Prompt("probe", "What is 1 + 1?"), "1 + 1 = 2")  # type: ignore[arg-type]  # a text becomes messages


def chat_template(tokenizer: Any, system: str | None = None) -> ChatTemplate:
    """Return the chat template of a reward model; what it refuses is a `RewardError`.

    Args:
        tokenizer: of the model.
        system: system prompt for prompts without one.
    """
    return ChatTemplate(
        tokenizer, system, error=lambda reason: RewardError(f"the reward model: {reason}")
    )


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


def as_details(place: str, scores: Any, count: int) -> list[Score]:
    """Return what a reward model's `score_details` gave, as a list.

    Raises:
        RewardError: they are not `count` `Score`s.
    """
    details = as_values(place, scores, count)
    if not all(isinstance(each, Score) for each in details):
        raise RewardError(f"{place}: Scores are needed, not {scores!r}")
    return details


def as_scores(place: str, scores: Any, count: int) -> list[Score]:
    """Return raw rewards as `Score`s.

    Raises:
        RewardError: they are not `count` finite numbers within +-LARGEST_SCORE.
    """
    values = as_values(place, scores, count)
    try:
        return [Score(value) for value in values]
    except ValueError as error:
        raise RewardError(f"{place}: {error}") from error


def check_scores(place: str, scores: Any, count: int) -> list[float]:
    """Return raw rewards as floats.

    Raises:
        RewardError: see `as_scores`.
    """
    return [score.value for score in as_scores(place, scores, count)]


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
