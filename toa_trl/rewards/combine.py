"""Several reward models as one: their weighted sum, the worst of them, or one that steers while a second looks on.

Mean and standard deviation of a part are constants of its entry, never running ones: a reward that depended on the plays
before it would come out differently in a run that is resumed. `toa_trl.rewards.calibration` finds them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toa_trl.errors import ConfigError, RewardError, Unavailable
from toa_trl.rewards import make_reward
from toa_trl.rewards.base import DetailedReward, RewardModel, check_scores, total_flops
from toa_trl.types import Prompt, Score
from toa_trl.utils.aio import gather_or_cancel
from toa_trl.utils.registry import check_number, construct

logger = logging.getLogger(__name__)

Given = (
    RewardModel | Callable[..., Any] | Mapping[str, Any]
)  # a reward model, a TRL reward function, or an entry


@dataclass(frozen=True)
class Part:
    """One reward model of a combination, and the place of its entry."""

    place: str
    model: RewardModel
    weight: float = 1.0
    mean: float = 0.0
    std: float = 1.0  # > 0

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """Raw rewards.

        Raises:
            RewardError: it failed; the message names the place.
            Unavailable: none of its servers answers.
        """
        try:
            scores = await self.model.score_details(prompt, responses)
            check_scores(self.place, [score.value for score in scores], len(responses))
            return scores
        except Unavailable:
            raise
        except RewardError as error:
            raise RewardError(f"{self.place}: {error}") from error
        except Exception as error:  # of a reward model that is not ours
            raise RewardError(f"{self.place}: {type(error).__name__}: {error}") from error

    def standardised(self, score: float) -> float:
        """(score - mean) / std."""
        return (score - self.mean) / self.std


class _Combination(DetailedReward):
    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    @property
    def texts(self) -> Any:
        """See `RewardModel`: those of the parts, by place."""
        found = {part.place: part.model.texts for part in self._parts}
        return {place: texts for place, texts in found.items() if texts is not None} or None

    async def check(self) -> None:
        """Raises:
        ConfigError: a server of one of them cannot be reached, or refuses.
        """
        await gather_or_cancel(part.model.check() for part in self._parts)

    async def aclose(self) -> None:
        """End what they hold, all of them, and then raise what the first one raised."""
        closing = (part.model.aclose() for part in self._parts)
        for result in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result


class WeightedSumReward(_Combination):
    """The sum of weight * (score - mean) / std over the parts.

    Args:
        rewards: a list of {reward, weight, mean, std}, where reward is an entry (or a reward model, or a TRL reward
            function); weight is 1, mean 0 and std, > 0, is 1 by default.

    Raises:
        ConfigError: a mistake in one of them; the message names its place.
    """

    def __init__(self, rewards: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(_parts("reward 'weighted_sum'", rewards, _weighted))

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        scored = await gather_or_cancel(
            part.score_details(prompt, responses) for part in self._parts
        )
        sums = []
        for scores in zip(*scored, strict=True):
            terms = [
                part.weight * part.standardised(score.value)
                for part, score in zip(self._parts, scores, strict=True)
            ]
            # sorted, so that the order of the parts does not change the sum's rounding
            sums.append(Score(sum(sorted(terms)), total_flops(score.flops for score in scores)))
        check_scores("reward 'weighted_sum'", [score.value for score in sums], len(responses))
        return sums


class MinimumReward(_Combination):
    """The least (score - mean) / std of the parts: how good the one finds it that thinks worst of it.

    Args:
        rewards: a list of {reward, mean, std}, where reward is an entry (or a reward model, or a TRL reward function);
            mean is 0 and std, > 0, is 1 by default.

    Raises:
        ConfigError: a mistake in one of them; the message names its place.
    """

    def __init__(self, rewards: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(_parts("reward 'minimum'", rewards, _unweighted))

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        scored = await gather_or_cancel(
            part.score_details(prompt, responses) for part in self._parts
        )
        least = []
        for scores in zip(*scored, strict=True):
            standardised = [
                part.standardised(score.value)
                for part, score in zip(self._parts, scores, strict=True)
            ]
            least.append(Score(min(standardised), total_flops(score.flops for score in scores)))
        check_scores("reward 'minimum'", [score.value for score in least], len(responses))
        return least


class HeldOutReward(_Combination):
    """The score of `reward`, with that of `second` in `Score.second`: recorded with every play, it never steers a search.

    Where the second fails, the score stands and `Score.second` is None. Where its servers are gone, the run waits as its
    `wait_s` says and then stops, as without the first.

    Args:
        reward: an entry (or a reward model, or a TRL reward function).
        second: likewise.

    Raises:
        ConfigError: a mistake in one of them; the message names its place.
    """

    def __init__(self, reward: Given, second: Given) -> None:
        places = {"reward 'held_out': reward": reward, "reward 'held_out': second": second}
        self._first, self._second = parts = [
            Part(place, _make(place, given)) for place, given in places.items()
        ]
        super().__init__(parts)
        self.num_failed = 0  # responses that the second could not score

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        results: list[Any] = await gather_or_cancel(
            [self._first.score_details(prompt, responses), self._second_scores(prompt, responses)]
        )
        found = []
        for score, second in zip(*results, strict=True):
            flops = total_flops([score.flops, second.flops if second else None])
            found.append(Score(score.value, flops, second.value if second else None))
        return found

    async def _second_scores(
        self, prompt: Prompt, responses: Sequence[str]
    ) -> Sequence[Score | None]:
        try:
            return await self._second.score_details(prompt, responses)
        except RewardError as error:
            if not self.num_failed:
                logger.warning(
                    "%s; the plays that it cannot score are recorded without a second reward", error
                )
            self.num_failed += len(responses)
            return [None] * len(responses)


def _parts(place: str, entries: Any, make: Callable[..., Part]) -> list[Part]:
    if not isinstance(entries, list | tuple) or not entries:
        raise ConfigError(f"{place}: rewards: a list of {{reward, ...}} is needed, not {entries!r}")
    places = [f"{place}: rewards[{number}]" for number in range(len(entries))]
    return [
        construct(where, make, where, params=entry)
        for where, entry in zip(places, entries, strict=True)
    ]


def _weighted(
    place: str, reward: Given, weight: float = 1.0, mean: float = 0.0, std: float = 1.0
) -> Part:
    check_number(f"{place}: weight", weight, at_least=-math.inf)
    check_number(f"{place}: mean", mean, at_least=-math.inf)
    check_number(f"{place}: std", std, at_least=0, above=True)
    return Part(place, _make(place, reward), weight, mean, std)


def _unweighted(place: str, reward: Given, mean: float = 0.0, std: float = 1.0) -> Part:
    return _weighted(place, reward, 1.0, mean, std)


def _make(place: str, given: Given) -> RewardModel:
    try:
        made = make_reward(given)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    if isinstance(made, HeldOutReward):
        raise ConfigError(
            f"{place}: held_out goes around the other kinds, not into one: its second reward would be lost"
        )
    return made
