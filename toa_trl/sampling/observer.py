"""What is seen in the plays of a run: rewards that no search can use, and why plays failed."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

import numpy as np

from toa_trl.sampling.runner import Observer
from toa_trl.types import Play, Prompt

logger = logging.getLogger(__name__)

MAX_REASONS = 1000  # different failures that are counted
ENOUGH = 64  # rewards before any warning
LEAST_SPREAD = 0.25  # of the spread with the suggested tau
SATURATED = 1e-6  # distance of a squashed reward from 0 or 1


def saturation_edge(tau: float) -> float:
    """Return |reward| beyond which a reward is 0 or 1 after squashing with tau."""
    return -math.log(SATURATED) * tau


def suggested_tau(rewards: Sequence[float] | np.ndarray) -> float:
    """Return a tau > 0 that suits rewards, at least two: half their size or spread.

    Where nearly all are 0, as of a verifier, it is half of their range; where all are, 1.
    """
    low, high = np.quantile(rewards, [0.25, 0.75], method="weibull")
    size = max(np.median(np.abs(rewards)), high - low) or np.ptp(rewards) or 2.0
    return float(size) / 2


def squashed_spread(rewards: Sequence[float] | np.ndarray, tau: float) -> float:
    """Return the interquartile range of 1 / (1 + exp(-r / tau)) over rewards, in [0, 1]."""
    quartiles = np.quantile(rewards, [0.25, 0.75], method="weibull")
    low, high = 1 / (1 + np.exp(-np.clip(quartiles / tau, -700, 700)))  # monotonous in r
    return float(high - low)


def distinguishes(rewards: Sequence[float] | np.ndarray, tau: float) -> bool:
    """Return whether squashing with tau keeps rewards apart.

    It does not where more than half are 0 or 1 after it, or where their spread is less than
    `LEAST_SPREAD` of that with `suggested_tau`.
    """
    num_outside = int((np.abs(rewards) > saturation_edge(tau)).sum())
    best = squashed_spread(rewards, suggested_tau(rewards))
    return num_outside <= len(rewards) / 2 and squashed_spread(rewards, tau) >= LEAST_SPREAD * best


class RewardWatch(Observer):
    """Warns early and once about rewards that a search cannot use, and says what to do about it.

    Args:
        tau: temperature of the search's squashing s = 1 / (1 + exp(-r / tau)); None if the search
            does not squash rewards.
    """

    def __init__(self, tau: float | None) -> None:
        self._tau = tau
        self._rewards: list[float] = []
        self._texts: set[str] = set()

    def played(self, prompt: Prompt, play: Play) -> None:
        """See `Observer`."""
        if play.reward is not None and play.completion is not None:
            self.see(play.completion.text, play.reward)

    def see(self, text: str, reward: float) -> None:
        """Add one scored response, unless its text was added before."""
        if len(self._rewards) >= ENOUGH or text in self._texts:
            return
        self._texts.add(text)
        self._rewards.append(reward)
        if len(self._rewards) == ENOUGH:
            self._texts.clear()
            for warning in (self._same(), self._squashed()):
                if warning:
                    logger.warning("%s", warning)

    def _same(self) -> str | None:
        if len(set(self._rewards)) > 1:
            return None
        return (
            f"the reward is {self._rewards[0]:g} for each of {ENOUGH} different responses, so no "
            "search can distinguish them. Check that the model is loaded with its own head (a "
            "generic classifier does not read some heads), with its own chat template, and without "
            "an activation that saturates."
        )

    def _squashed(self) -> str | None:
        if self._tau is None or len(set(self._rewards)) == 1:
            return None
        if distinguishes(self._rewards, self._tau):
            return None
        edge, tau = saturation_edge(self._tau), suggested_tau(self._rewards)
        num_outside = sum(abs(reward) > edge for reward in self._rewards)
        if num_outside > ENOUGH / 2:
            what = f"{num_outside} of {ENOUGH} rewards are 0 or 1 to a millionth"
        else:
            now, then = (squashed_spread(self._rewards, each) for each in (self._tau, tau))
            what = (
                f"the middle half of {ENOUGH} rewards spreads over {now:.2g} instead of {then:.2g}"
            )
        return (
            f"{what} after squashing with 1 / (1 + exp(-r / tau)) and tau = {self._tau:g}, so the "
            f"search hardly distinguishes them. Their median is {median(self._rewards):.3g}; use a "
            f"tau of about {tau:.2g} (search_params: {{tau: {tau:.2g}}})"
        )


class Failures(Observer):
    """Counts the failed plays of a run by their reasons."""

    def __init__(self) -> None:
        self.reasons = Counter[str]()

    def played(self, prompt: Prompt, play: Play) -> None:
        """See `Observer`."""
        error = play.error
        if error is not None and (error in self.reasons or len(self.reasons) < MAX_REASONS):
            self.reasons[error] += 1
