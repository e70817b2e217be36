"""Searches against one another on the same problems: what each reaches at a budget, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from itertools import accumulate
from statistics import mean
from typing import Any, NamedTuple, TypeVar

from toa_trl.agents import Agent
from toa_trl.errors import ConfigError
from toa_trl.evaluation.intervals import bootstrap
from toa_trl.rewards import RewardModel
from toa_trl.rewards.base import DetailedReward
from toa_trl.tasks import Task
from toa_trl.types import Completion, Message, Prompt, Rollout, Sampling, Score

TOP = 10
Key = TypeVar("Key")
Value = TypeVar("Value")


class Run(NamedTuple):
    """One search over all problems, at one budget."""

    search: str
    budget: int  # plays per problem
    seed: int

    def folder(self, usual_seed: int) -> str:
        """A name for its folder, without the seed where it is the usual one."""
        return f"{self.search}-{self.budget}" + (
            f"-seed{self.seed}" if self.seed != usual_seed else ""
        )


async def summarize_search(
    rollouts: Iterable[Rollout], task: Task, verifier: RewardModel
) -> dict[str, Any]:
    """What one search reached, as means over prompts with 95 % bootstrap intervals.

    Args:
        rollouts: of the search. Those without a scored play are counted, and left out of the means.
        task: of the prompts.
        verifier: 1 for a right response, 0 for a wrong one. The search has not seen it.

    Returns:
        accuracy (of the response with the best reward), oracle_accuracy (any response is right), mean_best_reward,
        mean_top10_reward (of the 10 best, or of all where there are fewer), each of them with "<name>_interval" (of the
        accuracy plainly "interval"), best_reward_over_n (see there), per prompt tokens, flops and reward_flops, and
        num_problems and num_unanswered (left out).

    Raises:
        ConfigError: the verifier says something else than 0 or 1.
    """
    best_right, any_right, best, top, tokens, flops, reward_flops, in_order = ([] for _ in range(8))
    num_unanswered = 0
    for rollout in rollouts:
        if not rollout.scored:  # the run gave it up
            num_unanswered += 1
            continue
        plays = rollout.ranked
        done = [play.completion for play in plays if play.completion is not None]
        right = await verify(
            verifier, task, rollout.prompt, [completion.text for completion in done]
        )
        rewards = [play.reward for play in plays if play.reward is not None]
        best_right.append(right[0])
        any_right.append(max(right))
        best.append(rewards[0])
        top.append(mean(rewards[:TOP]))
        tokens.append(
            sum(completion.prompt_tokens + completion.completion_tokens for completion in done)
        )
        flops.append(sum(completion.flops or 0.0 for completion in done))
        reward_flops.append(sum(play.reward_flops or 0.0 for play in plays))
        in_order.append([play.reward for play in rollout.scored if play.reward is not None])
    return {
        "accuracy": mean(best_right),
        "interval": bootstrap(best_right),
        "oracle_accuracy": mean(any_right),
        "oracle_accuracy_interval": bootstrap(any_right),
        "mean_best_reward": mean(best),
        "mean_best_reward_interval": bootstrap(best),
        "mean_top10_reward": mean(top),
        "mean_top10_reward_interval": bootstrap(top),
        "best_reward_over_n": best_reward_over_n(in_order),
        "tokens": mean(tokens),
        "flops": mean(flops),
        "reward_flops": mean(reward_flops),
        "num_problems": len(best),
        "num_unanswered": num_unanswered,
    }


async def verify(
    verifier: RewardModel, task: Task, prompt: Prompt, responses: Sequence[str]
) -> list[float]:
    """1 for each right response, 0 for each wrong one.

    Raises:
        ConfigError: the verifier says something else.
    """
    return check_verdicts(await verifier.score(task.judged(prompt), responses))


def check_verdicts(scores: Sequence[float]) -> list[float]:
    """The scores.

    Raises:
        ConfigError: one is neither 0 nor 1, and shares of right responses cannot be made of them.
    """
    if other := [score for score in scores if score not in (0.0, 1.0)]:
        raise ConfigError(
            f"verifier: 1 (right) or 0 (wrong) is needed, not {other[0]:.4g}; name one that says so"
        )
    return [float(score) for score in scores]


def best_reward_over_n(rewards: Sequence[Sequence[float]]) -> list[float]:
    """Mean over prompts of the best reward after n = 1, 2, ... scored plays.

    These are the first n plays of one run, and a run knows its budget: toa's width is a third of it, prs answers half
    of it before it refines. Only of the others are they what a run at the budget n would have found.

    Args:
        rewards: of each prompt, in the order of its plays, at least one; a prompt with fewer keeps its best.
    """
    curves = [list(accumulate(each, max)) for each in rewards]
    return [
        mean(curve[min(n, len(curve) - 1)] for curve in curves)
        for n in range(max(map(len, curves)))
    ]


class RememberingAgent(Agent):
    """Answers what it was asked before, with the same seed, from memory.

    The seed of a play comes from (run seed, prompt, play) and not from the search, so that the searches of a comparison
    share many plays to the letter. Their costs are counted each time all the same.

    Args:
        agent: who answers.
        identity: what decides its answers, for the journal of a run.
    """

    def __init__(self, agent: Agent, identity: Any) -> None:
        self.name = agent.name
        self._identity = identity
        self._agent = agent
        self._known: dict[
            tuple[tuple[Message, ...], Sampling, int], asyncio.Future[Completion]
        ] = {}

    @property
    def away(self) -> str | None:
        """Why the agent cannot be asked now."""
        return self._agent.away

    @property
    def can_be_away(self) -> bool:
        """Whether the agent's servers may become unavailable and come back."""
        return self._agent.can_be_away

    @property
    def identity(self) -> Any:
        """What decides the answers: the entry."""
        return self._identity

    async def check(self) -> None:
        """Raises:
        ConfigError: a server of the agent is not there.
        """
        await self._agent.check()

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`."""
        key = (tuple(messages), sampling, seed)
        if key not in self._known:
            _remember(
                self._known, key, self._agent.generate(messages, sampling=sampling, seed=seed)
            )
        return await asyncio.shield(self._known[key])  # others may wait for it, too

    async def aclose(self) -> None:
        """Close what the agent holds."""
        await self._agent.aclose()


class RememberingReward(DetailedReward):
    """The reward model's counterpart of `RememberingAgent`; a reward has no seed."""

    def __init__(self, reward_model: RewardModel, identity: Any) -> None:
        self._identity = identity
        self._reward_model = reward_model
        self._known: dict[tuple[str, str], asyncio.Future[list[Score]]] = {}

    @property
    def identity(self) -> Any:
        """What decides the answers: the entry."""
        return self._identity

    async def check(self) -> None:
        """Raises:
        ConfigError: a server of the reward model is not there.
        """
        await self._reward_model.check()

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        for text in responses:
            if (prompt.id, text) not in self._known:
                _remember(
                    self._known, (prompt.id, text), self._reward_model.score_details(prompt, [text])
                )
        return [(await asyncio.shield(self._known[prompt.id, text]))[0] for text in responses]

    async def aclose(self) -> None:
        """Close what the reward model holds."""
        await self._reward_model.aclose()


def _remember(
    known: dict[Key, asyncio.Future[Value]], key: Key, coroutine: Coroutine[Any, Any, Value]
) -> None:
    """Start it, and forget it again where it fails or is cancelled: the next who asks shall have another chance."""

    def forget(future: asyncio.Future[Value]) -> None:
        if future.cancelled() or future.exception() is not None:
            known.pop(key)

    known[key] = asyncio.ensure_future(coroutine)
    known[key].add_done_callback(forget)
