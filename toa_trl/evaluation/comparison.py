"""Comparison of searches on the same problems: what each reaches at a budget, and its costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from itertools import accumulate
from statistics import mean
from typing import Any, Generic, NamedTuple, TypeVar

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
        """Return the name of its folder, without the seed where it is the usual one."""
        seed = "" if self.seed == usual_seed else f"-seed{self.seed}"
        return f"{self.search}-{self.budget}{seed}"


async def summarize_search(
    rollouts: Iterable[Rollout], task: Task, verifier: RewardModel
) -> dict[str, Any]:
    """Return what one search reached, as means over prompts with 95 % bootstrap intervals.

    Args:
        rollouts: of the search. Those without a scored play are counted, and not in the means.
        task: of the prompts.
        verifier: 1 for a right response, 0 for a wrong one. The search has not seen it.

    Returns:
        accuracy (of the response with the best reward), oracle_accuracy (any response is right),
        mean_best_reward, mean_top10_reward (of the 10 best, or of all where there are fewer), each
        with "<name>_interval" (of the accuracy "interval"), best_reward_over_n (see there), per
        prompt tokens, flops and reward_flops, and num_problems and num_unanswered (left out).

    Raises:
        ConfigError: the verifier returns something other than 0 or 1.
    """
    rows: list[dict[str, float]] = []
    in_order: list[list[float]] = []
    num_unanswered = 0
    for rollout in rollouts:
        plays = rollout.ranked
        if not plays:  # the run gave this prompt up
            num_unanswered += 1
            continue
        completions = [play.completion for play in plays if play.completion is not None]
        rewards = [play.reward for play in plays if play.reward is not None]
        texts = [completion.text for completion in completions]
        right = await verify(verifier, task, rollout.prompt, texts)
        rows.append(
            {
                "accuracy": right[0],
                "oracle_accuracy": max(right),
                "mean_best_reward": rewards[0],
                "mean_top10_reward": mean(rewards[:TOP]),
                "tokens": sum(c.prompt_tokens + c.completion_tokens for c in completions),
                "flops": sum(completion.flops or 0.0 for completion in completions),
                "reward_flops": sum(play.reward_flops or 0.0 for play in plays),
            }
        )
        in_order.append([play.reward for play in rollout.scored if play.reward is not None])
    summary: dict[str, Any] = {
        "best_reward_over_n": best_reward_over_n(in_order),
        "num_problems": len(rows),
        "num_unanswered": num_unanswered,
    }
    for key in rows[0]:
        values = [row[key] for row in rows]
        summary[key] = mean(values)
        if key in ("accuracy", "oracle_accuracy", "mean_best_reward", "mean_top10_reward"):
            interval = "interval" if key == "accuracy" else f"{key}_interval"
            summary[interval] = bootstrap(values)
    return summary


async def verify(
    verifier: RewardModel, task: Task, prompt: Prompt, responses: Sequence[str]
) -> list[float]:
    """Return 1 for each right response and 0 for each wrong one.

    Raises:
        ConfigError: the verifier returns something else.
    """
    return check_verdicts(await verifier.score(task.judged(prompt), responses))


def check_verdicts(scores: Sequence[float]) -> list[float]:
    """Return the scores of a verifier that decides between right and wrong.

    Raises:
        ConfigError: a score is neither 0 nor 1.
    """
    for score in scores:
        if score not in (0.0, 1.0):
            raise ConfigError(
                f"verifier: scores must be 1 (right) or 0 (wrong), not {score:.4g}; "
                "choose a verifier that decides"
            )
    return [float(score) for score in scores]


def best_reward_over_n(rewards: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over prompts of the best reward after n = 1, 2, ... scored plays.

    These are the first n plays of one run, which knows its budget: the width of toa is a third of
    it, and prs answers half of it before it refines. Only for the other searches are they what a
    run with budget n would have found.

    Args:
        rewards: of each prompt, in the order of its plays, at least one; a prompt with fewer plays
            than others keeps its best.
    """
    curves = [list(accumulate(values, max)) for values in rewards]
    means = []
    for n in range(max(map(len, curves))):
        means.append(mean(curve[min(n, len(curve) - 1)] for curve in curves))
    return means


class Memory(Generic[Key, Value]):
    """Results of coroutines by key; concurrent requests for one key share one coroutine."""

    def __init__(self) -> None:
        """Start without results."""
        self._results: dict[Key, asyncio.Future[Value]] = {}

    async def get(self, key: Key, start: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """Return the result for a key; `start` is called only where there is none.

        A coroutine that fails or is cancelled is forgotten, so that the next request starts anew.
        """
        if key not in self._results:
            result = self._results[key] = asyncio.ensure_future(start())
            result.add_done_callback(partial(self._forget_failure, key))
        return await asyncio.shield(self._results[key])  # other requests may wait for it

    def _forget_failure(self, key: Key, result: asyncio.Future[Value]) -> None:
        if result.cancelled() or result.exception() is not None:
            self._results.pop(key)


class RememberingAgent(Agent):
    """An agent that answers repeated requests from memory.

    The seed of a play comes from (run seed, prompt, play) and not from the search, so that the
    searches of a comparison share many identical plays. Their costs are counted every time.

    Args:
        agent: the agent that generates.
        identity: what decides its answers, for the journal of a run.
    """

    def __init__(self, agent: Agent, identity: Any) -> None:
        """See the class."""
        self.name = agent.name
        self._identity = identity
        self._agent = agent
        self._memory = Memory[tuple[tuple[Message, ...], Sampling, int], Completion]()

    @property
    def away(self) -> str | None:
        """See `Agent`."""
        return self._agent.away

    @property
    def can_be_away(self) -> bool:
        """See `Agent`."""
        return self._agent.can_be_away

    @property
    def identity(self) -> Any:
        """What decides the answers: the entry."""
        return self._identity

    async def check(self) -> None:
        """See `Agent`."""
        await self._agent.check()

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`."""
        key = (tuple(messages), sampling, seed)
        return await self._memory.get(
            key, lambda: self._agent.generate(messages, sampling=sampling, seed=seed)
        )

    async def aclose(self) -> None:
        """See `Agent`."""
        await self._agent.aclose()


class RememberingReward(DetailedReward):
    """A reward model that scores repeated responses from memory, see `RememberingAgent`."""

    def __init__(self, reward_model: RewardModel, identity: Any) -> None:
        """See the class."""
        self._identity = identity
        self._reward_model = reward_model
        self._memory = Memory[tuple[str, str], list[Score]]()

    @property
    def identity(self) -> Any:
        """What decides the answers: the entry."""
        return self._identity

    async def check(self) -> None:
        """See `RewardModel`."""
        await self._reward_model.check()

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        scores = []
        for text in responses:
            scores.append(
                self._memory.get(
                    (prompt.id, text), partial(self._reward_model.score_details, prompt, [text])
                )
            )
        return [score for (score,) in await asyncio.gather(*scores)]

    async def aclose(self) -> None:
        """See `RewardModel`."""
        await self._reward_model.aclose()
