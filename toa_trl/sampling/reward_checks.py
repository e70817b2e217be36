"""Rewards that a search cannot use, said once and early, with what to do about it."""

from __future__ import annotations

import logging
import math
from statistics import median, quantiles

logger = logging.getLogger(__name__)

ENOUGH = 64  # rewards before anything is said
SATURATED = 1e-6  # of 0 or 1


class RewardWatch:
    """Looks at the rewards of a run as they come.

    Args:
        tau: temperature of the search's squashing s = 1 / (1 + exp(-r / tau)); None where it squashes nothing.
    """

    def __init__(self, tau: float | None) -> None:
        self._tau = tau
        self._rewards: list[float] = []
        self._texts: set[str] = set()

    def see(self, text: str, reward: float) -> None:
        """One scored response."""
        if len(self._rewards) >= ENOUGH or text in self._texts:
            return
        self._texts.add(text)
        self._rewards.append(reward)
        if len(self._rewards) == ENOUGH:
            self._texts.clear()
            for warning in (self._same(), self._saturated()):
                if warning:
                    logger.warning("%s", warning)

    def _same(self) -> str | None:
        if len(set(self._rewards)) > 1:
            return None
        return (
            f"the reward is {self._rewards[0]:g} for each of {ENOUGH} different responses, so no search can tell them apart. "
            "Is the model loaded as what it is (some have a head of their own, which a generic classifier does not read), "
            "with its own chat template, and without an activation that saturates?"
        )

    def _saturated(self) -> str | None:
        if self._tau is None or len(set(self._rewards)) == 1:
            return None
        edge = (
            -math.log(SATURATED) * self._tau
        )  # beyond it a squashed reward is within SATURATED of 0 or 1
        num_outside = sum(abs(reward) > edge for reward in self._rewards)
        if num_outside <= ENOUGH / 2:
            return None
        low, _, high = quantiles(self._rewards, n=4)
        tau = max(median(map(abs, self._rewards)), high - low) / 2
        return (
            f"{num_outside} of {ENOUGH} rewards are 0 or 1 to a millionth once they are squashed by 1 / (1 + exp(-r / tau)) "
            f"with tau = {self._tau:g}: the search hardly sees a difference between them. They lie around "
            f"{median(self._rewards):.3g}; a tau of about {tau:.2g} suits them (search_params: {{tau: {tau:.2g}}})"
        )
