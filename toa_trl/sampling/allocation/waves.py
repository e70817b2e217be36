"""Which prompts get the next plays? Rounds of waves, each decided from the waves before.

A pure state machine over all prompts of a run: no I/O, no clock, no randomness. It grants plays in
waves; a round is a set of waves that are decided together. The first rounds grant `min_plays` to
every prompt. After them a round is decided from the waves that are ROUNDS_IN_FLIGHT rounds old or
older, all of them complete: the rounds in between, about a quarter of the prompts, keep the agents
busy, and because the decision uses nothing of them, it does not depend on which of their plays
happen to be ready.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from toa_trl.sampling.allocation.gain import GainEstimator
from toa_trl.sampling.allocation.history import VALUE, History, Objective, state
from toa_trl.types import Grant

State = tuple[float, ...]
StateOf = Callable[[History, int, Objective], State]
ROUNDS_IN_FLIGHT = 8
ROUNDS_PER_PASS = 4 * ROUNDS_IN_FLIGHT  # so that a quarter of the prompts is in flight


@dataclass(kw_only=True)
class Waves:
    """The allocation of one run's budget.

    Args:
        num_prompts: prompts of the run.
        budget: mean number of plays per prompt.
        min_plays: plays that every prompt gets first, in [1, budget].
        max_plays: most plays of a prompt, >= budget.
        wave: plays that a prompt gets at a time afterwards, >= 1.
        objective: what a play is to increase.
        stop_reward: a prompt with a reward of this or more gets no further plays.
        estimator: estimates the gain of the next plays; it may have observed an earlier run.
        state: returns what the estimator knows about a prompt, the value and the plays first.
    """

    num_prompts: int
    budget: int
    min_plays: int
    max_plays: int
    wave: int
    objective: Objective
    stop_reward: float | None
    estimator: GainEstimator
    state: StateOf = state
    over: bool = field(default=False, init=False)  # whether everything is granted
    _round: int = field(default=0, init=False)  # the next one
    _num_waves: int = field(default=0, init=False)
    # of rounds that are not observed yet: the grants that are not complete
    _waiting: Counter[int] = field(default_factory=Counter, init=False)
    # wave -> its observations, until the round is old enough to be used
    _observed: dict[int, tuple[int, list[tuple[State, float]]]] = field(
        default_factory=dict, init=False
    )

    def __post_init__(self) -> None:
        """Start without grants."""
        n = self.num_prompts
        self._granted = np.zeros(n, dtype=np.int64)
        self._last_round = np.full(n, -1, dtype=np.int64)
        self._num_fresh = n  # prompts without a grant
        # prompt -> its wave in flight, the plays before it, and its state then where it is known
        self._last: dict[int, tuple[Grant, int, State | None]] = {}
        self._closed = np.zeros(n, dtype=bool)
        self._known: dict[int, State] = {}  # prompt -> its state now
        self._states: np.ndarray | None = None  # the same as an array
        self._cost = np.ones(n)  # mean cost of a play

    @property
    def granted(self) -> np.ndarray:
        """Plays granted to each prompt so far, shape (num_prompts,)."""
        return self._granted

    def decide(self) -> list[Grant] | None:
        """Return the grants of the next round, perhaps none; None: wait for `complete`, or over."""
        if self.over:
            return None
        size = math.ceil(self.num_prompts / ROUNDS_PER_PASS)
        if self._num_fresh:
            fresh = np.flatnonzero(self._granted == 0)[:size]
            self._num_fresh -= len(fresh)
            return self._grant([(int(prompt), self.min_plays, None) for prompt in fresh])
        # newest round that is used; of few prompts, fewer rounds are in flight
        newest = self._round - min(ROUNDS_IN_FLIGHT, max(1, self.num_prompts // 4))
        if min(self._waiting, default=self._round) <= newest:
            return None
        self._learn(newest)
        left = self.budget * self.num_prompts - int(self._granted.sum())
        settled = self._last_round <= newest
        eligible = np.flatnonzero(settled & ~self._closed & (self._granted < self.max_plays))
        if left <= 0 or (not len(eligible) and settled.all()):
            self.over = True
            return None
        chosen = []
        for prompt, gain in self._ranked(eligible, size):
            plays = min(self.wave, self.max_plays - int(self._granted[prompt]), left)
            if plays > 0:
                chosen.append((prompt, int(self._granted[prompt]) + plays, gain))
                left -= plays
        return self._grant(chosen)

    def complete(self, prompt: int, history: History, given_up: bool = False) -> bool:
        """Take note that the wave of a prompt is complete.

        Args:
            prompt: its position.
            history: all its scored plays.
            given_up: whether it gets no further plays, because every agent keeps failing.

        Returns:
            Whether its round is complete: only then can anything new be decided.
        """
        grant, before, known = self._last.pop(prompt)
        self._waiting[grant.round] -= 1
        is_round_complete = not self._waiting[grant.round]
        if is_round_complete:
            del self._waiting[grant.round]
        self._observe(grant, before, history, known)
        self._update(prompt, history, given_up)
        return is_round_complete

    def restore(
        self, grants: Iterable[Grant], histories: Iterable[tuple[int, History]]
    ) -> list[Grant]:
        """Rebuild the state of a run from its grants, in their order, and its plays.

        Args:
            grants: of the run so far.
            histories: of the prompts that have plays, in any order. Plays beyond the grants, as in
                a merged run, count as granted.

        Returns:
            The grants whose waves are not complete, in their order.
        """
        # with the plays before them; older observations would be forgotten again
        newest = deque[tuple[Grant, int]](maxlen=self.estimator.memory + self.num_prompts)
        for grant in grants:
            before = int(self._granted[grant.prompt])
            newest.append((grant, before))
            self._last[grant.prompt] = (grant, before, None)
            self._granted[grant.prompt], self._last_round[grant.prompt] = grant.plays, grant.round
            self._round, self._num_waves = grant.round + 1, grant.wave + 1
        self._waiting.update(grant.round for grant, *_ in self._last.values())
        earlier: dict[int, list[tuple[Grant, int]]] = {}
        for grant, before in newest:
            if grant != self._last[grant.prompt][0]:
                earlier.setdefault(grant.prompt, []).append((grant, before))
        for prompt, history in histories:
            for grant, before in earlier.get(prompt, ()):
                self._observe(grant, before, history)
            if len(history) >= int(self._granted[prompt]):
                self._granted[prompt] = len(history)
                if prompt in self._last:
                    self.complete(prompt, history)
                else:
                    self._update(prompt, history, given_up=False)
        self._num_fresh = int((self._granted == 0).sum())
        return sorted(grant for grant, *_ in self._last.values())

    def _grant(self, chosen: Iterable[tuple[int, int, float | None]]) -> list[Grant]:
        grants = []
        for prompt, plays, gain in chosen:
            grant = Grant(self._num_waves, self._round, prompt, plays, gain)
            before = int(self._granted[prompt])
            self._last[prompt] = (grant, before, self._known.get(prompt))
            self._granted[prompt], self._last_round[prompt] = plays, self._round
            self._num_waves += 1
            grants.append(grant)
        if grants:
            self._waiting[self._round] = len(grants)
        self._round += 1
        return grants

    def _ranked(self, eligible: np.ndarray, number: int) -> list[tuple[int, float]]:
        """Return the first prompts with their expected gains per play, the best per cost first."""
        if self._states is None:
            return []
        gains = self.estimator.expected(self._states[eligible])
        # among equals the prompt with the fewest plays, as a uniform allocation would
        order = np.lexsort((eligible, self._granted[eligible], -gains / self._cost[eligible]))
        return [(int(eligible[i]), float(gains[i])) for i in order[:number]]

    def _observe(
        self, grant: Grant, before: int, history: History, known: State | None = None
    ) -> None:
        """Keep the gains of a wave, in steps of `wave` plays, until its round is used."""
        end = min(grant.plays, len(history))
        start = before or self.wave
        steps = observations(history, start, end, self.wave, self.objective, known, self.state)
        seen = list(steps)
        self._observed[grant.wave] = (grant.round, seen)

    def _learn(self, newest: int) -> None:
        """Let the estimator observe the waves of the rounds up to `newest`, in their order."""
        states, gains = [], []
        for wave in sorted(self._observed):
            number, seen = self._observed[wave]
            if number > newest:
                break
            del self._observed[wave]
            for before, gain in seen:
                states.append(before)
                gains.append(gain)
        if states:
            self.estimator.observe(np.array(states), np.array(gains))

    def _update(self, prompt: int, history: History, given_up: bool) -> None:
        stopped = self.stop_reward is not None and history.best >= self.stop_reward
        self._closed[prompt] = given_up or stopped or not len(history)
        if not len(history):
            return
        current = self._known[prompt] = self.state(history, len(history), self.objective)
        if self._states is None:
            self._states = np.zeros((self.num_prompts, len(current)))
        self._states[prompt] = current
        self._cost[prompt] = max(history.cost / len(history), 1e-300)


def observations(
    history: History,
    start: int,
    end: int,
    wave: int,
    objective: Objective,
    known: State | None = None,
    state_of: StateOf = state,
) -> Iterator[tuple[State, float]]:
    """Yield the state before every `wave` plays of a prompt, and their gain per play.

    Args:
        history: of the prompt.
        start: plays before the first of these waves, >= 1.
        end: plays after the last one.
        wave: plays of a wave; the last may have fewer.
        objective: of the run.
        known: the state after `start` plays, where it is known.
        state_of: returns a state.
    """
    if start >= end:
        return
    current = known or state_of(history, start, objective)
    for before in range(start, end, wave):
        after = min(before + wave, end)
        following = state_of(history, after, objective)
        yield current, (following[VALUE] - current[VALUE]) / (after - before)
        current = following
