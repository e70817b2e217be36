"""How long is it? For dry runs, and as a part of a weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

from toa_trl.rewards.base import RewardModel
from toa_trl.types import Prompt
from toa_trl.utils.registry import check_number, choose

UNITS = {"words": lambda text: len(text.split()), "characters": len}


class LengthReward(RewardModel):
    """The number of words or characters; with a target its distance from it, below 0.

    Args:
        unit: "words" (parted by white space) or "characters" (code points).
        target: a number >= 0 of them: the reward is -|length - target|. None: the length itself.

    Raises:
        ConfigError: an unknown unit, or a target that is no number >= 0.
    """

    def __init__(self, unit: str = "words", target: float | None = None) -> None:
        self._length = choose("reward 'length'", "unit", UNITS, unit)
        if target is not None:
            check_number("reward 'length': target", target, at_least=0)
        self._target = target

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        lengths = [float(self._length(response)) for response in responses]
        return (
            lengths if self._target is None else [-abs(length - self._target) for length in lengths]
        )
