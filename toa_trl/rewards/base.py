"""The interface of reward models: one method, and capabilities with defaults."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Annotated, Any, Protocol, Self, TypeGuard, runtime_checkable

from pydantic import Field

from toa_trl.agents.base import Price
from toa_trl.errors import ConfigError, RewardError
from toa_trl.types import Prompt, Score
from toa_trl.utils.config import Config, Text
from toa_trl.utils.construction import with_arguments
from toa_trl.utils.numbers import as_number


class RewardOptions(Config):
    """Keys that the entry of every reward model may have."""

    devices: Annotated[list[Text], Field(min_length=1)] | None = None
    """Devices of replicas of a model in this process, such as [cuda:0, cuda:1]."""


@runtime_checkable
class RewardModel(Protocol):
    """Scores responses to a prompt. Subclass it: only `score` has no default."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments, which belong to the identity of a run."""
        return with_arguments(cls, *args, **kwargs)

    @property
    def graded(self) -> bool:
        """Whether intermediate values have a meaning, unlike a verifier's right or wrong."""
        return False

    @property
    def identity(self) -> Any:
        """What decides the rewards, as JSON values.

        By default its class; the arguments of its constructor count by themselves.
        """
        return type(self).__qualname__

    @property
    def texts(self) -> Any:
        """Contents of files that decide the rewards (a judge's rubric) as JSON values, or None."""
        return None

    @property
    def parts(self) -> Mapping[str, Any]:
        """The entries and objects that it is made of, by name; a resumed run compares them."""
        return {}

    @property
    def prices(self) -> tuple[tuple[str, Price | None], ...]:
        """Kinds of its parts that spend tokens (see `spending.py`), each with its price."""
        return ()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """Return raw rewards, one per response, of R(x, response): never of a refinement prompt.

        Raises:
            RewardError: a response could not be scored. No number may stand for a failure.
            Unavailable: none of its servers answers: the run stops, and can be resumed.
        """
        ...

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """Return the rewards with details: FLOPs, a second reward, a weight.

        Raises:
            RewardError: as `score`.
            Unavailable: as `score`.
        """
        scores = await self.score(prompt, responses)
        return [Score(value) for value in check_scores(type(self).__name__, scores, len(responses))]

    @property
    def decides_equivalence(self) -> bool:
        """Whether `equivalent` is implemented; majority votes need it."""
        return False

    async def equivalent(self, answer: str, other: str) -> bool:
        """Return whether two final answers mean the same.

        Raises:
            RewardError: the comparison did not finish.
        """
        raise RewardError(f"{type(self).__name__} cannot compare final answers")

    async def check(self) -> None:
        """Check, before anything is sampled, that the model can score.

        Raises:
            ConfigError: a server cannot be reached, or refuses the key.
        """
        return None  # noqa: RET501 (a body, so that type checkers see a default)

    async def aclose(self) -> None:
        """Release connections, processes and memory."""
        return None  # noqa: RET501


class DetailedReward(RewardModel):
    """Base of reward models that implement `score_details`; `score` returns its values."""

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        return [score.value for score in await self.score_details(prompt, responses)]

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        raise NotImplementedError


class AdaptedReward(RewardModel):
    """A user's object that has only `score` of `RewardModel`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def identity(self) -> Any:
        """The identity of the user's object, or its class."""
        return getattr(self._model, "identity", type(self._model).__qualname__)

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        scores: list[float] = await self._model.score(prompt, responses)
        return scores


def as_reward_model(given: Any, place: str = "reward") -> RewardModel:
    """Return an object or a TRL reward function as a `RewardModel`.

    Capabilities that it lacks get their defaults.

    Raises:
        ConfigError: it has no `score` and cannot be called.
    """
    if isinstance(given, RewardModel):
        return given
    if callable(getattr(given, "score", None)):
        return AdaptedReward(given)
    if callable(given):
        from toa_trl.rewards.function import FunctionReward

        return FunctionReward(given)
    raise ConfigError(
        f"{place}: a reward model, a TRL reward function or an entry is needed, not {given!r}"
    )


def is_finite(score: Any) -> TypeGuard[float]:
    """Return whether a score is a finite number."""
    return isinstance(score, Real) and math.isfinite(score)


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
        RewardError: they are not `count` finite numbers.
    """
    values = as_values(place, scores, count)
    for at, score in enumerate(values):
        if type(score) is float and math.isfinite(score):  # most scores
            continue
        number = as_number(score)
        if not is_finite(number):
            raise RewardError(f"{place}: a score must be a finite number, not {number!r}")
        values[at] = float(number)
    return values


def total_flops(parts: Iterable[float | None]) -> float | None:
    """Return the sum of the known FLOPs, or None if none are known."""
    known = [flops for flops in parts if flops is not None]
    return sum(known) if known else None


def column_of(place: str, prompt: Prompt, column: str) -> Any:
    """Return the value of a column of the prompts file for this prompt.

    Raises:
        RewardError: the column is missing or empty; the message names the existing columns.
    """
    value = prompt.metadata.get(column)
    if value is None or value == "" or value == []:
        columns = ", ".join(map(str, prompt.metadata)) or "none"
        state = "is empty" if column in prompt.metadata else "is missing"
        raise RewardError(
            f"{place}: the column {column!r} {state} for prompt {prompt.id!r}; columns: {columns}"
        )
    return value
