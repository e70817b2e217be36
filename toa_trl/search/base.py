"""Base class of all searches: play indices, the budget, invalid rewards, and failing agents."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from toa_trl.errors import ConfigError, SearchError
from toa_trl.types import Action, Play
from toa_trl.utils.config import PositiveInt, validate

Cost = Literal["plays", "flops", "price"]
"""What a play costs: all plays the same, the FLOPs of its agent, or the price of its tokens."""
MAX_GAPS = 10_000_000  # plays that were in flight at a stop, or were lost; more is no journal
MAX_FAILURES = 3  # consecutive failures after which an agent is skipped while another one works


class Search(ABC):
    """Decide which play comes next, as a pure state machine over one prompt.

    No I/O, no clock, no global randomness. A subclass implements `choose`, and the other hooks
    where it keeps state of its own.

    Args:
        agents: names of the agents, in the order in which ties are broken.
        budget: number of scored plays to spend.
        seed: seed of the search's own random generator, where it has one.

    Raises:
        ConfigError: there are no agents, two have the same name, or the budget is below 1.
    """

    tau: float | None = None
    """Temperature with which rewards are squashed; None in a search that does not squash them."""
    width: int | None = None
    """Responses that a depth of the search tree holds; None in a search without such a bound."""

    cost: Cost = "plays"
    """What `tell` is given as the cost of a play."""

    def __init__(self, agents: Sequence[str], budget: PositiveInt, seed: int = 0) -> None:
        agents = [agents] if isinstance(agents, str) else list(agents)
        if not agents:
            raise ConfigError("agents: a search needs at least one agent")
        if len(set(agents)) < len(agents):
            raise ConfigError(f"agents: two agents have the same name in {agents}")
        self.agents = agents
        self.budget: int = validate(PositiveInt, budget, "budget")
        self.actions: dict[int, Action] = {}  # all plays asked for that did not fail
        self.rewards: dict[int, float] = {}  # play -> raw reward
        self.costs: dict[int, float] = {}  # play -> its cost, >= 0; of scored plays
        self._gaps: list[int] = []  # indices to ask for again: they were in flight at a stop
        self._next_index = 0
        self._failures = dict.fromkeys(agents, 0)  # consecutive
        self._away: frozenset[str] = frozenset()
        # agents that are away, or keep failing while another one works
        self._passed_over: frozenset[str] = frozenset()

    @property
    def done(self) -> bool:
        """Whether the budget is spent: `budget` plays are scored."""
        return len(self.rewards) >= self.budget

    @property
    def all_failing(self) -> bool:
        """Whether every available agent has failed MAX_FAILURES times in a row."""
        available = self._failures.keys() - self._away if self._away else self._failures
        for agent in available:
            if self._failures[agent] < MAX_FAILURES:
                return False
        return bool(available)

    @property
    def available(self) -> list[str]:
        """Agents that `choose` may take: those that are not away and do not keep failing."""
        return [agent for agent in self.agents if agent not in self._passed_over]

    @property
    def away(self) -> frozenset[str]:
        """Agents whose servers are unavailable; set before `ask`, which takes the others."""
        return self._away

    @away.setter
    def away(self, agents: frozenset[str]) -> None:
        if agents != self._away:
            for agent in self._failures.keys() & (self._away - agents):
                self._failures[agent] = 0  # its server was restarted, and may be repaired
            self._away = agents
            self._update_passed_over()

    def ask(self, n: int = 1) -> list[tuple[int, Action]]:
        """Return up to `n` plays that may run at once, with their indices.

        The list is empty while the search waits for rewards or for an agent, and when it is done.
        """
        asked: list[tuple[int, Action]] = []
        while len(asked) < n and len(self.actions) < self.budget:
            index = self._gaps[0] if self._gaps else self._next_index
            action = self.choose(index)
            if action is None:
                break
            if self._gaps:
                self._gaps.pop(0)
            else:
                self._next_index += 1
            self.actions[index] = action
            asked.append((index, action))
        return asked

    def tell(self, play: int, reward: float, cost: float = 1.0) -> None:
        """Record the raw reward of a play that was asked for; plays come in any order.

        Args:
            play: its index.
            reward: its raw reward.
            cost: what it cost, >= 0, in the unit of `Search.cost`.

        Raises:
            SearchError: the play is not in flight, or its reward is not finite. Nothing changes.
        """
        self._check_in_flight(play)
        if not math.isfinite(reward):
            raise SearchError(
                f"play {play}: the reward must be finite, not {reward}; call fail(play) instead"
            )
        self.rewards[play], self.costs[play] = float(reward), cost
        agent = self.actions[play].agent
        if self._failures.get(agent):
            self._failures[agent] = 0
            self._update_passed_over()
        self.scored(play, float(reward))

    def fail(self, play: int) -> None:
        """Record that a play gave no response; a play with another index replaces it.

        Raises:
            SearchError: the play is not in flight.
        """
        self._check_in_flight(play)
        action = self.actions.pop(play)
        if action.agent in self._failures:  # not an agent of earlier plays that is not used now
            self._failures[action.agent] += 1
            self._update_passed_over()
        self.failed(play, action)

    def withdraw(self, play: int) -> None:
        """Record that a play was never made; its index is asked for again.

        Raises:
            SearchError: the play is not in flight.
        """
        self._check_in_flight(play)
        self.failed(play, self.actions.pop(play))
        self._gaps = sorted([*self._gaps, play])

    def restore(
        self, plays: Iterable[Play], cost_of: Callable[[Play], float] = lambda play: 1.0
    ) -> None:
        """Rebuild the state of a fresh search from recorded plays, scored and failed.

        Missing indices below the highest were in flight; they are asked for first. Where all
        agents were failing, their failures are forgotten: a resumed run tries each of them again.

        Args:
            plays: in any order.
            cost_of: returns what `tell` was given as the cost of a play.

        Raises:
            SearchError: the search is not fresh, or the recorded plays do not fit together.
        """
        if self._next_index:
            raise SearchError("restore: this search was asked already; restore a fresh one")
        recorded = sorted(plays, key=lambda play: play.index)
        waiting: list[Play] = []
        if recorded:
            if recorded[-1].index - len(recorded) > MAX_GAPS:
                raise SearchError(f"restore: play {recorded[-1].index} follows too many gaps")
            self._next_index = recorded[-1].index + 1
            self._gaps = sorted(set(range(self._next_index)) - {play.index for play in recorded})
        for recorded_play in recorded:
            waiting.append(recorded_play)
            # a play that was asked for again after a stop may have seen plays of higher indices
            while possible := self._first_possible(waiting):
                waiting.remove(possible)
                self._restore_one(possible, cost_of)
        if waiting:
            play = waiting[0]
            raise SearchError(f"restore: play {play.index} ({play.action}) does not fit the others")
        if self.all_failing:
            self._failures = dict.fromkeys(self._failures, 0)
            self._update_passed_over()

    def _first_possible(self, waiting: list[Play]) -> Play | None:
        for play in waiting:
            if self.rewards.keys() >= _seen(play.action):
                return play
        return None

    def _restore_one(self, play: Play, cost_of: Callable[[Play], float]) -> None:
        if play.action.agent not in self.agents:
            raise SearchError(
                f"restore: play {play.index} ({play.action}) is by none of {self.agents}"
            )
        self.actions[play.index] = play.action
        self.replay(play.index, play.action)
        if play.reward is None:
            self.fail(play.index)
        else:
            self.tell(play.index, play.reward, cost_of(play))

    def _check_in_flight(self, play: int) -> None:
        if play not in self.actions:
            raise SearchError(f"play {play} is not in flight: it was never asked for, or it failed")
        if play in self.rewards:
            raise SearchError(f"play {play} already has a reward")

    def _update_passed_over(self) -> None:
        failing = set[str]()
        if not self.all_failing:
            failing = {a for a, failures in self._failures.items() if failures >= MAX_FAILURES}
        self._passed_over = self._away | failing

    @abstractmethod
    def choose(self, index: int) -> Action | None:
        """Return the next action and count it as in flight; None to wait for rewards."""

    def replay(self, index: int, action: Action) -> None:  # noqa: B027 (a hook)
        """Count a recorded action as in flight, as if it had just been chosen."""

    def scored(self, index: int, reward: float) -> None:  # noqa: B027
        """Take note of the raw reward of a play in flight."""

    def failed(self, index: int, action: Action) -> None:  # noqa: B027
        """Take note that a play in flight failed or was withdrawn."""


def first_difference(
    make_one: Callable[[], Search], make_other: Callable[[], Search], num_plays: int
) -> int | None:
    """Return the first of `num_plays` plays at which two searches choose differently, or None.

    Both are told the same random rewards, on several scales.
    """
    for seed in range(6):
        rng, one, other = random.Random(seed), make_one(), make_other()
        for play in range(num_plays):
            asked = one.ask()
            if asked != other.ask():
                return play
            reward = rng.gauss(0, 10.0 ** (seed % 3 - 1))
            for index, _ in asked:
                one.tell(index, reward)
                other.tell(index, reward)
    return None


def _seen(action: Action) -> set[int]:
    return {*action.refs} if action.parent is None else {*action.refs, action.parent}
