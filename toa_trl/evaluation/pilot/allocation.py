"""Adaptive or uniform? The plays of a pilot, given out again as an adaptive allocation would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toa_trl.evaluation.pilot.figures import Figure, Numbers, Resamples, figure
from toa_trl.sampling.allocation.gain import GainEstimator
from toa_trl.sampling.allocation.history import History, Objective
from toa_trl.sampling.allocation.waves import Waves
from toa_trl.types import Rollout


@dataclass(frozen=True)
class Adaptive:
    """Settings of the adaptive allocation that is tried, see `toa_trl.sampling.allocation`."""

    min_plays: int = 4
    wave: int = 4
    stop_reward: float | None = None


@dataclass(frozen=True)
class AllocationAdvice:
    """What an adaptive allocation of half the pilot's plays would have reached."""

    kind: str  # recommended: adaptive or uniform
    mean_plays: int  # per prompt, of uniform, and at most of adaptive
    adaptive_plays: Figure  # per prompt, of adaptive: fewer where prompts reach stop_reward
    uniform: Figure  # mean best reward
    adaptive: Figure
    gain: Figure  # adaptive - uniform, paired over the prompts
    as_uniform: Figure
    """Plays per prompt with which a uniform allocation reaches the same, at most the pilot's."""
    late_gain_share: Figure
    """Of what the second half of the plays gains, the share of the quarter of the prompts that
    gains most, in hindsight."""


def advise_allocation(
    rollouts: Sequence[Rollout], best: Numbers, settings: Adaptive, resamples: Resamples
) -> AllocationAdvice | None:
    """Return the advice; None if the pilot has too few plays for two waves per prompt.

    Args:
        rollouts: each with at least one scored play.
        best: see `best_so_far`.
        settings: of the adaptive allocation.
        resamples: draws of the prompts.
    """
    budget = best.shape[1]
    mean_plays = budget // 2
    if mean_plays < settings.min_plays + settings.wave:
        return None
    given = replay(rollouts, settings, mean_plays, budget)
    adaptive = best[np.arange(len(best)), given - 1]
    uniform = best[:, mean_plays - 1]
    gain = resamples.mean(adaptive - uniform)
    curves = np.vstack([best.mean(axis=0), resamples.shares @ best])
    reached = np.append(adaptive.mean(), resamples.shares @ adaptive)
    plays = np.minimum((curves < reached[:, None] - 1e-12).sum(axis=1) + 1, budget).astype(float)
    late = best[:, -1] - uniform
    largest = np.sort(late)[::-1][: max(1, len(late) // 4)]
    top = np.where(late >= largest[-1], late, 0.0)
    return AllocationAdvice(
        "adaptive" if gain.low > 0 else "uniform",
        mean_plays,
        resamples.mean(given.astype(float)),
        resamples.mean(uniform),
        resamples.mean(adaptive),
        gain,
        figure(float(plays[0]), plays[1:]),
        resamples.ratio(top, late),
    )


def replay(
    rollouts: Sequence[Rollout], settings: Adaptive, mean_plays: int, max_plays: int
) -> NDArray[np.int64]:
    """Return how many of its recorded plays each prompt gets from an adaptive allocation.

    Args:
        rollouts: each with at least one scored play.
        settings: of the allocation.
        mean_plays: plays per prompt to give out.
        max_plays: most plays of a prompt.
    """
    histories = [History.of(rollout.plays, lambda _: 1.0) for rollout in rollouts]
    waves = Waves(
        num_prompts=len(rollouts),
        budget=mean_plays,
        min_plays=settings.min_plays,
        max_plays=max_plays,
        wave=settings.wave,
        objective=Objective(),
        stop_reward=settings.stop_reward,
        estimator=GainEstimator(),
    )
    in_flight = list[tuple[int, int]]()
    while not waves.over:
        while (grants := waves.decide()) is not None:
            in_flight += [(grant.prompt, grant.plays) for grant in grants]
        for prompt, plays in in_flight:
            history = histories[prompt]
            waves.complete(prompt, _first(history, plays), given_up=plays >= len(history))
        in_flight.clear()
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    given: NDArray[np.int64] = np.minimum(waves.granted, lengths)
    return given


def _first(history: History, plays: int) -> History:
    """Return the history as it was after some plays."""
    share = min(plays, len(history)) / len(history)
    return History(history.rewards[:plays], history.cost * share)
