"""The baselines are schedules: a list of slots, known from the start, each waiting for the rewards of earlier slots.

Slots are taken in order, as soon as what they need is scored, so that independent rounds may run at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from toa_trl.errors import ConfigError, SearchError
from toa_trl.search.base import Search
from toa_trl.types import Action, Kind


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the `budget` plays of a schedule."""

    agent: str
    kind: Kind = "answer"
    needs: tuple[
        int, ...
    ] = ()  # slots that must be scored before, in the order in which they are shown
    best_only: bool = False  # show only the best of `needs`


class ScheduledSearch(Search):
    """Plays the first `budget` slots of a schedule, so that the last round is cut short where it does not fit.

    A failed slot is played again, by another agent once its own keeps failing.
    """

    def __init__(
        self,
        agents: Sequence[str],
        budget: int,
        seed: int,
        schedule: Callable[[random.Random], Iterator[Slot]],
    ) -> None:
        super().__init__(agents, budget)
        self._slots = list(islice(schedule(random.Random(seed)), budget))
        used = {slot.agent for slot in self._slots}
        self._failures = {agent: 0 for agent in self.agents if agent in used}
        self._open = list(range(budget))  # slots not asked for, in order
        self._slot_of: dict[int, int] = {}  # play -> slot
        self._play_of: dict[int, int] = {}  # scored slot -> play

    def _choose(self, index: int) -> Action | None:
        for slot in self._open:
            action = self._action(slot)
            if action is not None:
                self._take(slot, index)
                return action
        return None

    def _replay(self, index: int, action: Action) -> None:
        now = {slot: self._action(slot) for slot in self._open}
        same_kind = [slot for slot in self._open if self._slots[slot].kind == action.kind]
        fitting = (
            [slot for slot, wanted in now.items() if wanted == action],
            # with several plays in flight other agents may have been passed over then
            [
                s
                for s, wanted in now.items()
                if wanted and (wanted.kind, wanted.refs) == (action.kind, action.refs)
            ],
            # and where some of them were lost, it cannot always be told which slot a play had: then the last one
            same_kind[::-1],
            self._open[::-1],
        )
        slot = next((slots[0] for slots in fitting if slots), None)
        if slot is None:
            raise SearchError(f"restore: play {index} ({action}) has no place in this schedule")
        self._take(slot, index)

    def _scored(self, index: int, reward: float) -> None:
        self._play_of[self._slot_of[index]] = index

    def _failed(self, index: int, action: Action) -> None:
        self._open.append(self._slot_of.pop(index))
        self._open.sort()

    def _take(self, slot: int, index: int) -> None:
        self._open.remove(slot)
        self._slot_of[index] = slot

    def _action(self, slot: int) -> Action | None:
        agent, kind, needs, best_only = (s := self._slots[slot]).agent, s.kind, s.needs, s.best_only
        if not all(need in self._play_of for need in needs):
            return None
        if agent in self._passed_over:
            present = [name for name in self._failures if name not in self._away]
            if not present:
                return None
            agent = min(present, key=self._failures.__getitem__)
        refs = tuple(self._play_of[need] for need in needs)
        if not refs:
            return Action(agent)
        best = max(refs, key=lambda ref: (self._rewards[ref], -ref))
        # several drafts: the play hangs under the best of them, so that the tree of a mixture is a tree
        shown = (best,) if best_only else refs
        return Action(agent, kind, shown, parent=best, depth=1 + self._actions[best].depth)


def one_of(agents: Sequence[str], agent: str | None) -> str:
    """The agent of a single-agent search: the one that is named, or the first.

    Raises:
        ConfigError: the named agent is not among the agents.
    """
    if agent is None:
        return agents[0] if agents else ""
    if agent not in agents:
        raise ConfigError(f"agent: {agent!r} is not one of the agents {list(agents)}")
    return agent


def shuffled(agents: Sequence[str], rng: random.Random) -> list[str]:
    """The agents in a new random order."""
    return rng.sample(list(agents), len(agents))
