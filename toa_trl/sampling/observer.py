"""What happens with every play of a run: shown, counted against the limits, and watched."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

import numpy as np

from toa_trl.sampling.limits import Meter
from toa_trl.sampling.progress import Progress
from toa_trl.sampling.runner import Observer
from toa_trl.types import Play, Prompt

logger = logging.getLogger(__name__)

MAX_REASONS = 1000  # different failures that are counted
ENOUGH = 64  # rewards before any warning
SATURATED = 1e-6  # distance of a squashed reward from 0 or 1


def saturation_edge(tau: float) -> float:
    """Return |reward| beyond which a reward is 0 or 1 after squashing with tau."""
    return -math.log(SATURATED) * tau


def suggested_tau(rewards: Sequence[float] | np.ndarray) -> float:
    """Return a tau that suits rewards, at least two: half their size or spread."""
    low, high = np.quantile(rewards, [0.25, 0.75], method="weibull")
    return float(max(np.median(np.abs(rewards)), high - low)) / 2


class RewardWatch:
    """Warns early and once about rewards that a search cannot use, and says what to do about it.

    Args:
        tau: temperature of the search's squashing s = 1 / (1 + exp(-r / tau)); None if the search
            does not squash rewards.
    """

    def __init__(self, tau: float | None) -> None:
        self._tau = tau
        self._rewards: list[float] = []
        self._texts: set[str] = set()

    def see(self, text: str, reward: float) -> None:
        """Add one scored response, unless its text was added before."""
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
            f"the reward is {self._rewards[0]:g} for each of {ENOUGH} different responses, so no "
            "search can distinguish them. Check that the model is loaded with its own head (a "
            "generic classifier does not read some heads), with its own chat template, and without "
            "an activation that saturates."
        )

    def _saturated(self) -> str | None:
        if self._tau is None or len(set(self._rewards)) == 1:
            return None
        edge = saturation_edge(self._tau)
        num_outside = sum(abs(reward) > edge for reward in self._rewards)
        if num_outside <= ENOUGH / 2:
            return None
        tau = suggested_tau(self._rewards)
        return (
            f"{num_outside} of {ENOUGH} rewards are 0 or 1 to a millionth after squashing with "
            f"1 / (1 + exp(-r / tau)) and tau = {self._tau:g}, so the search hardly distinguishes "
            f"them. Their median is {median(self._rewards):.3g}; use a tau of about {tau:.2g} "
            f"(search_params: {{tau: {tau:.2g}}})"
        )


class RunObserver(Observer):
    """Shows the plays of one run, counts what they cost and watches their rewards."""

    def __init__(
        self, display: Progress, meter: Meter, rewards: RewardWatch, failures: Counter[str]
    ) -> None:
        self._display, self._meter = display, meter
        self._rewards, self._failures = rewards, failures

    def asked(self, agent: str) -> None:
        """See `Observer`."""
        self._display.asked(agent)

    def dropped(self, agent: str) -> None:
        """See `Observer`."""
        self._display.dropped(agent)

    def played(self, prompt: Prompt, play: Play) -> None:
        """See `Observer`."""
        self._meter.add(play)
        self._display.played(prompt.id, play)
        if play.reward is not None and play.completion is not None:
            self._rewards.see(play.completion.text, play.reward)
        elif play.error is not None and (
            play.error in self._failures or len(self._failures) < MAX_REASONS
        ):
            self._failures[play.error] += 1
