"""Length of a response: for dry runs, and as a part of a weighted sum."""

from collections.abc import Sequence
from typing import Literal

from toa_trl.rewards.base import RewardModel
from toa_trl.types import Prompt
from toa_trl.utils.config import NonNegativeFloat


class LengthReward(RewardModel):
    """The number of words or characters; with a target, minus the distance from it.

    Args:
        unit: "words" (separated by white space) or "characters" (code points).
        target: desired length: the reward is -|length - target|. Default: the length itself.
    """

    def __init__(
        self,
        unit: Literal["words", "characters"] = "words",
        target: NonNegativeFloat | None = None,
    ) -> None:
        self._unit, self._target = unit, target

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        measured = map(str.split, responses) if self._unit == "words" else responses
        lengths = [float(len(units)) for units in measured]
        if self._target is None:
            return lengths
        return [-abs(length - self._target) for length in lengths]
