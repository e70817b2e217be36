"""Which tau? That of the warning of a run, from all rewards of a pilot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toa_trl.evaluation.pilot.figures import Figure, Resamples, figure
from toa_trl.sampling.observer import distinguishes, saturation_edge, suggested_tau
from toa_trl.types import Rollout

NUM_DRAWS = 200  # each sorts all rewards


@dataclass(frozen=True)
class TauAdvice:
    """The temperature with which toa should squash rewards."""

    current: float  # of the run
    saturated_share: Figure  # of the rewards, those that are 0 or 1 after squashing with it
    suggested: Figure
    keep: bool  # it keeps the rewards apart: see `distinguishes`


def advise_tau(rollouts: Sequence[Rollout], tau: float, resamples: Resamples) -> TauAdvice | None:
    """Return the advice; None if the reward is the same for all responses.

    Args:
        rollouts: each with at least one scored play.
        tau: of the run.
        resamples: draws of the prompts.
    """
    rewards = [_rewards(rollout) for rollout in rollouts]
    every = np.concatenate(rewards)
    if len(every) < 2 or np.ptp(every) == 0:
        return None
    edge = saturation_edge(tau)
    outside = [float((np.abs(values) > edge).sum()) for values in rewards]
    saturated = resamples.ratio(outside, [float(len(values)) for values in rewards])
    numbers = (resamples.shares[:NUM_DRAWS] * len(rewards)).round().astype(int)
    draws = []
    for drawn in numbers:
        drawn_rewards = [np.tile(rewards[row], drawn[row]) for row in drawn.nonzero()[0]]
        draws.append(suggested_tau(np.concatenate(drawn_rewards)))
    suggested = figure(suggested_tau(every), np.array(draws))
    return TauAdvice(tau, saturated, suggested, keep=distinguishes(every, tau))


def _rewards(rollout: Rollout) -> np.ndarray:
    """Return the rewards of a prompt's different responses."""
    by_text = {play.completion.text: play.reward for play in rollout.scored if play.completion}
    return np.array([reward for reward in by_text.values() if reward is not None])
