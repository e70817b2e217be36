"""Which agents earn their place? The best reward without the plays of an agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from toa_trl.evaluation.pilot.figures import Figure, Resamples
from toa_trl.types import Play, Rollout

NEVER = "was never asked"
ONLY = "the only agent that plays"
EARNS = "earns its place"
NONE = "cannot be told apart from none"
REPLACEABLE = "cannot be told apart from more plays of the others"
DEAR = "costs more than it gives: more plays of the others gain more"


@dataclass(frozen=True)
class Place:
    """What one agent gives to a run, and what it costs."""

    agent: str
    best_share: Figure  # of the prompts, those whose best response it wrote
    cost_share: Figure  # of the cost of all agents
    loss: Figure | None
    """Mean best reward lost without its plays and those that rest on them; None: it is unknown,
    because no play is left or none is missing."""
    net_loss: Figure | None
    """The loss relative to as many first plays as cost what is left: > 0 if the agent gives more
    than the others would for its cost."""
    verdict: str


def without(rollout: Rollout, agent: str) -> tuple[Play, ...]:
    """Return the scored plays that neither are an agent's nor rest on its responses."""
    left = {play.index: play for play in rollout.scored if play.action.agent != agent}
    while any(not left.keys() >= {*play.action.refs} for play in left.values()):
        left = {i: play for i, play in left.items() if left.keys() >= {*play.action.refs}}
    return tuple(left.values())


def place_of(
    agent: str, rollouts: Sequence[Rollout], resamples: Resamples, cost_of: Callable[[Play], float]
) -> Place:
    """Return what one agent gives and costs.

    Args:
        agent: its name.
        rollouts: each with at least one scored play.
        resamples: draws of the prompts.
        cost_of: cost of one play, >= 0, in any unit.
    """
    own, total, bests = list[float](), list[float](), list[float]()
    losses, net_losses, counted = list[float](), list[float](), list[float]()
    num_plays = 0
    for rollout in rollouts:
        plays = [play for play in rollout.plays if play.action.agent == agent]
        num_plays += len(plays)
        own.append(sum(map(cost_of, plays)))
        total.append(sum(map(cost_of, rollout.plays)))
        bests.append(float(rollout.ranked[0].action.agent == agent))
        left = without(rollout, agent)
        counted.append(float(bool(left)))
        losses.append(_best(rollout.scored) - _best(left) if left else 0.0)
        as_dear = _first(rollout.scored, sum(map(cost_of, left)), cost_of)
        net_losses.append(_best(as_dear) - _best(left) if left else 0.0)
    if not num_plays:
        loss, net_loss, verdict = None, None, NEVER
    elif not any(counted):
        loss, net_loss, verdict = None, None, ONLY
    else:
        loss, net_loss = resamples.ratio(losses, counted), resamples.ratio(net_losses, counted)
        verdict = _verdict(loss, net_loss)
    shares = resamples.mean(bests), resamples.ratio(own, total)
    return Place(agent, *shares, loss, net_loss, verdict)


def _verdict(loss: Figure, net_loss: Figure) -> str:
    if loss.low <= 0:
        return NONE
    if net_loss.low > 0:
        return EARNS
    return DEAR if net_loss.high < 0 else REPLACEABLE


def _best(plays: Sequence[Play]) -> float:
    return max(play.reward for play in plays if play.reward is not None)


def _first(plays: Sequence[Play], cost: float, cost_of: Callable[[Play], float]) -> Sequence[Play]:
    """Return the first plays that cost no more than an amount, at least one."""
    spent, number = 0.0, 0
    for play in plays:
        spent += cost_of(play)
        if spent > cost * (1 + 1e-9):
            break
        number += 1
    return plays[: max(1, number)]
