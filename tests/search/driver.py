"""Plays a search out as the runner does, and checks at every step what holds for all searches."""

from __future__ import annotations

import random
from collections.abc import Callable

from toa_trl.search import Search
from toa_trl.types import Action, Completion, Play

Reward = Callable[[int, Action], float]
Fails = Callable[[int, Action], bool]


def gauss(seed: object = 0) -> Reward:
    """A reward that the play's index decides."""
    return lambda index, action: random.Random(f"{seed}/{index}").gauss(0, 1)


def record(index: int, action: Action, reward: float | None) -> Play:
    """The play as a journal holds it."""
    if reward is None:
        return Play(index, action, error="failed")
    return Play(index, action, Completion(f"text {index}"), reward)


def play_out(
    search: Search,
    reward: Reward,
    *,
    in_flight: int = 1,
    order: random.Random | None = None,
    fails: Fails = lambda index, action: False,
    recorded: list[Play] | None = None,
    max_plays: int | None = None,
) -> list[Play]:
    """Ask and tell until done or all failing; return the plays in the order they came back.

    Args:
        order: which of the plays in flight comes back next; without one, the oldest.
        recorded: plays the search was restored from.
    """
    plays = list(recorded or [])
    depth_of = {p.index: p.action.depth for p in plays if p.reward is not None}
    used = {p.index for p in plays}
    running: dict[int, Action] = {}
    num_scored, came_back = len(depth_of), 0
    while not search.done and not search.all_failing and came_back != max_plays:
        wanted = in_flight - len(running)
        asked = search.ask(wanted)
        assert len(asked) <= wanted
        for index, action in asked:
            assert index not in used
            used.add(index)
            assert action.agent in search.agents
            seen = {*action.refs, *([] if action.parent is None else [action.parent])}
            assert seen <= depth_of.keys(), "a play sees only what was told before it was asked for"
            assert action.depth == (0 if action.parent is None else 1 + depth_of[action.parent])
            assert (action.kind == "answer") == (not action.refs)
            assert action.kind != "refine" or (
                len(action.refs) == 1 and action.parent == action.refs[0]
            )
            assert len(set(action.refs)) == len(action.refs)
            running[index] = action
        assert num_scored + len(running) <= search.budget, "never more than the budget"
        assert running, "with nothing in flight a search that is not done has a play to offer"
        index = min(running) if order is None else order.choice(sorted(running))
        action = running.pop(index)
        came_back += 1
        if fails(index, action):
            search.fail(index)
            plays.append(record(index, action, None))
        else:
            value = reward(index, action)
            search.tell(index, value)
            plays.append(record(index, action, value))
            depth_of[index] = action.depth
            num_scored += 1
        assert search.done == (num_scored == search.budget)
    return plays


def choices(plays: list[Play]) -> list[tuple[int, Action]]:
    """What was asked for, in order."""
    return [(p.index, p.action) for p in plays]
