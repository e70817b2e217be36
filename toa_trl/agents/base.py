"""The protocol of agents, and the configuration that all of them have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Protocol, Self, runtime_checkable

from pydantic import BeforeValidator, Field

from toa_trl.errors import AgentError, ConfigError
from toa_trl.models.chat import ChatTemplate
from toa_trl.types import Completion, Flops, Message, Sampling
from toa_trl.utils.config import Config, NonNegativeFloat, PositiveInt, Raw, Text, validate
from toa_trl.utils.construction import with_arguments

# Sent, because servers take what a request lacks from the model's generation_config.json.
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


def _as_list(stop: Any) -> Any:
    if isinstance(stop, str):
        return [stop]
    if not isinstance(stop, list | tuple):
        raise ValueError("must be a string or a list of strings")
    return list(stop)


class Price(Config):
    """What an agent's tokens cost, per million tokens, in any one currency."""

    prompt: NonNegativeFloat = 0.0
    """Price of prompt tokens."""
    completion: NonNegativeFloat = 0.0
    """Price of completion tokens."""

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of a call."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


PriceEntry = Annotated[Mapping[str, Any], Raw(Price)]


class SamplingChanges(Config):
    """How an agent samples; keys that are missing keep their values."""

    temperature: NonNegativeFloat = 0.7
    """Softmax temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the probability mass that tokens are drawn from."""
    max_tokens: PositiveInt = 2048
    """Maximum number of tokens of a response."""
    stop: Annotated[
        list[Text], BeforeValidator(_as_list, json_schema_input_type=Text | list[Text])
    ] = Field(default_factory=list)
    """Text, or list of texts, that ends a response; it is not part of it."""


SamplingEntry = Annotated[Mapping[str, Any], Raw(SamplingChanges)]


class AgentOptions(Config):
    """Keys that the entry of every agent may have."""

    price: Price | None = None
    """Price per million tokens; a run with prices shows its cost and can limit it."""


@runtime_checkable
class Agent(Protocol):
    """A language model with a name. Subclass it: only `name` and `generate` have no default.

    It may have a `price`, a mapping with the keys of `Price`; an entry has a key of its own for it.
    """

    name: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments, which belong to the identity of a run."""
        return with_arguments(cls, *args, **kwargs)

    @property
    def away(self) -> str | None:
        """Why the agent cannot be asked now (none of its servers answers), or None.

        Meaningful only where `can_be_away` is true: its plays are then withdrawn, not failed.
        """
        return None

    @property
    def can_be_away(self) -> bool:
        """Whether the agent's servers may become unavailable and come back."""
        return False

    @property
    def identity(self) -> Any:
        """What decides the agent's answers, as JSON values.

        By default its class; the arguments of its constructor count by themselves.
        """
        return type(self).__qualname__

    @property
    def compute(self) -> Flops | None:
        """The FLOPs of the agent's model, or None if its size is unknown."""
        return None

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """Answer one conversation: one play, one call, its own seed.

        Raises:
            AgentError: no response, after the agent's own retries; nothing else retries.
            Unavailable: none of its servers answers; `away` is set until one does.
        """
        ...

    async def check(self) -> None:
        """Check, before anything is sampled, that the agent can be asked.

        Raises:
            ConfigError: a server cannot be reached, or refuses the key.
        """
        return None  # noqa: RET501 (a body, so that type checkers see a default)

    async def aclose(self) -> None:
        """Release connections, processes and memory."""
        return None  # noqa: RET501


def price_of(agent: Any) -> Any:
    """Return the price of an agent that is an object; None if it has none."""
    return getattr(agent, "price", None)


class DelegatingAgent(Agent):
    """The base of agents that do something around the calls of another one.

    A subclass says in `generate` what, and in `identity` what decides its answers.

    Args:
        agent: the agent that generates.
    """

    def __init__(self, agent: Agent) -> None:
        self.name, self.price = agent.name, price_of(agent)
        self._agent = agent

    @property
    def away(self) -> str | None:
        """See `Agent`."""
        return self._agent.away

    @property
    def can_be_away(self) -> bool:
        """See `Agent`."""
        return self._agent.can_be_away

    @property
    def compute(self) -> Flops | None:
        """See `Agent`."""
        return self._agent.compute

    async def check(self) -> None:
        """See `Agent`."""
        await self._agent.check()

    async def aclose(self) -> None:
        """See `Agent`."""
        await self._agent.aclose()


class AdaptedAgent(Agent):
    """Wrap a user's object that has only `name` and `generate`, and perhaps a price."""

    def __init__(self, agent: Any) -> None:
        self.name, self.price = agent.name, price_of(agent)
        self._agent = agent

    @property
    def identity(self) -> Any:
        """The identity of the user's object, or its class."""
        return getattr(self._agent, "identity", type(self._agent).__qualname__)

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`."""
        completion: Completion = await self._agent.generate(messages, sampling=sampling, seed=seed)
        return completion


def as_agent(given: Any, place: str = "agents") -> Agent:
    """Return an object as an `Agent`, with defaults for the capabilities that it does not have.

    Raises:
        ConfigError: it has no `name` or no `generate`.
    """
    if isinstance(given, Agent):
        return given
    if not callable(getattr(given, "generate", None)) or not isinstance(
        getattr(given, "name", None), str
    ):
        raise ConfigError(
            f"{place}: an agent needs a name and a coroutine function `generate`, not {given!r}"
        )
    return AdaptedAgent(given)


def make_sampling(place: str, base: Sampling, changes: Mapping[str, Any]) -> Sampling:
    """Return `base` with the keys of a configuration entry changed.

    Args:
        place: path of the entry, such as "sampling".
        base: values of the keys that the entry does not have.
        changes: the entry; see `SamplingChanges`.

    Raises:
        ConfigError: a key is unknown, or a value is invalid.
    """
    validate(SamplingChanges, changes, place)
    stop = changes.get("stop", base.stop)
    return replace(base, **{**changes, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})


def chat_template(place: str, tokenizer: Any) -> ChatTemplate:
    """Return the chat template of an agent's model; what it refuses is an `AgentError`."""
    return ChatTemplate(tokenizer, error=lambda reason: AgentError(f"{place}: {reason}"))
