"""Who answers? One method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

from toa_trl.errors import ConfigError
from toa_trl.registry import check_keys, check_number, check_whole
from toa_trl.types import Completion, Message, Sampling, as_messages


class Agent(Protocol):
    """A language model with a name. An agent that holds connections may have a coroutine `aclose()` as well."""

    name: str

    async def generate(self, messages: Sequence[Message], *, sampling: Sampling, seed: int) -> Completion:
        """One play, one call, its own seed.

        Raises:
            AgentError: no response, after the agent's own retries; retries live here and nowhere else.
        """


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
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"{place}: stop must be a text or a list of texts, none of them empty, not {stop!r}")
    sampling = replace(base, **{**changes, "stop": tuple(texts)})
    check_number(f"{place}: temperature (0 is greedy)", sampling.temperature, at_least=0)
    check_whole(f"{place}: max_tokens", sampling.max_tokens, at_least=1)
    if not isinstance(sampling.top_p, int | float) or not 0 < sampling.top_p <= 1:
        raise ConfigError(f"{place}: top_p must be in (0, 1], not {sampling.top_p!r}")
    return sampling


def with_system(messages: Sequence[Message], system_prompt: str | None) -> tuple[Message, ...]:
    """The messages with an agent's own system prompt in front, joined to the conversation's where it has one."""
    messages = as_messages(messages)
    if not system_prompt:
        return messages
    if messages and messages[0].role == "system":
        return (Message("system", f"{system_prompt}\n\n{messages[0].content}"), *messages[1:])
    return (Message("system", system_prompt), *messages)
