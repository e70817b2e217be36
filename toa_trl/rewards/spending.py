"""Count what reward models spend on servers: the run that asks them listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from toa_trl.agents.base import Price
from toa_trl.agents.completions import estimated_tokens
from toa_trl.types import Message, Spending, as_messages

Listener = Callable[[Spending], None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Report to a listener what reward models spend in this context and its tasks."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def also_listening(listener: Listener) -> Iterator[None]:
    """Report to a listener as `listening` does, and further to the one that listens already."""
    outer = _LISTENER.get()

    def report(spent: Spending) -> None:
        listener(spent)
        if outer is not None:
            outer(spent)

    with listening(report):
        yield


def spend(
    prompt_tokens: int,
    completion_tokens: int = 0,
    price: Price | None = None,
    is_estimated: bool = False,
) -> None:
    """Report the tokens of one call to a reward model, also of one that gave no score."""
    listener = _LISTENER.get()
    if listener is not None:
        num_tokens = prompt_tokens + completion_tokens
        cost = price.of(prompt_tokens, completion_tokens) if price else 0.0
        listener(Spending(num_tokens, cost, num_tokens if is_estimated else 0))


def estimated_conversation(messages: Sequence[Message | Mapping[str, Any]], response: str) -> int:
    """Return about how many tokens a reward model reads for a response."""
    texts = [message.text for message in as_messages(messages)]
    return estimated_tokens("\n".join((*texts, response)))
