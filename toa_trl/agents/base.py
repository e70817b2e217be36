"""Who answers? One method."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

from toa_trl.errors import AgentError, ConfigError, Unavailable
from toa_trl.types import Completion, Message, Sampling, as_messages
from toa_trl.utils.config import Config, NonNegativeFloat
from toa_trl.utils.registry import check_keys, check_number, check_whole

LOOK_S = 1.0  # between two looks whether servers are back


class Price(Config):
    """What an agent's tokens cost, per million tokens, in any one currency."""

    prompt: NonNegativeFloat = 0.0
    """Price of prompt tokens."""
    completion: NonNegativeFloat = 0.0
    """Price of completion tokens."""


class AgentOptions(Config):
    """Keys that the entry of every agent may have."""

    price: Price | None = None
    """Price per million tokens, {prompt, completion}; a run with prices shows its cost and can limit it."""


@runtime_checkable
class Agent(Protocol):
    """A language model with a name. Subclass it: only `name` and `generate` have no default."""

    name: str

    @property
    def away(self) -> str | None:
        """Why the agent cannot be asked now (none of its servers answers), or None.

        Meaningful only where `can_be_away` is true: its plays are then withdrawn and repeated, not failed.
        """
        return None

    @property
    def can_be_away(self) -> bool:
        """Whether the agent's servers may become unavailable and come back."""
        return False

    @property
    def identity(self) -> Any:
        """What decides the agent's answers, as JSON values; by default its class."""
        return type(self).__qualname__

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """Answer one conversation: one play, one call, its own seed.

        Raises:
            AgentError: no response, after the agent's own retries; nothing else retries.
            Unavailable: none of its servers answers; the play is withdrawn, and `away` is set until one does.
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


class AdaptedAgent(Agent):
    """An object of the user's own that has `name` and `generate` and nothing else of `Agent`."""

    def __init__(self, agent: Any) -> None:
        self.name = agent.name
        self._agent = agent

    @property
    def identity(self) -> Any:
        """The class of the user's object."""
        return type(self._agent).__qualname__

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


async def generate_patiently(
    agent: Agent, messages: Sequence[Message], *, sampling: Sampling, seed: int, wait_s: float
) -> Completion:
    """`agent.generate`, again and again for `wait_s` while none of its servers answers.

    Raises:
        AgentError: see `Agent`.
        Unavailable: none has answered for so long.
    """
    loop, until_s = asyncio.get_running_loop(), None
    while True:
        try:
            return await agent.generate(messages, sampling=sampling, seed=seed)
        except Unavailable:
            until_s = until_s or loop.time() + wait_s
            if loop.time() >= until_s:
                raise
            await asyncio.sleep(min(LOOK_S, wait_s))


def make_sampling(place: str, base: Sampling, changes: Mapping[str, Any]) -> Sampling:
    """`base` with the keys of a configuration entry changed.

    Raises:
        ConfigError: an unknown key, or a value out of range.
    """
    if not isinstance(changes, Mapping):
        raise ConfigError(f"{place}: a mapping is needed, not {changes!r}")
    check_keys(place, changes, [field.name for field in fields(Sampling)])
    stop = changes.get("stop", base.stop)
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list | tuple) or not all(
        isinstance(text, str) and text for text in texts
    ):
        raise ConfigError(
            f"{place}: stop must be a text or a list of texts, none of them empty, not {stop!r}"
        )
    sampling = replace(base, **{**changes, "stop": tuple(texts)})
    check_number(f"{place}: temperature (0 is greedy)", sampling.temperature, at_least=0)
    check_whole(f"{place}: max_tokens", sampling.max_tokens, at_least=1)
    if not isinstance(sampling.top_p, int | float) or not 0 < sampling.top_p <= 1:
        raise ConfigError(f"{place}: top_p must be in (0, 1], not {sampling.top_p!r}")
    return sampling


class SamplingOf:
    """How one agent samples: as the run does, with the changes of its own entry.

    Raises:
        ConfigError: an unknown key, or a value out of range.
    """

    def __init__(self, place: str, changes: Mapping[str, Any] | None) -> None:
        self._place, self._changes = f"{place}: sampling", dict(changes or {})
        self._last = (Sampling(), make_sampling(self._place, Sampling(), self._changes))

    def __call__(self, run: Sampling) -> Sampling:
        """`run` with the changes."""
        if run is not self._last[0]:  # one object for all plays of a run: made once
            self._last = (run, make_sampling(self._place, run, self._changes))
        return self._last[1]


def split_reasoning(text: str) -> tuple[str | None, str]:
    """What a reasoning model wrote in think tags, or None, and its answer.

    A chat template may open the tag itself, so that the text has only its end; and max_tokens may cut a text in the middle
    of its reasoning, which leaves no answer.
    """
    head, end, answer = text.partition("</think>")
    if end:
        return head.replace("<think>", "", 1).strip(), answer.lstrip()
    if text.lstrip().startswith("<think>"):
        return text.lstrip().removeprefix("<think>").strip(), ""
    return None, text


def without_reasoning(place: str, done: Completion) -> Completion:
    """The completion, with the part in think tags as its `reasoning`.

    Raises:
        AgentError: max_tokens ended it before the answer.
    """
    if done.reasoning is None:
        reasoning, text = split_reasoning(done.text)
        if reasoning is None:
            return done
        done = replace(done, text=text, reasoning=reasoning)
    if not done.text.strip():
        raise AgentError(
            f"{place}: nothing but reasoning (finish_reason {done.finish_reason}); raise max_tokens",
            done,
        )
    return done


def with_system(messages: Sequence[Message], system_prompt: str | None) -> tuple[Message, ...]:
    """The messages with an agent's own system prompt in front, joined to the conversation's where it has one."""
    messages = as_messages(messages)
    if not system_prompt:
        return messages
    if messages and messages[0].role == "system":
        return (Message("system", f"{system_prompt}\n\n{messages[0].content}"), *messages[1:])
    return (Message("system", system_prompt), *messages)


def storable(done: Completion) -> Completion:
    """The completion as any file can hold it: see `whole_text`."""
    if done.text.isascii() and not done.reasoning:
        return done
    reasoning = None if done.reasoning is None else whole_text(done.reasoning)
    return replace(done, text=whole_text(done.text), reasoning=reasoning)


def whole_text(text: str) -> str:
    """Without halves of surrogate pairs: a server that cuts an emoji in two sends one, and no file can hold it."""
    return text.encode("utf-8", "replace").decode("utf-8")
