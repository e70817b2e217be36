"""What a run may spend: tokens, FLOPs, money. Reached, it ends in order, and a later run with more goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.types import AgentCounts, Play
from toa_trl.utils.registry import check_number, construct

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Price:
    """What an agent's tokens cost, in the user's currency per million tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def __call__(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of one or many calls."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True, slots=True)
class Limits:
    """Over the whole run, earlier sessions included. None: no limit. Plays in flight when one is reached still count."""

    max_tokens: float | None = None  # prompt and completion tokens of all agents
    max_flops: float | None = None  # of agents and reward model, as far as they are known
    max_cost: float | None = None  # by the agents' prices


class Meter:
    """Counts what a run spends.

    Args:
        limits: a mapping as of `Limits`.
        prices: per agent, a mapping as of `Price`; agents without one cost nothing.

    Raises:
        ConfigError: an unknown key, a number that is not > 0 (of a price: < 0), or max_cost where no agent has a price.
    """

    def __init__(self, limits: Mapping[str, Any], prices: Mapping[str, Mapping[str, Any]]) -> None:
        self.limits = construct("limits", Limits, params=limits)
        for name, value in asdict(self.limits).items():
            if value is not None:
                check_number(f"limits: {name}", value, at_least=0, above=True)
        self.prices = {
            name: construct(f"agent {name!r}: price", Price, params=price)
            for name, price in prices.items()
        }
        for name, price in self.prices.items():
            for field in fields(price):
                check_number(
                    f"agent {name!r}: price: {field.name}", getattr(price, field.name), at_least=0
                )
        if self.limits.max_cost is not None and not self.prices:
            raise ConfigError(
                "limits: max_cost needs the price of an agent: price: {prompt: 0.1, completion: 0.4}"
            )
        self._limited = self.limits != Limits()
        self.tokens, self.flops, self.cost = 0, 0.0, 0.0
        self._blind = False  # a play without FLOPs was seen

    def resume(self, counts: Mapping[str, AgentCounts], reward_flops: float) -> None:
        """Begin with what the journal holds instead of nothing."""
        self.tokens = sum(c.prompt_tokens + c.completion_tokens for c in counts.values())
        self.flops = sum(c.flops for c in counts.values()) + reward_flops
        self.cost = sum(
            self._price(name, c.prompt_tokens, c.completion_tokens) for name, c in counts.items()
        )

    def add(self, play: Play) -> None:
        """One play more, scored or failed."""
        done = play.completion
        if done is None:
            return
        self.tokens += done.prompt_tokens + done.completion_tokens
        self.flops += (done.flops or 0.0) + (play.reward_flops or 0.0)
        self.cost += self._price(play.action.agent, done.prompt_tokens, done.completion_tokens)
        if done.flops is None and self.limits.max_flops is not None and not self._blind:
            self._blind = True
            logger.warning(
                "limits: the FLOPs of agent %r are not known; give its entry a config",
                play.action.agent,
            )

    @property
    def reached(self) -> str | None:
        """Which limit is reached, and what was spent; None while none is."""
        if not self._limited:
            return None
        spent = {"max_tokens": self.tokens, "max_flops": self.flops, "max_cost": self.cost}
        for name, value in spent.items():
            limit = getattr(self.limits, name)
            if limit is not None and value >= limit:
                return f"{name} of {limit:,.6g} is reached ({self.spent})"
        return None

    @property
    def spent(self) -> str:
        """In words."""
        cost = f", a cost of {self.cost:,.4g}" if self.prices else ""
        return f"{self.tokens:,} tokens, {self.flops:.3g} FLOPs{cost}"

    def _price(self, agent: str, prompt_tokens: int, completion_tokens: int) -> float:
        return self.prices[agent](prompt_tokens, completion_tokens) if agent in self.prices else 0.0
