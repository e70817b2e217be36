"""What happens with every play of a run: shown, counted against the limits, and watched."""

from collections import Counter

from toa_trl.sampling.limits import Meter
from toa_trl.sampling.progress import Progress
from toa_trl.sampling.reward_checks import RewardWatch
from toa_trl.sampling.runner import Observer
from toa_trl.types import Play, Prompt

MAX_REASONS = 1000  # different failures that are counted


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
