"""Mean and std of a reward model on a run's responses, as combinations of rewards need them."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from statistics import fmean, pstdev
from typing import Annotated

from pydantic import Field

from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards import RewardModel
from toa_trl.rewards.scoring import check_scores
from toa_trl.types import Prompt, Rollout
from toa_trl.utils.config import validate

logger = logging.getLogger(__name__)


async def calibrate(
    rollouts: Iterable[Rollout],
    reward_model: RewardModel,
    num_responses: int = 1000,
    seed: int = 0,
    judged: Callable[[Prompt], Prompt] = lambda prompt: prompt,
) -> tuple[float, float]:
    """Return mean and standard deviation of the raw rewards of randomly drawn scored responses.

    Args:
        rollouts: rollouts of a run; read once, and only drawn responses are kept.
        reward_model: reward model to calibrate.
        num_responses: number of responses to draw, without replacement, >= 2; all if fewer exist.
        seed: random seed of the draw.
        judged: maps a prompt to what the run's reward model sees: `Task.judged` of its task.

    Returns:
        (mean, std), std > 0. Responses that cannot be scored are left out, with a warning.

    Raises:
        ConfigError: fewer than two responses, or the same reward for all of them.
        RewardError: fewer than two responses could be scored.
        Unavailable: none of the reward model's servers answers.
    """
    validate(Annotated[int, Field(ge=2)], num_responses, "num_responses")
    drawn = _draw(rollouts, num_responses, random.Random(seed))
    if len(drawn) < 2:
        raise ConfigError(f"calibrate: at least 2 scored responses are needed, not {len(drawn)}")
    rewards: list[float] = []
    failures: list[RewardError] = []

    async def score(prompt: Prompt, text: str) -> None:
        try:
            scores = await reward_model.score(judged(prompt), [text])
            rewards.extend(check_scores("calibrate", scores, 1))
        except RewardError as error:
            failures.append(error)

    await asyncio.gather(*(score(prompt, text) for prompt, text in drawn))
    if len(rewards) < 2:
        raise failures[0]
    if failures:
        logger.warning(
            "%d of %d responses could not be scored; first error: %s",
            len(failures),
            len(drawn),
            failures[0],
        )
    mean, std = fmean(rewards), pstdev(rewards)
    if std == 0:
        raise ConfigError(
            f"calibrate: all {len(rewards)} responses have the reward {mean:g}; std would be 0"
        )
    return mean, std


def _draw(rollouts: Iterable[Rollout], count: int, rng: random.Random) -> list[tuple[Prompt, str]]:
    """Return `count` responses with their prompts, all equally likely (reservoir sampling)."""
    drawn: dict[int, tuple[Prompt, str]] = {}
    num_seen = 0
    for rollout in rollouts:
        for play in rollout.scored:
            if play.completion is None:
                continue
            slot = num_seen if num_seen < count else rng.randrange(num_seen + 1)
            if slot < count:
                drawn[slot] = rollout.prompt, play.completion.text
            num_seen += 1
    return list(drawn.values())
