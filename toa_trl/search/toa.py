"""TOA, Tree Search-based Orchestrated Agents (arXiv 2412.17061, section 3.2).

Monte Carlo tree search over agents. The levels of the tree alternate: root (the prompt), arms
(agent nodes), responses, arms, and so on.

With one play at a time it makes the choices of the published implementation. With several plays in
flight, a play in flight counts as a visit and as a response of its depth, without a reward; an arm
that has only plays in flight is valued like the draft above it, so that plays spread; and when
nothing can be selected before a reward arrives, the search waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from toa_trl.errors import ConfigError
from toa_trl.search.base import Cost, Search
from toa_trl.types import Action
from toa_trl.utils.config import NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass(slots=True, eq=False)
class _Node:
    """The values that UCB reads."""

    visits: int = 1  # plays that passed through it, in flight included, + 1
    n: int = 0  # rewards that passed through it
    total: float = 0.0  # their squashed sum


@dataclass(slots=True, eq=False)
class _Arm(_Node):
    """An agent node."""

    agent: str = ""
    above: _Response | None = None  # None under the root
    depth: int = 0
    fresh: bool = False  # a fresh arm answers the prompt alone, though it hangs under a response
    best: Sequence[_Response] = ()  # its top_k responses by squashed reward, best first
    improved: bool = False  # a response of its own has a higher squashed reward than the one above


@dataclass(slots=True, eq=False)
class _Response(_Node):
    """A scored response node."""

    play: int = 0
    arm: _Arm = field(default_factory=_Arm)  # above it
    squashed: float = 0.0  # in [0, 1]
    # refine arms, then fresh arms; empty until selection first arrives here
    arms: list[_Arm] = field(default_factory=list)


_AnyNode = TypeVar("_AnyNode", bound=_Node)


Share = Annotated[float, Field(gt=0, lt=1)]


class TOA(Search):
    """Search a tree of agents and their responses with UCB, as in the paper.

    Args:
        agents: names of the agents, in the order in which ties are broken.
        budget: number N of scored plays to spend.
        seed: not used: the search draws nothing.
        width: responses that a depth holds before its arms can be full, at least the number of
            agents; or a share of the budget, such as 0.5; or anytime: the number of
            agents, so that no choice depends on the budget. Default: N // 3, as in the paper.
        alpha: weight of exploration (paper: 0.01 for alignment, 0.05 for translation).
        tau: temperature of the squashing s = 1 / (1 + exp(-r / tau)) (paper: 0.1 for ArmoRM,
            1 for CometKiwi).
        top_k: number of an arm's best responses that selection may descend to (paper: 1).
        cost: what the gain of a play is divided by. plays: every play costs the same, as in the
            paper. flops: the FLOPs of its agent. price: the price of its agent. An agent counts
            with what its answers to the prompt cost, relative to the cheapest agent.

    Raises:
        ConfigError: width is smaller than the number of agents.
    """

    tau: float
    width: int

    def __init__(
        self,
        agents: Sequence[str],
        budget: PositiveInt,
        seed: int = 0,
        *,
        width: PositiveInt | Share | Literal["anytime"] | None = None,
        alpha: NonNegativeFloat = 0.01,
        tau: PositiveFloat = 0.1,
        top_k: PositiveInt = 1,
        cost: Cost = "plays",
    ) -> None:
        super().__init__(agents, budget)
        num_agents = len(self.agents)
        if width == "anytime":
            width = num_agents
        elif width is None:
            width = max(num_agents, budget // 3)
        if isinstance(width, float):
            width = max(num_agents, int(width * budget))
        if width < num_agents:
            raise ConfigError(
                f"search_params.width: must be >= the number of agents ({num_agents}), not {width}"
            )
        self.width, self.alpha, self.tau, self.top_k = width, alpha, tau, top_k
        self.cost = cost
        # where costs are weighed:
        self._answered: dict[str, list[float]] = {}  # agent -> costs of its answers
        self._gains: list[float] = []  # of plays below a response: squashed, >= 0
        self._roots = [_Arm(agent=agent) for agent in self.agents]
        # depth -> responses, in flight included; a counter keeps the cost of a play constant
        self._num_at_depth: dict[int, int] = {}
        self._in_flight: dict[int, _Arm] = {}
        self._responses: dict[int, _Response] = {}

    def choose(self, index: int) -> Action | None:
        """See `Search`."""
        t = len(self.rewards) + len(self._in_flight) + 1
        arm = self._select(self._roots, 2 * math.log(t), prior=0.5)
        if arm is None:
            return None
        self._book(index, arm)
        if arm.above is None:
            return Action(arm.agent)
        above = arm.above.play
        if arm.fresh:
            return Action(arm.agent, parent=above, depth=arm.depth)
        return Action(arm.agent, "refine", refs=(above,), parent=above, depth=arm.depth)

    def _select(self, arms: list[_Arm], two_ln_t: float, prior: float) -> _Arm | None:
        """Descend along the largest UCB to an arm that is not full (step 1, selection).

        Returns:
            None while no arm can be selected before a reward arrives.
        """
        if self._passed_over:
            arms = [arm for arm in arms if arm.agent not in self._passed_over]
        for arm in self._by_ucb(arms, two_ln_t, prior):
            if not self._full(arm):
                return arm
            for response in self._by_ucb(arm.best, two_ln_t, prior):
                below = self._arms_below(response)
                selected = self._select(below, two_ln_t, prior=response.squashed)
                if selected is not None:
                    return selected
        return None

    def _by_ucb(
        self, nodes: Sequence[_AnyNode], two_ln_t: float, prior: float
    ) -> Iterable[_AnyNode]:
        """Return nodes by UCB = total / n + alpha * sqrt(2 ln t / visits), the largest first.

        Nodes of equal UCB keep their order.
        """
        return nodes if len(nodes) < 2 else self._sorted(nodes, two_ln_t, prior)

    def _sorted(
        self, nodes: Sequence[_AnyNode], two_ln_t: float, prior: float
    ) -> Iterator[_AnyNode]:
        values = [
            (node.total / node.n if node.n else prior)
            + self.alpha * math.sqrt(two_ln_t / node.visits)
            if node.n or node.visits > 1
            else math.inf
            for node in nodes
        ]
        if self.cost != "plays":
            values = self._per_cost(nodes, values, prior, self.alpha * math.sqrt(two_ln_t))
        yield nodes[values.index(max(values))]  # callers rarely need a second node
        # sorted with reverse=True is stable: nodes of equal UCB keep their order
        order = sorted(range(len(nodes)), key=values.__getitem__, reverse=True)
        yield from (nodes[at] for at in order[1:])

    def _per_cost(
        self, nodes: Sequence[_AnyNode], values: list[float], prior: float, bonus: float
    ) -> list[float]:
        """Return the values with the gain of each play divided by the relative cost c of its agent.

        With the base b, which is the reward of the draft, or the lowest value of an answer:
        value -> b + (value - b) / c for a gain, b + c (value - b) for a loss. An arm without plays
        gains what refinements of this tree gain on average, plus the bonus of exploration. To
        descend through a full arm is no play of its agent, and stays as it is.
        """
        weighed = []
        for node, value in zip(nodes, values, strict=True):
            if isinstance(node, _Arm) and not self._full(node):
                base, cost = prior if node.above else min(values), self._relative_cost(node.agent)
                if value == math.inf and cost > 1:
                    value = base + (fmean(self._gains) if self._gains else 1 - base) + bonus
                if cost > 1 and value != base:
                    value = base + (value - base) * (cost if value < base else 1 / cost)
            weighed.append(value)
        return weighed

    def _relative_cost(self, agent: str) -> float:
        """Return what the agent's answers cost, relative to the cheapest agent's, >= 1."""
        means = {name: fmean(costs) for name, costs in self._answered.items()}
        least = min(means.values(), default=0.0)
        mean = means.get(agent, least)
        if math.isclose(mean, least):
            return 1.0
        return mean / least if least else math.inf

    def _full(self, arm: _Arm) -> bool:
        return self._num_at_depth.get(arm.depth, 0) >= self.width and (
            arm.above is None or arm.improved
        )

    def _arms_below(self, response: _Response) -> list[_Arm]:
        if not response.arms:
            depth = response.arm.depth + 1
            for agent in self.agents:
                response.arms.append(_Arm(agent=agent, above=response, depth=depth))
            for root in self._roots:
                fresh = _Arm(
                    root.visits, root.n, root.total, root.agent, response, depth, fresh=True
                )
                response.arms.append(fresh)
        return response.arms

    def _book(self, index: int, arm: _Arm) -> None:
        self._in_flight[index] = arm
        self._num_at_depth[arm.depth] = self._num_at_depth.get(arm.depth, 0) + 1
        for node in _path(arm):
            node.visits += 1

    def replay(self, index: int, action: Action) -> None:
        """See `Search`."""
        arms = self._roots
        if action.parent is not None:
            parent = self._responses[action.parent]
            # selection descended along this path, and created the arms of each response on it
            for node in reversed([parent, *_path(parent.arm)]):
                if isinstance(node, _Response):
                    arms = self._arms_below(node)
        fresh = action.parent is not None and not action.refs
        matching = (arm for arm in arms if arm.agent == action.agent and arm.fresh == fresh)
        self._book(index, next(matching))

    def scored(self, index: int, reward: float) -> None:
        """Add the response below its arm and propagate its reward to the root (step 3)."""
        arm = self._in_flight.pop(index)
        x = reward / self.tau
        squashed = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
        response = _Response(play=index, arm=arm, squashed=squashed)
        self._responses[index] = response
        arm.improved |= arm.above is not None and squashed > arm.above.squashed
        if self.cost != "plays":
            self._take_note_of_costs(index, arm, squashed)
        # among equals (saturated squashing) the published implementation takes the latest
        arm.best = sorted([response, *arm.best], key=lambda r: -r.squashed)[: self.top_k]
        for node in _path(arm):
            node.n += 1
            node.total += squashed

    def _take_note_of_costs(self, index: int, arm: _Arm, squashed: float) -> None:
        if arm.above is None or arm.fresh:
            self._answered.setdefault(arm.agent, []).append(self.costs[index])
        if arm.above is not None:
            self._gains.append(max(0.0, squashed - arm.above.squashed))

    def failed(self, index: int, action: Action) -> None:
        """See `Search`."""
        arm = self._in_flight.pop(index)
        self._num_at_depth[arm.depth] -= 1
        for node in _path(arm):
            node.visits -= 1


def _path(arm: _Arm) -> Iterator[_Node]:
    """Yield the nodes from an arm up to the root."""
    node: _Arm | None = arm
    while node is not None:
        yield node
        if node.above is None:
            return
        yield node.above
        node = node.above.arm
