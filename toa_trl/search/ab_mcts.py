"""AB-MCTS-A, adaptive branching Monte Carlo tree search (arXiv 2503.04412, section 3.3).

At each response, Thompson sampling decides whether the next play widens the tree (a new answer or
refinement here) or goes deeper (below one of the responses already there). The agent of a new
response is sampled from all rewards of each agent, as in the paper's multi-LLM variant.

A play in flight counts only once its reward arrives; the draws keep plays in flight apart. Each
choice draws from a generator of its own, seeded with the play's index, so a restored search makes
the choices of one that was never interrupted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from toa_trl.search.base import Search
from toa_trl.types import Action
from toa_trl.utils.config import PositiveFloat, PositiveInt

PRIOR_VARIANCE = 0.1  # of rewards in [0, 1]; the paper's normal-inverse-gamma prior


@dataclass(slots=True, eq=False)
class _Rewards:
    """Count, mean and sum of squared deviations of rewards in [0, 1]."""

    n: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    def add(self, reward: float) -> None:
        self.n += 1
        change = reward - self.mean
        self.mean += change / self.n
        self.deviations += change * (reward - self.mean)


@dataclass(slots=True, eq=False)
class _Node:
    """The prompt, or a scored response."""

    play: int | None = None  # None: the prompt
    above: _Node | None = None
    depth: int = -1  # of its response
    rewards: _Rewards = field(default_factory=_Rewards)  # its own and those of all below it
    wider: _Rewards = field(default_factory=_Rewards)  # of the responses directly below
    deeper: _Rewards = field(default_factory=_Rewards)  # of the responses further below
    below: list[_Node] = field(default_factory=list)


def draw_gaussian(rewards: _Rewards, rng: random.Random) -> float:
    """Draw a mean from its posterior: normal-inverse-gamma, prior mean 0 with one observation."""
    n, mean = rewards.n, rewards.mean
    degrees = 1 + n
    scale = PRIOR_VARIANCE + rewards.deviations + n * mean * mean / (1 + n)
    variance = scale / 2 / max(rng.gammavariate(degrees / 2, 1.0), 1e-300)
    return rng.gauss(n * mean / (1 + n), math.sqrt(variance / (1 + n)))


def draw_beta(rewards: _Rewards, rng: random.Random) -> float:
    """Draw a success rate from its posterior: beta, with Jeffreys' prior."""
    total = rewards.n * rewards.mean
    return rng.betavariate(0.5 + total, max(0.5 + rewards.n - total, 1e-9))


DRAWS: dict[str, Callable[[_Rewards, random.Random], float]] = {
    "gaussian": draw_gaussian,
    "beta": draw_beta,
}


class ABMCTS(Search):
    """Widen or deepen a tree of responses by Thompson sampling, as AB-MCTS-A.

    No choice depends on the budget.

    Args:
        agents: names of the agents.
        budget: number of scored plays to spend.
        seed: seed of the draws.
        distribution: posterior of the mean reward: gaussian (normal-inverse-gamma) or beta.
        tau: temperature of the squashing s = 1 / (1 + exp(-r / tau)), as in toa; null: rewards are
            used as they are, and values outside [0, 1] are clipped.
    """

    tau: float | None

    def __init__(
        self,
        agents: Sequence[str],
        budget: PositiveInt,
        seed: int = 0,
        *,
        distribution: Literal["gaussian", "beta"] = "gaussian",
        tau: PositiveFloat | None = 0.1,
    ) -> None:
        super().__init__(agents, budget, seed)
        self.tau, self._seed = tau, seed
        self._draw = DRAWS[distribution]
        self._prompt = _Node()
        self._of_agents = {agent: _Rewards() for agent in self.agents}
        self._in_flight: dict[int, _Node] = {}  # play -> node below which it is
        self._responses: dict[int, _Node] = {}

    def choose(self, index: int) -> Action | None:
        """See `Search`."""
        agents = self.available
        if not agents:
            return None
        rng = random.Random(f"{self._seed}/{index}")
        node = self._prompt
        while node.below and self._draw(node.deeper, rng) > self._draw(node.wider, rng):
            drawn = [self._draw(response.rewards, rng) for response in node.below]
            node = node.below[drawn.index(max(drawn))]
        agent = agents[0]
        if len(agents) > 1:
            agent = max(agents, key=lambda name: self._draw(self._of_agents[name], rng))
        self._in_flight[index] = node
        if node.play is None:
            return Action(agent)
        depth = node.depth + 1
        return Action(agent, "refine", refs=(node.play,), parent=node.play, depth=depth)

    def replay(self, index: int, action: Action) -> None:
        """See `Search`."""
        parent = action.parent
        self._in_flight[index] = self._prompt if parent is None else self._responses[parent]

    def scored(self, index: int, reward: float) -> None:
        """Add the response below its node, and its reward to every node above it."""
        above = self._in_flight.pop(index)
        value = min(max(reward, 0.0), 1.0) if self.tau is None else squash(reward, self.tau)
        response = _Node(index, above, above.depth + 1)
        response.rewards.add(value)
        above.below.append(response)
        above.wider.add(value)
        self._responses[index] = response
        self._of_agents[self.actions[index].agent].add(value)
        node: _Node | None = above
        while node is not None:
            node.rewards.add(value)
            if node.above is not None:
                node.above.deeper.add(value)
            node = node.above

    def failed(self, index: int, action: Action) -> None:
        """See `Search`."""
        del self._in_flight[index]


def squash(reward: float, tau: float) -> float:
    """Return 1 / (1 + exp(-reward / tau)), without overflow."""
    return 0.5 + 0.5 * math.tanh(reward / tau / 2)
