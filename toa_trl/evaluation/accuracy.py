"""Accuracy by verifier and mean reward of one model, greedy and sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from toa_trl.agents import Agent
from toa_trl.evaluation.intervals import bootstrap, wilson
from toa_trl.rewards import RewardModel
from toa_trl.types import Prompt, Sampling


@dataclass(frozen=True)
class Accuracy:
    """Of one model on one set of problems. Shares in [0, 1]; intervals are 95 %."""

    accuracy: float  # of the greedy response
    interval: tuple[float, float]  # Wilson
    mean_reward: float  # raw, of the greedy response
    num_problems: int
    num_truncated: int  # greedy responses that max_tokens cut short
    sampled_accuracy: float | None = None  # mean over problems and samples
    sampled_interval: tuple[float, float] | None = None  # bootstrap over problems

    def as_json(self) -> dict[str, Any]:
        """Without what was not measured."""
        return {key: value for key, value in asdict(self).items() if value is not None}


async def measure(
    agent: Agent,
    prompts: Sequence[Prompt],
    verifier: RewardModel,
    reward_model: RewardModel,
    sampling: Sampling,
    *,
    num_samples: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> Accuracy:
    """Ask every prompt once greedily and `num_samples` times with `sampling`.

    Args:
        agent: the model; its errors are raised, because a missing answer is no wrong answer.
        prompts: the problems, with what the verifier needs in their metadata.
        verifier: 1 for a right response, 0 for a wrong one.
        reward_model: whose mean is reported beside.
        sampling: of the samples; the greedy response takes its max_tokens and stop.
        num_samples: per problem, >= 0.
        seed: of the first sample; the next one's is 1 higher.
        progress: show a progress bar.

    Raises:
        AgentError, RewardError: a response is missing or could not be judged.
    """
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=False, disable=not progress)
    task = bar.add_task(agent.name, total=len(prompts) * (1 + num_samples))

    async def ask(prompt: Prompt, sampling: Sampling, seed: int) -> tuple[str, float, str]:
        done = await agent.generate(prompt.messages, sampling=sampling, seed=seed)
        (right,) = await verifier.score(prompt, [done.text])
        bar.advance(task)
        return done.text, right, done.finish_reason

    with bar:
        greedy = replace(sampling, temperature=0.0)
        answers = await asyncio.gather(*(ask(prompt, greedy, seed) for prompt in prompts))
        scores = await asyncio.gather(*(reward_model.score(p, [a[0]]) for p, a in zip(prompts, answers, strict=True)))
        tries = [(prompt, sampling, seed + k) for prompt in prompts for k in range(num_samples)]
        samples = await asyncio.gather(*(ask(*each) for each in tries))
    right = [answer[1] for answer in answers]
    per_problem = [
        mean(sample[1] for sample in samples[at : at + num_samples]) for at in range(0, len(samples), num_samples or 1)
    ]
    return Accuracy(
        accuracy=mean(right),
        interval=wilson(sum(right), len(right)),
        mean_reward=mean(score for (score,) in scores),
        num_problems=len(prompts),
        num_truncated=sum(answer[2] == "length" for answer in answers),
        sampled_accuracy=mean(per_problem) if per_problem else None,
        sampled_interval=bootstrap(per_problem) if per_problem else None,
    )
