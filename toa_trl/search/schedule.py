"""Searches that follow a schedule: a list of slots that wait for the rewards of earlier slots.

Slots are taken in order, as soon as what they need is scored, so that independent rounds may run at
the same time.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from toa_trl.errors import ConfigError, SearchError
from toa_trl.search.base import Search
from toa_trl.types import Action, Kind

Needs = tuple[int, ...] | range


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the `budget` plays of a schedule."""

    agent: str
    kind: Kind = "answer"
    # slots that must be scored before, in the order they are shown; a range where they are many
    needs: Needs = ()
    best_only: bool = False  # show only the best of them


class ScheduledSearch(Search):
    """Play the first `budget` slots of a schedule; the last round may be cut short.

    A failed slot is played again, by another agent once its own keeps failing.

    Args:
        agents: names of the agents.
        budget: number of scored plays to spend.
        seed: seed of the generator.
        schedule: returns the slots, without an end; it is passed the agents and the generator.
    """

    def __init__(
        self,
        agents: Sequence[str],
        budget: int,
        seed: int,
        schedule: Callable[[list[str], random.Random], Iterator[Slot]],
    ) -> None:
        super().__init__(agents, budget, seed)
        self._slots = list(islice(schedule(self.agents, random.Random(seed)), budget))
        self._depths = list[int]()  # of the slots, by the schedule
        for slot in self._slots:
            self._depths.append(1 + self._depths[slot.needs[0]] if slot.needs else 0)
        used = {slot.agent for slot in self._slots}
        self._failures = {agent: 0 for agent in self.agents if agent in used}
        self._open = list(range(budget))  # slots not asked for, in order
        self._slot_of: dict[int, int] = {}  # play -> slot
        self._play_of: dict[int, int] = {}  # scored slot -> play
        self._num_scored: dict[Needs, int] = {}  # of what slots need, the first
        self._drafts: dict[Needs, tuple[tuple[int, ...], int]] = {}

    def choose(self, index: int) -> Action | None:
        """See `Search`."""
        for slot in self._open:
            action = self._action(slot)
            if action is not None:
                self._take(slot, index)
                return action
        return None

    def replay(self, index: int, action: Action) -> None:
        """See `Search`.

        Raises:
            SearchError: the schedule has no slot for the action.
        """
        if not self._open:
            raise SearchError(f"restore: play {index} ({action}) has no place in this schedule")
        self._take(self._slot_for(action), index)

    def _slot_for(self, action: Action) -> int:
        """Return the open slot that a recorded action fits best."""
        for slot in self._open:
            if self._action(slot) == action:
                return slot
        # with several plays in flight other agents may have been skipped at that time
        for slot in self._open:
            candidate = self._action(slot)
            if candidate and (candidate.kind, candidate.refs) == (action.kind, action.refs):
                return slot
        # where plays were lost, or asked for again in another order, the slot is not always known:
        # take the last that is planned like the action
        return max(
            reversed(self._open),
            key=lambda slot: (
                self._slots[slot].kind == action.kind,
                self._depths[slot] == action.depth,
            ),
        )

    def scored(self, index: int, reward: float) -> None:
        """See `Search`."""
        self._play_of[self._slot_of[index]] = index

    def failed(self, index: int, action: Action) -> None:
        """See `Search`."""
        self._open.append(self._slot_of.pop(index))
        self._open.sort()

    def _take(self, slot: int, index: int) -> None:
        self._open.remove(slot)
        self._slot_of[index] = slot

    def _action(self, slot: int) -> Action | None:
        planned = self._slots[slot]
        drafts = self._drafts_for(planned.needs)
        if drafts is None:
            return None
        agent = planned.agent
        if agent in self._passed_over:
            present = [name for name in self._failures if name not in self._away]
            if not present:
                return None
            agent = min(present, key=self._failures.__getitem__)
        refs, best = drafts
        if not refs:
            return Action(agent)
        # an aggregate of several drafts is a child of the best: every play has one parent
        shown = (best,) if planned.best_only else refs
        return Action(agent, planned.kind, shown, parent=best, depth=1 + self.actions[best].depth)

    def _drafts_for(self, needs: Needs) -> tuple[tuple[int, ...], int] | None:
        """Return the plays of the slots that a slot needs, and the best; None if one is missing.

        The best of none is -1.

        Slots that need the same ones share the answer, which never changes: of all slots together
        every need is looked at once, not once for each play.
        """
        if needs not in self._drafts:
            known = self._num_scored.get(needs, 0)
            while known < len(needs) and needs[known] in self._play_of:
                known += 1
            self._num_scored[needs] = known
            if known < len(needs):
                return None
            refs = tuple(self._play_of[need] for need in needs)
            best = max(refs, key=lambda ref: (self.rewards[ref], -ref), default=-1)
            self._drafts[needs] = refs, best
        return self._drafts[needs]


def one_of(agents: Sequence[str], agent: str | None) -> str:
    """Return the agent of a single-agent search: the named one, or the first.

    Raises:
        ConfigError: the named agent is not among the agents.
    """
    if agent is None:
        return agents[0]
    if agent not in agents:
        raise ConfigError(f"search_params.agent: must be one of {list(agents)}, not {agent!r}")
    return agent
