"""Several reward models as one: their weighted sum, the worst of them, or one that steers while a second looks on.

Mean and standard deviation of a part are constants of its entry, never running ones: a reward that depended on the plays
before it would come out differently in a run that is resumed. `toa_trl.rewards.calibration` finds them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toa_trl.errors import ConfigError, RewardError, Unavailable
from toa_trl.rewards import make_reward
from toa_trl.rewards.base import RewardModel, check_scores, total_flops
from toa_trl.rewards.function import FunctionReward
from toa_trl.types import Prompt, Score
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

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """Raw rewards.

        Raises:
            RewardError: it failed; the message names the place.
            Unavailable: none of its servers answers.
        """
        try:
            return check_scores(
                self.place, await self.model.score(prompt, responses), len(responses)
            )
        except Unavailable:
            raise
        except RewardError as error:
            raise RewardError(f"{self.place}: {error}") from error
        except Exception as error:  # of a reward model that is not ours
            raise RewardError(f"{self.place}: {type(error).__name__}: {error}") from error

    def standardised(self, score: float) -> float:
        """(score - mean) / std."""
        return (score - self.mean) / self.std


class _Combination:
    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.words = {
            part.place: words for part in parts if (words := getattr(part.model, "words", None))
        }

    async def check(self) -> None:
        """Raises:
        ConfigError: a server of one of them cannot be reached, or refuses.
        """
        await _together(part.model.check() for part in self._parts if hasattr(part.model, "check"))

    async def aclose(self) -> None:
        """End what they hold, all of them, and then raise what the first one raised."""
        closing = (part.model.aclose() for part in self._parts if hasattr(part.model, "aclose"))
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

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        scored = await _together(part.score(prompt, responses) for part in self._parts)
        sums = []
        for scores in zip(*scored, strict=True):
            terms = [
                part.weight * part.standardised(score)
                for part, score in zip(self._parts, scores, strict=True)
            ]
            sums.append(
                Score(sum(sorted(terms)), _flops(scores))
            )  # sorted: the order of the parts decides nothing
        return check_scores("reward 'weighted_sum'", sums, len(responses))


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

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        scored = await _together(part.score(prompt, responses) for part in self._parts)
        least = [
            Score(
                min(p.standardised(s) for p, s in zip(self._parts, scores, strict=True)),
                _flops(scores),
            )
            for scores in zip(*scored, strict=True)
        ]
        return check_scores("reward 'minimum'", least, len(responses))


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

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        scores, seconds = await _together(
            [self._first.score(prompt, responses), self._look(prompt, responses)]
        )
        return [
            Score(score, _flops((score, second)), None if second is None else float(second))
            for score, second in zip(scores, seconds, strict=True)
        ]

    async def _look(self, prompt: Prompt, responses: Sequence[str]) -> Sequence[float | None]:
        try:
            return await self._second.score(prompt, responses)
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
    if hasattr(given, "score"):
        return given
    try:
        made = FunctionReward(given) if callable(given) else make_reward(given)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    if isinstance(made, HeldOutReward):
        raise ConfigError(
            f"{place}: held_out goes around the other kinds, not into one: its second reward would be lost"
        )
    return made


def _flops(scores: Iterable[float | None]) -> float | None:
    return total_flops(getattr(score, "flops", None) for score in scores)


async def _together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of all of them; the first error ends the others, and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
