"""Several replicas of one reward model in this process, each on a device of its own."""

from collections.abc import Sequence
from typing import Any

from toa_trl.agents.base import Price
from toa_trl.rewards.base import DetailedReward, RewardModel
from toa_trl.types import Prompt, Score
from toa_trl.utils.aio import gather_or_cancel


class ReplicatedReward(DetailedReward):
    """Scores each prompt's responses with the replica that has the fewest to score.

    Args:
        replicas: reward models that give the same scores.
    """

    def __init__(self, replicas: Sequence[RewardModel]) -> None:
        self._replicas = list(replicas)
        self._waiting = [0] * len(self._replicas)  # responses

    @property
    def graded(self) -> bool:
        """See `RewardModel`."""
        return self._replicas[0].graded

    @property
    def identity(self) -> Any:
        """That of one replica: their number decides nothing."""
        return self._replicas[0].identity

    @property
    def texts(self) -> Any:
        """See `RewardModel`."""
        return self._replicas[0].texts

    @property
    def prices(self) -> tuple[tuple[str, Price | None], ...]:
        """See `RewardModel`."""
        return self._replicas[0].prices

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        index = min(range(len(self._replicas)), key=self._waiting.__getitem__)
        self._waiting[index] += len(responses)
        try:
            return await self._replicas[index].score_details(prompt, responses)
        finally:
            self._waiting[index] -= len(responses)

    async def check(self) -> None:
        """See `RewardModel`."""
        await gather_or_cancel(replica.check() for replica in self._replicas)

    async def aclose(self) -> None:
        """See `RewardModel`."""
        await gather_or_cancel(replica.aclose() for replica in self._replicas)
