"""Responses of a model to a set of prompts, greedy and sampled; each is asked for only once."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from toa_trl.agents import Agent, as_agent
from toa_trl.agents.completions import generate_patiently
from toa_trl.agents.deferred import DeferredAgent, check_entry
from toa_trl.errors import AgentError
from toa_trl.evaluation.ledger import Ledger
from toa_trl.rewards import RewardModel
from toa_trl.tasks import Task
from toa_trl.types import Completion, Prompt, Sampling

# Thai, Lao, Burmese, Khmer, kana and Han have no spaces between words
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Output:
    """One response."""

    text: str
    finish_reason: str = "stop"

    @property
    def num_words(self) -> int:
        """Length in words; in scripts without spaces a character counts as a word."""
        rest, num_characters = UNSPACED.subn(" ", self.text)
        return len(rest.split()) + num_characters


@dataclass(frozen=True, slots=True)
class Outputs:
    """One model's responses to one prompt."""

    greedy: Output
    samples: tuple[Output, ...] = ()


async def respond(
    agent: Agent | Mapping[str, Any],
    prompts: Sequence[Prompt],
    task: Task,
    sampling: Sampling,
    *,
    num_samples: int = 0,
    seed: int = 0,
    path: Path | None = None,
    patience_s: float = 900.0,
    progress: bool = True,
) -> list[Outputs]:
    """Ask every prompt once greedily and `num_samples` times with `sampling`.

    Args:
        agent: the model, or its entry {name, engine, ...}: it is then made when the first response
            is missing, and its memory is given back at the end. Its errors are raised once all
            other responses exist, because a missing answer is not a wrong answer; but an empty
            response, and one that max_tokens ended before it began (in its reasoning), counts as
            empty.
        prompts: what is asked.
        task: finds the response in an answer; "" where there is none.
        sampling: of the samples; the greedy response uses its max_tokens and stop.
        num_samples: per prompt, >= 0.
        seed: of the first sample; that of each further sample is 1 higher.
        path: JSONL file that keeps the responses, see `toa_trl.evaluation.ledger.ledger_path`.
        patience_s: how long a response waits while none of the model's servers answers.
        progress: show a progress bar.

    Raises:
        AgentError: responses are missing; the message has their number and the first reason.
        Unavailable: no server answered for `patience_s`.
    """
    made = DeferredAgent(agent) if isinstance(agent, Mapping) else None
    asked = made or as_agent(agent)
    ledger = Ledger(path, "id", "sample")
    if len(ledger):
        logger.warning("%s: reusing %d responses of %s", asked.name, len(ledger), path)
    bar = counting_bar(progress)
    shown = bar.add_task(asked.name, total=len(prompts) * (1 + num_samples))

    async def ask(prompt: Prompt, number: int) -> Output:
        row = ledger.get(prompt.id, number)
        if row is None:
            used = sampling if number else replace(sampling, temperature=0.0)
            output = await _generate(asked, prompt, used, seed + max(number - 1, 0), patience_s)
            row = ledger.add(
                prompt.id, number, response=output.text, finish_reason=output.finish_reason
            )
        bar.advance(shown)
        return Output(_parsed(task, prompt, row["response"]), row["finish_reason"])

    async with closing_all(made):
        with bar, closing(ledger):
            wanted = product(prompts, range(1 + num_samples))
            answers = await asyncio.gather(
                *(ask(prompt, number) for prompt, number in wanted), return_exceptions=True
            )
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    if errors and not isinstance(errors[0], AgentError):
        raise errors[0]
    if errors:
        raise AgentError(
            f"{len(errors)} of {len(answers)} responses are missing; the first: {errors[0]}"
        ) from errors[0]
    complete = [answer for answer in answers if isinstance(answer, Output)]
    step = 1 + num_samples
    return [
        Outputs(complete[start], tuple(complete[start + 1 : start + step]))
        for start in range(0, len(complete), step)
    ]


def num_missing(path: Path, prompts: Sequence[Prompt], num_samples: int) -> int:
    """Return how many responses `respond` would ask for with the same arguments."""
    ledger = Ledger(path, "id", "sample")
    wanted = product(prompts, range(1 + num_samples))
    return sum(ledger.get(prompt.id, number) is None for prompt, number in wanted)


def counting_bar(shown: bool) -> Progress:
    """Return a progress bar with counts, on stderr."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    return Progress(
        *columns, console=Console(stderr=True), redirect_stdout=False, disable=not shown
    )


async def _generate(
    agent: Agent, prompt: Prompt, sampling: Sampling, seed: int, patience_s: float
) -> Output:
    try:
        done = await generate_patiently(
            agent, prompt.messages, sampling=sampling, seed=seed, wait_s=patience_s
        )
    except AgentError as error:
        given = error.completion
        if given is not None and _is_no_answer(given):
            return Output("", given.finish_reason)
        raise AgentError(f"prompt {prompt.id!r}: {error}") from error
    return Output(done.text, done.finish_reason)


def _is_no_answer(done: Completion) -> bool:
    is_cut = done.finish_reason == "length"
    return not done.text.strip() and (
        is_cut or (done.finish_reason == "stop" and not done.reasoning)
    )


async def check_all(
    entries: Sequence[Mapping[str, Any]], *parts: Agent | RewardModel | None
) -> None:
    """Check every model and every judge before the first is asked, not after hours.

    Args:
        entries: of models.
        parts: reward models and judges; None is skipped.

    Raises:
        ConfigError: see `check_entry`; or a reward model or a judge cannot be asked.
    """
    for entry in entries:
        await check_entry(f"model {entry['name']!r}", entry)
    for part in parts:
        if part is not None:
            await part.check()


@asynccontextmanager
async def closing_all(*parts: Any) -> AsyncIterator[tuple[Any, ...]]:
    """Close agents, reward models and judges at the end; None is skipped."""
    try:
        yield parts
    finally:
        for part in parts:
            if part is not None:
                await part.aclose()


def _parsed(task: Task, prompt: Prompt, text: str) -> str:
    try:
        return task.parse(prompt, text)
    except AgentError:  # an evaluation counts it as empty and does not retry
        return ""
