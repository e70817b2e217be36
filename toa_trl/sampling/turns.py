"""Which prompt is worked on next, and for how many plays."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from toa_trl.types import Play, Prompt


class Turn(NamedTuple):
    """One prompt until it has so many scored plays, or until its search is done."""

    prompt: Prompt
    plays: int | None = None


class Turns(ABC):
    """The turns of a run; a prompt has one at a time."""

    repeated: bool
    """Whether a prompt may have several turns."""

    @abstractmethod
    async def next(self) -> Turn | None:
        """Return the next turn, perhaps after others have ended; None if there is none left."""

    async def ended(  # noqa: B027 (a hook)
        self, turn: Turn, plays: Mapping[int, Play], given_up: bool
    ) -> None:
        """Take note that a turn has ended.

        Args:
            turn: that has ended.
            plays: all plays of its prompt, scored and failed, by index.
            given_up: whether it ended early, because every agent keeps failing.
        """

    def stop(self) -> None:  # noqa: B027 (a hook)
        """Take note that the run ends early; turns in progress do not count as ended."""


class UniformTurns(Turns):
    """One turn for each prompt."""

    repeated = False

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._waiting = iter(prompts)

    async def next(self) -> Turn | None:
        """See `Turns`."""
        prompt = next(self._waiting, None)
        return None if prompt is None else Turn(prompt)
