"""Combinations of reward models: weighted sum, minimum, or one that steers and one held out.

The mean and standard deviation of a part are constants of its entry, not running estimates: a
reward that depended on earlier plays would differ in a resumed run. `toa_trl.rewards.calibration`
measures them.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from toa_trl.agents.base import Price
from toa_trl.errors import ConfigError, RewardError, Unavailable
from toa_trl.rewards import KINDS, make_reward
from toa_trl.rewards.base import DetailedReward, RewardModel, as_reward_model
from toa_trl.rewards.scoring import as_details, check_scores, total_flops
from toa_trl.types import Prompt, Score
from toa_trl.utils.aio import gather_or_cancel
from toa_trl.utils.config import Config, FiniteFloat, PositiveFloat
from toa_trl.utils.registry import or_object

logger = logging.getLogger(__name__)


def _refuse_held_out(given: Any) -> Any:
    kind = KINDS.load(given["kind"]) if isinstance(given, Mapping) else type(given)
    if kind is HeldOutReward:
        text = "held_out cannot be part of another reward: its second reward would be lost"
        raise PydanticCustomError("explained", "{text}", {"text": text})
    return given


RewardEntry = Annotated[Any, KINDS, or_object(as_reward_model), AfterValidator(_refuse_held_out)]


class MinimumPart(Config):
    """One reward of a minimum."""

    reward: RewardEntry
    """An entry {kind, ...}, a reward model, or a TRL reward function."""
    mean: FiniteFloat = 0.0
    """Mean of its raw rewards."""
    std: PositiveFloat = 1.0
    """Standard deviation of its raw rewards."""


class WeightedPart(MinimumPart):
    """One reward of a weighted sum."""

    weight: FiniteFloat = 1.0
    """Factor of the standardized reward."""


@dataclass(frozen=True)
class Part:
    """One reward model of a combination."""

    name: str  # for errors, and the key of its texts in a run's identity
    model: RewardModel
    weight: float = 1.0
    mean: float = 0.0
    std: float = 1.0  # > 0
    given: Any = None  # entry or object

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """Return raw rewards.

        Raises:
            RewardError: the model failed; the message names the part.
            Unavailable: none of its servers answers.
        """
        try:
            scores = await self.model.score_details(prompt, responses)
        except Unavailable:
            raise
        except RewardError as error:
            raise RewardError(f"{self.name}: {error}") from error
        except Exception as error:  # a reward model of the user's own may raise anything
            raise RewardError(f"{self.name}: {type(error).__name__}: {error}") from error
        return as_details(self.name, scores, len(responses))

    def weighted(self, score: float) -> float:
        """Return weight * (score - mean) / std."""
        return self.weight * ((score - self.mean) / self.std)


class _Combination(DetailedReward):
    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    @property
    def parts(self) -> Mapping[str, Any]:
        """The parts as they were given, with their constants."""
        return {
            part.name.rpartition(": ")[2]: {
                "reward": part.given,
                "weight": part.weight,
                "mean": part.mean,
                "std": part.std,
            }
            for part in self._parts
        }

    @property
    def texts(self) -> Any:
        """The texts of the parts, by name."""
        texts = {part.name: part.model.texts for part in self._parts}
        return {name: text for name, text in texts.items() if text is not None} or None

    @property
    def prices(self) -> tuple[tuple[str, Price | None], ...]:
        """Those of all parts."""
        return tuple(chain.from_iterable(part.model.prices for part in self._parts))

    async def check(self) -> None:
        """Check all parts."""
        await gather_or_cancel(part.model.check() for part in self._parts)

    async def aclose(self) -> None:
        """Close all parts, then raise the first error."""
        closing = (part.model.aclose() for part in self._parts)
        for result in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result


class _StandardizedReward(_Combination):
    """One number, `combine` of the weighted scores of all parts."""

    def __init__(
        self, kind: str, entries: Sequence[MinimumPart], combine: Callable[[Iterable[float]], float]
    ) -> None:
        self._place, self._combine = f"reward {kind!r}", combine
        parts = []
        for index, entry in enumerate(entries):
            name = f"{self._place}: rewards[{index}]"
            weight = entry.weight if isinstance(entry, WeightedPart) else 1.0
            model = _make(name, entry.reward)
            parts.append(Part(name, model, weight, entry.mean, entry.std, entry.reward))
        super().__init__(parts)

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        scored = await gather_or_cancel(
            part.score_details(prompt, responses) for part in self._parts
        )
        combined = []
        for scores in zip(*scored, strict=True):
            values = map(Part.weighted, self._parts, (score.value for score in scores))
            (value,) = check_scores(self._place, [self._combine(values)], 1)
            combined.append(Score(value, total_flops(score.flops for score in scores)))
        return combined


class WeightedSumReward(_StandardizedReward):
    """The sum of weight * (score - mean) / std over the parts.

    Args:
        rewards: list of {reward, weight, mean, std}.

    Raises:
        ConfigError: a part cannot be built.
    """

    def __init__(self, rewards: Annotated[list[WeightedPart], Field(min_length=1)]) -> None:
        # sorted, so that the order of the parts does not change the sum's rounding
        super().__init__("weighted_sum", rewards, lambda terms: sum(sorted(terms)))


class MinimumReward(_StandardizedReward):
    """The minimum of (score - mean) / std over the parts.

    Args:
        rewards: list of {reward, mean, std}.

    Raises:
        ConfigError: a part cannot be built.
    """

    def __init__(self, rewards: Annotated[list[MinimumPart], Field(min_length=1)]) -> None:
        super().__init__("minimum", rewards, min)


class HeldOutReward(_Combination):
    """The score of `reward`, with that of `second` in `Score.second`, which no search sees.

    If the second model fails, `Score.second` is None. If its servers are unavailable, the run waits
    for its `wait_s` and then stops, as for the first.

    Args:
        reward: an entry {kind, ...}, a reward model, or a TRL reward function.
        second: an entry {kind, ...}, a reward model, or a TRL reward function.

    Raises:
        ConfigError: a part cannot be built.
    """

    def __init__(self, reward: RewardEntry, second: RewardEntry) -> None:
        names = ("reward 'held_out': reward", "reward 'held_out': second")
        self._first = Part(names[0], _make(names[0], reward), given=reward)
        self._second = Part(names[1], _make(names[1], second), given=second)
        super().__init__([self._first, self._second])
        self.num_failed = 0  # responses that the second could not score

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        results: list[Any] = await gather_or_cancel(
            [self._first.score_details(prompt, responses), self._second_scores(prompt, responses)]
        )
        combined = []
        for score, second in zip(*results, strict=True):
            flops = total_flops([score.flops, second.flops if second else None])
            combined.append(Score(score.value, flops, second.value if second else None))
        return combined

    async def _second_scores(
        self, prompt: Prompt, responses: Sequence[str]
    ) -> Sequence[Score | None]:
        try:
            return await self._second.score_details(prompt, responses)
        except RewardError as error:
            if not self.num_failed:
                logger.warning("%s; such plays are recorded without a second reward", error)
            self.num_failed += len(responses)
            return [None] * len(responses)


def _make(name: str, given: Any) -> RewardModel:
    try:
        return make_reward(given)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
