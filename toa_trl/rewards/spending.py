"""Count what reward models spend on servers: the run that asks them listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import astuple, dataclass

from toa_trl.agents.base import Price


@dataclass(frozen=True, slots=True)
class Spending:
    """What calls of reward models have cost."""

    tokens: int = 0  # prompt and completion tokens
    cost: float = 0.0  # by their prices

    def __add__(self, other: Spending) -> Spending:
        """Return the sum."""
        return Spending(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


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


def spend(prompt_tokens: int, completion_tokens: int = 0, price: Price | None = None) -> None:
    """Report the tokens of one call to a reward model, also of one that gave no score."""
    listener = _LISTENER.get()
    if listener is not None:
        cost = price.of(prompt_tokens, completion_tokens) if price else 0.0
        listener(Spending(prompt_tokens + completion_tokens, cost))
