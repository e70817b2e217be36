"""The interface of reward models: one method, and capabilities with defaults."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, Self, runtime_checkable

from pydantic import Field

from toa_trl.agents.base import Price
from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards.scoring import as_scores
from toa_trl.types import Prompt, Score
from toa_trl.utils.config import Config, Text
from toa_trl.utils.construction import with_arguments


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
        return as_scores(type(self).__name__, scores, len(responses))

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
