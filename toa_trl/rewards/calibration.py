"""The scale of a reward model on a run's own responses: the mean and std that a combination of rewards asks for."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from statistics import fmean, pstdev

from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards import RewardModel
from toa_trl.rewards.base import check_scores
from toa_trl.types import Prompt, Rollout
from toa_trl.utils.registry import check_whole

logger = logging.getLogger(__name__)


async def calibrate(
    rollouts: Iterable[Rollout],
    reward_model: RewardModel,
    num_responses: int = 1000,
    seed: int = 0,
    judged: Callable[[Prompt], Prompt] = lambda prompt: prompt,
) -> tuple[float, float]:
    """Mean and standard deviation of the raw rewards of scored responses, drawn at random, each at most once.

    Args:
        rollouts: of a run; read once, and only what is drawn is kept.
        reward_model: to be calibrated.
        num_responses: >= 2; all of them where there are fewer.
        seed: of the draw.
        judged: the prompt as the run's reward model sees it: `toa_trl.tasks.Task.judged` of the run's task.

    Returns:
        (mean, std), std > 0; without the responses that this reward model cannot score, of which a warning tells.

    Raises:
        ConfigError: fewer than two responses, or the same reward for all of them.
        RewardError: fewer than two of them could be scored.
        Unavailable: none of the reward model's servers answers.
    """
    check_whole("num_responses", num_responses, at_least=2)
    drawn = _draw(rollouts, num_responses, random.Random(seed))
    if len(drawn) < 2:
        raise ConfigError(
            f"calibrate: a standard deviation needs at least 2 responses, and there are {len(drawn)}"
        )
    failures: list[RewardError] = []

    async def reward(prompt: Prompt, text: str) -> list[float]:
        try:
            return check_scores("calibrate", await reward_model.score(judged(prompt), [text]), 1)
        except RewardError as error:
            failures.append(error)
            return []

    rewards = [
        score
        for scores in await asyncio.gather(*(reward(*each) for each in drawn))
        for score in scores
    ]
    if len(rewards) < 2:
        raise failures[0]
    if failures:
        logger.warning(
            "%d of %d responses are left out, the first because of: %s",
            len(failures),
            len(drawn),
            failures[0],
        )
    mean, std = fmean(rewards), pstdev(rewards)
    if std == 0:
        raise ConfigError(
            f"calibrate: all {len(rewards)} responses have the reward {mean:g}, which no std can scale"
        )
    return mean, std


def _draw(rollouts: Iterable[Rollout], count: int, rng: random.Random) -> list[tuple[Prompt, str]]:
    """`count` responses with their prompts, all equally likely (reservoir sampling)."""
    drawn: list[tuple[Prompt, str]] = []
    texts = (
        (rollout.prompt, play.completion.text)
        for rollout in rollouts
        for play in rollout.scored
        if play.completion
    )
    for number, each in enumerate(texts):
        if number < count:
            drawn.append(each)
        elif (at := rng.randrange(number + 1)) < count:
            drawn[at] = each
    return drawn
