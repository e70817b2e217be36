"""What every search shares: play indices, the budget, refusal of impossible rewards, and agents that keep failing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from toa_trl.errors import ConfigError, SearchError
from toa_trl.types import Action, Play
from toa_trl.utils.registry import check_whole

MAX_FAILURES = 3  # plays in a row after which an agent is passed over, as long as another one works


class Search(ABC):
    """Which play next? A pure state machine over one prompt: no I/O, no clock, no global randomness.

    Args:
        agents: names of the agents, in the order in which ties are broken.
        budget: number of scored plays to spend, >= 1.

    Raises:
        ConfigError: no agents, two of one name, or budget < 1.
    """

    def __init__(self, agents: Sequence[str], budget: int) -> None:
        agents = [agents] if isinstance(agents, str) else list(agents)
        if not agents:
            raise ConfigError("agents: a search needs at least one agent")
        if len(set(agents)) < len(agents):
            raise ConfigError(f"agents: two agents have one name in {agents}")
        check_whole("budget", budget, at_least=1)
        self.agents = agents
        self.tau: float | None = None  # scale on which a search squashes rewards; None: it does not
        self.budget = budget
        self._actions: dict[int, Action] = {}  # every play asked for and not failed
        self._rewards: dict[int, float] = {}  # raw
        self._gaps: list[
            int
        ] = []  # indices that a restore left out: in flight when the run stopped
        self._next_index = 0
        self._failures = dict.fromkeys(agents, 0)  # in a row
        self._away: frozenset[str] = frozenset()
        self._passed_over: frozenset[str] = (
            frozenset()
        )  # agents that are away, or keep failing while another one works

    @property
    def done(self) -> bool:
        """The budget is spent: `budget` plays are scored."""
        return len(self._rewards) >= self.budget

    @property
    def all_failing(self) -> bool:
        """Whether every agent that is not away has failed MAX_FAILURES plays in a row."""
        present = [
            failures for agent, failures in self._failures.items() if agent not in self._away
        ]
        return bool(present) and min(present) >= MAX_FAILURES

    @property
    def away(self) -> frozenset[str]:
        """Agents that cannot be asked for now: their servers are gone. Set before `ask`; it chooses among the others."""
        return self._away

    @away.setter
    def away(self, agents: frozenset[str]) -> None:
        if agents != self._away:
            for agent in self._failures.keys() & (self._away - agents):
                self._failures[agent] = (
                    0  # its server has been started again, and may have been mended
                )
            self._away = agents
            self._look_at_agents()

    def ask(self, n: int = 1) -> list[tuple[int, Action]]:
        """Up to `n` plays that may run at once, each with its index.

        Empty while it waits for rewards or for an agent that is away, and when done.
        """
        asked: list[tuple[int, Action]] = []
        while len(asked) < n and len(self._actions) < self.budget:
            index = self._gaps[0] if self._gaps else self._next_index
            action = self._choose(index)
            if action is None:
                break
            if self._gaps:
                self._gaps.pop(0)
            else:
                self._next_index += 1
            self._actions[index] = action
            asked.append((index, action))
        return asked

    def tell(self, play: int, reward: float) -> None:
        """The raw reward of a play that was asked for, in any order.

        Raises:
            SearchError: the play was never asked for, is told already, or its reward is NaN or infinite. Nothing changes.
        """
        self._check_in_flight(play)
        if not math.isfinite(reward):
            raise SearchError(
                f"play {play}: the reward is {reward}; a search needs a finite number (call fail(play))"
            )
        self._rewards[play] = float(reward)
        if self._failures[agent := self._actions[play].agent]:
            self._failures[agent] = 0
            self._look_at_agents()
        self._scored(play, float(reward))

    def fail(self, play: int) -> None:
        """The play gave no response; its budget is not spent, and another play, with another index, takes its place.

        Raises:
            SearchError: the play was never asked for, or is told already.
        """
        self._check_in_flight(play)
        action = self._actions.pop(play)
        self._failures[action.agent] += 1
        self._look_at_agents()
        self._failed(play, action)

    def withdraw(self, play: int) -> None:
        """The play was never made; its index is asked for again, as after a stop that lost it in flight.

        Raises:
            SearchError: the play was never asked for, or is told already.
        """
        self._check_in_flight(play)
        self._failed(play, self._actions.pop(play))
        self._gaps = sorted([*self._gaps, play])

    def restore(self, plays: Iterable[Play]) -> None:
        """Rebuild the state of a fresh search from recorded plays, scored and failed, without asking again.

        Indices below the highest that are not recorded were in flight; they are asked for first. A search that was
        stuck forgets its failures: a resumed run gives every agent another chance.

        Raises:
            SearchError: plays were asked for already, or the recorded plays do not fit one another.
        """
        if self._next_index:
            raise SearchError("restore: this search was asked already; restore a fresh one")
        recorded, waiting = sorted(plays, key=lambda play: play.index), list[Play]()
        if recorded:
            self._next_index = recorded[-1].index + 1
            self._gaps = sorted(set(range(self._next_index)) - {play.index for play in recorded})
        for each in recorded:
            waiting.append(each)
            # a play that was in flight at an earlier stop and was asked for again may have seen plays of higher indices
            while play := next(
                (play for play in waiting if self._rewards.keys() >= _seen(play.action)), None
            ):
                waiting.remove(play)
                if play.action.agent not in self.agents:
                    raise SearchError(
                        f"restore: play {play.index} ({play.action}) is by none of {self.agents}"
                    )
                self._actions[play.index] = play.action
                self._replay(play.index, play.action)
                if play.reward is None:
                    self.fail(play.index)
                else:
                    self.tell(play.index, play.reward)
        if waiting:
            raise SearchError(
                f"restore: play {waiting[0].index} ({waiting[0].action}) does not fit the other plays"
            )
        if self.all_failing:
            self._failures = dict.fromkeys(self._failures, 0)
            self._look_at_agents()

    def _check_in_flight(self, play: int) -> None:
        if play not in self._actions:
            raise SearchError(f"play {play} is not in flight: it was never asked for, or it failed")
        if play in self._rewards:
            raise SearchError(f"play {play} was told already")

    def _look_at_agents(self) -> None:
        failing = (
            agent
            for agent, failures in self._failures.items()
            if failures >= MAX_FAILURES and not self.all_failing
        )
        self._passed_over = self._away.union(failing)

    @abstractmethod
    def _choose(self, index: int) -> Action | None:
        """The next action, booked as in flight under `index`; None to wait for rewards."""

    @abstractmethod
    def _replay(self, index: int, action: Action) -> None:
        """Book a recorded action as in flight, as if it had just been chosen."""

    @abstractmethod
    def _scored(self, index: int, reward: float) -> None:
        """A play in flight got its reward."""

    @abstractmethod
    def _failed(self, index: int, action: Action) -> None:
        """A play in flight failed."""


def _seen(action: Action) -> set[int]:
    return {*action.refs} if action.parent is None else {*action.refs, action.parent}
