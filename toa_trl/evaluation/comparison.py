"""Comparison of searches on the same problems: what each reaches at a budget, and its costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain
from operator import itemgetter
from statistics import mean
from typing import Any, Generic, NamedTuple, TypeVar

from toa_trl.agents import Agent
from toa_trl.agents.base import DelegatingAgent
from toa_trl.errors import ConfigError, RewardError
from toa_trl.evaluation.costs import Costs
from toa_trl.evaluation.intervals import bootstrap
from toa_trl.evaluation.outputs import Output
from toa_trl.rewards import RewardModel
from toa_trl.rewards.base import DetailedReward
from toa_trl.tasks import Task
from toa_trl.types import Completion, Message, Prompt, Rollout, Sampling, Score
from toa_trl.utils.results import interval_key

TOP = 10
VERDICTS = ("accuracy", "oracle_accuracy")
COSTS = ("plays", "tokens", "flops", "reward_flops", "cost")
Key = TypeVar("Key")
Value = TypeVar("Value")
Cell = tuple[str, int]
"""Label of a search, and a budget: one row of a table."""


class Run(NamedTuple):
    """One search over all problems, at one budget."""

    search: str  # its label
    budget: int  # plays per problem
    seed: int

    def folder(self, usual_seed: int) -> str:
        """Return the name of its folder, without the seed where it is the usual one."""
        seed = "" if self.seed == usual_seed else f"-seed{self.seed}"
        return f"{self.search}-{self.budget}{seed}"


@dataclass(frozen=True)
class SearchResult:
    """What one run of a search reached, prompt by prompt."""

    rows: dict[str, dict[str, float]]  # by id, of the prompts with a scored play
    rewards: list[list[float]]  # of each of these prompts, in the order of its plays
    num_unanswered: int  # prompts without a scored play
    selected: dict[str, Output] = field(default_factory=dict)  # by id, with the best reward


async def measure_search(
    rollouts: Iterable[Rollout],
    task: Task,
    verifier: RewardModel | None,
    costs: Costs | None = None,
) -> SearchResult:
    """Measure one run of a search.

    Args:
        rollouts: of the search.
        task: of the prompts.
        verifier: scores responses, without the search having seen it. One that is not graded says
            1 for a right response and 0 for a wrong one. None: only rewards are measured.
        costs: how costs are counted; by default FLOPs by the tokens of each call, and no prices.

    Returns:
        Per prompt accuracy (of the response with the best reward) and oracle_accuracy (any response
        is right), or verifier_score and oracle_verifier_score of a graded verifier;
        mean_best_reward, mean_top10_reward (of the 10 best, or of all where there are fewer),
        plays (scored ones), and the costs: see `toa_trl.evaluation.costs.Costs`.

    Raises:
        ConfigError: a verifier that is not graded returns something other than 0 or 1.
    """
    rows: dict[str, dict[str, float]] = {}
    in_order: list[list[float]] = []
    selected: dict[str, Output] = {}
    num_unanswered = 0
    graded = verifier is not None and verifier.graded
    names = ("verifier_score", "oracle_verifier_score") if graded else VERDICTS
    for rollout in rollouts:
        plays = rollout.ranked
        if not plays:  # the run gave this prompt up
            num_unanswered += 1
            continue
        completions = [play.completion for play in plays if play.completion is not None]
        rewards = [play.reward for play in plays if play.reward is not None]
        row: dict[str, float] = {}
        if verifier is not None:
            texts = [completion.text for completion in completions]
            scores = await verifier.score(task.judged(rollout.prompt), texts)
            if not graded:
                scores = check_verdicts(scores)
            row = dict(zip(names, (scores[0], max(scores)), strict=True))
        row["mean_best_reward"] = rewards[0]
        row["mean_top10_reward"] = mean(rewards[:TOP])
        row["plays"] = float(len(plays))
        row |= (costs or Costs()).of(plays)
        rows[rollout.prompt.id] = row
        selected[rollout.prompt.id] = Output(completions[0].text)
        in_order.append([play.reward for play in rollout.scored if play.reward is not None])
    return SearchResult(rows, in_order, num_unanswered, selected)


def summarize(results: Sequence[SearchResult], equal_plays: bool = True) -> dict[str, Any]:
    """Return means over prompts with 95 % bootstrap intervals.

    Args:
        results: of the runs of one search at one budget, one for each seed. A prompt counts with
            its mean over the seeds; one that a run gave up is left out.
        equal_plays: whether every prompt has the same number of plays.

    Returns:
        The values of `measure_search`, those that are no costs with "<name>_interval" (of the
        accuracy "interval"), num_problems, num_unanswered, and with equal plays best_reward_over_n
        (see there).
    """
    rows = list(mean_rows(results).values())
    summary: dict[str, Any] = {
        "num_problems": len(rows),
        "num_unanswered": max(result.num_unanswered for result in results),
    }
    if equal_plays:
        rewards = list(chain.from_iterable(result.rewards for result in results))
        summary["best_reward_over_n"] = best_reward_over_n(rewards)
    for key in dict.fromkeys(chain.from_iterable(rows)):
        values = [row[key] for row in rows if key in row]
        summary[key] = mean(values)
        if key not in COSTS:
            summary[interval_key(key)] = bootstrap(values)
    return summary


def mean_rows(results: Sequence[SearchResult]) -> dict[str, dict[str, float]]:
    """Return the rows of the prompts that every run answered, as means over the runs."""
    runs = [result.rows for result in results]
    means: dict[str, dict[str, float]] = {}
    for prompt_id in runs[0]:
        rows = [run[prompt_id] for run in runs if prompt_id in run]
        if len(rows) == len(runs):
            shared = set(rows[0]).intersection(*rows)
            keys = [key for key in rows[0] if key in shared]
            means[prompt_id] = {key: mean(map(itemgetter(key), rows)) for key in keys}
    return means


async def verify(
    verifier: RewardModel, task: Task, prompt: Prompt, responses: Sequence[str]
) -> list[float]:
    """Return 1 for each right response and 0 for each wrong one.

    Raises:
        ConfigError: the verifier returns something else.
    """
    return check_verdicts(await verifier.score(task.judged(prompt), responses))


async def check_verifier(verifier: RewardModel, task: Task, prompt: Prompt) -> None:
    """Check that a verifier can judge a response, before anything is sampled.

    Raises:
        ConfigError: it cannot, or it is not graded and says something other than 0 or 1.
    """
    await verifier.check()
    try:
        scores = await verifier.score(task.judged(prompt), ["0"])
    except RewardError as error:
        raise ConfigError(f"verifier: cannot judge a response to {prompt.id!r}: {error}") from error
    if not verifier.graded:
        check_verdicts(scores)


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


class RememberingAgent(DelegatingAgent):
    """An agent that answers repeated requests from memory.

    The seed of a play comes from (run seed, prompt, play) and not from the search, so that the
    searches of a comparison share many identical plays. Their costs are counted every time.

    Args:
        agent: the agent that generates.
        identity: its entry, which decides its answers, for the journal of a run.
    """

    def __init__(self, agent: Agent, identity: Mapping[str, Any]) -> None:
        """See the class."""
        super().__init__(agent)
        self._identity = identity
        self.price = identity.get("price")
        self._memory = Memory[tuple[tuple[Message, ...], Sampling, int], Completion]()

    @property
    def identity(self) -> Any:
        """What decides the answers: the entry."""
        return self._identity

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        """See `Agent`."""
        key = (tuple(messages), sampling, seed)
        return await self._memory.get(
            key, lambda: self._agent.generate(messages, sampling=sampling, seed=seed)
        )


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
        score, get = self._reward_model.score_details, self._memory.get
        scores = [get((prompt.id, text), partial(score, prompt, [text])) for text in responses]
        return [score for (score,) in await asyncio.gather(*scores)]

    async def aclose(self) -> None:
        """See `RewardModel`."""
        await self._reward_model.aclose()
