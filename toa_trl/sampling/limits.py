"""What a run may spend: tokens, FLOPs, money; at a limit it stops gracefully and can be resumed."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from toa_trl.agents.base import Price, price_of
from toa_trl.errors import ConfigError
from toa_trl.rewards.base import RewardModel
from toa_trl.rewards.spending import listening
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.runner import Observer
from toa_trl.types import AgentCounts, Play, Prompt, Spending
from toa_trl.utils.config import Config, PositiveFloat, validate

logger = logging.getLogger(__name__)


class Limits(Config):
    """Limits of a whole run, earlier sessions included.

    At a limit, plays in flight are finished and count. A run exceeds a limit by less than what
    prompts_in_flight x plays_in_flight plays spend: one play per lane. Calls that were in flight
    when a run was killed are unknown and do not count: again one play per lane for each kill.
    """

    max_tokens: PositiveFloat | None = None
    """Prompt and completion tokens of all agents, judges and reward models on servers."""
    max_flops: PositiveFloat | None = None
    """FLOPs of agents and reward model, as far as they are known."""
    max_cost: PositiveFloat | None = None
    """Cost by the prices of agents, judges and reward models on servers."""


class Meter(Observer):
    """Counts what a run spends.

    Args:
        limits: keys of `Limits`.
        reward_price: whether a judge has a price.
        prices: keys of `toa_trl.agents.base.Price`, by agent; agents without a price cost nothing.

    Raises:
        ConfigError: a key is unknown, a number is out of range, or max_cost is given but no price.
    """

    def __init__(
        self,
        limits: Mapping[str, Any],
        prices: Mapping[str, Mapping[str, Any]],
        reward_price: bool = False,
    ) -> None:
        self.limits: Limits = validate(Limits, limits, "limits")
        self.prices: dict[str, Price] = {
            name: validate(Price, price, f"agents.{name}.price") for name, price in prices.items()
        }
        if self.limits.max_cost is not None and not self.prices and not reward_price:
            raise ConfigError(
                "limits.max_cost: needs an agent with a price, such as "
                "price: {prompt: 0.1, completion: 0.4}"
            )
        self._limited = self.limits != Limits()
        self.tokens, self.flops, self.cost = 0, 0.0, 0.0
        self.reward = Spending()
        self._blind = False  # a play without FLOPs was seen
        self._estimated: set[str] = set()  # whose tokens were estimated

    def resume(self, counts: Mapping[str, AgentCounts], reward_flops: float) -> None:
        """Add what the journal already holds."""
        self.tokens = sum(c.prompt_tokens + c.completion_tokens for c in counts.values())
        self.flops = sum(c.flops for c in counts.values()) + reward_flops
        self.cost = sum(
            self._price(name, c.prompt_tokens, c.completion_tokens) for name, c in counts.items()
        )

    def warn_at_start(
        self, agents: Iterable[str], reward: RewardModel, counts: Mapping[str, AgentCounts]
    ) -> None:
        """Warn of what is known not to count exactly towards the limits.

        Args:
            agents: names of all agents.
            reward: the reward model.
            counts: what the journal already holds.
        """
        free = [f"agent {name!r}" for name in agents if name not in self.prices]
        free += [f"reward {kind!r}" for kind, price in reward.prices if price is None]
        if free and self.limits.max_cost is not None:
            logger.warning(
                "limits.max_cost: %s without a price: what they cost does not count",
                ", ".join(free),
            )
        for name, count in counts.items():
            if count.num_estimated and self._limited:
                self._see_estimated(f"agent {name!r}")

    def add_reward(self, spent: Spending) -> None:
        """Count what a reward model spends."""
        self.reward += spent
        self.tokens += spent.tokens
        self.cost += spent.cost
        if spent.num_estimated and self._limited:
            self._see_estimated("the reward model")

    @contextmanager
    def counting_rewards(self, journal: Journal) -> Iterator[None]:
        """Count what reward models spend, and record it in the journal."""

        def add(spent: Spending) -> None:
            self.add_reward(spent)
            journal.set_reward_spending(self.reward)

        try:
            with listening(add):
                yield
        finally:
            journal.append_all(())  # what was spent since the last play

    def played(self, prompt: Prompt, play: Play) -> None:
        """Count one play, scored or failed."""
        done = play.completion
        if done is None:
            return
        self.tokens += done.prompt_tokens + done.completion_tokens
        self.flops += (done.flops or 0.0) + (play.reward_flops or 0.0)
        self.cost += self._price(play.action.agent, done.prompt_tokens, done.completion_tokens)
        if done.tokens_estimated:
            self._see_estimated(f"agent {play.action.agent!r}")
        if done.flops is None and self.limits.max_flops is not None and not self._blind:
            self._blind = True
            logger.warning(
                "limits: the FLOPs of agent %r are unknown; add `config` to its entry",
                play.action.agent,
            )

    def is_reached(self) -> bool:
        """Return whether a limit is reached."""
        return self._limited and self.reached is not None

    @property
    def reached(self) -> str | None:
        """Which limit is reached and what was spent, or None."""
        spent = {"max_tokens": self.tokens, "max_flops": self.flops, "max_cost": self.cost}
        for name, value in spent.items():
            limit = getattr(self.limits, name)
            if limit is not None and value >= limit:
                return f"{name} of {limit:,.6g} is reached ({self.spent})"
        return None

    @property
    def spent(self) -> str:
        """What was spent, as text."""
        cost = f", a cost of {self.cost:,.4g}" if self.prices else ""
        return f"{self.tokens:,} tokens, {self.flops:.3g} FLOPs{cost}"

    def _see_estimated(self, who: str) -> None:
        if who not in self._estimated:
            self._estimated.add(who)
            logger.warning(
                "%s: its server reports no usage, or an implausible one; tokens are estimated from "
                "the texts, and limits and costs are approximate",
                who,
            )

    def _price(self, agent: str, prompt_tokens: int, completion_tokens: int) -> float:
        price = self.prices.get(agent)
        if price is None:
            return 0.0
        return price.of(prompt_tokens, completion_tokens)


def prices_of(agents: Iterable[Any]) -> dict[str, Any]:
    """Return the prices of agents, by name: of entries, and of objects that have one."""
    prices: dict[str, Any] = {}
    for agent in agents:
        if isinstance(agent, Mapping):
            if "price" in agent:
                prices[agent["name"]] = agent["price"]
            continue
        price = price_of(agent)
        if price is not None:
            prices[agent.name] = price
    return prices


def has_price(entry: Any) -> bool:
    """Return whether an entry or an object, or one nested in it, has a price."""
    if isinstance(entry, RewardModel):
        return any(price is not None for _, price in entry.prices)
    if isinstance(entry, Mapping):
        return bool(entry.get("price")) or any(map(has_price, entry.values()))
    return isinstance(entry, list | tuple) and any(map(has_price, entry))


def warn_of_silent(agents: Iterable[str], counts: Mapping[str, AgentCounts]) -> None:
    """Warn of agents that were asked and have no usable play."""
    silent = [name for name in agents if name in counts and not counts[name].num_scored]
    if silent:
        logger.warning("NO USABLE PLAY of %s: no data of it is in this run", ", ".join(silent))


def cost_of(
    configuration: Mapping[str, Any], counts: Mapping[str, AgentCounts], spending: Spending
) -> float | None:
    """Return the cost of all plays of a run, or None if nothing of it has a price."""
    prices = prices_of(configuration.get("agents") or ())
    meter = Meter({}, prices)
    meter.resume(counts, 0.0)
    meter.add_reward(spending)
    return meter.cost if prices or meter.reward.cost else None
