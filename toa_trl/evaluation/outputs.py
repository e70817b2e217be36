"""What a model answers to a set of prompts, greedily and sampled; written down as it comes, and never asked for twice."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from toa_trl.agents import Agent, make_agent
from toa_trl.agents.base import generate_patiently, whole_text
from toa_trl.errors import AgentError
from toa_trl.evaluation.ledger import Ledger
from toa_trl.models.loading import check_whole_model, read_config
from toa_trl.rewards import RewardModel
from toa_trl.tasks import Task
from toa_trl.types import Prompt, Sampling

# Thai, Lao, Burmese, Khmer, kana and Han: without spaces between words
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
        """Its length; in a script without spaces a character is a word."""
        rest, num_characters = UNSPACED.subn(" ", self.text)
        return len(rest.split()) + num_characters


@dataclass(frozen=True, slots=True)
class Outputs:
    """One model's responses to one prompt."""

    greedy: Output
    samples: tuple[Output, ...] = ()


async def respond(
    agent: Agent,
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
        agent: the model. An error of its is raised once all others have answered, because a missing answer is no wrong
            answer; but one that max_tokens ended before it began (in its reasoning) is an empty one.
        prompts: what is asked.
        task: says what of an answer is the response; "" where nothing is.
        sampling: of the samples; the greedy response takes its max_tokens and stop.
        num_samples: per prompt, >= 0.
        seed: of the first sample; the next one's is 1 higher.
        path: JSONL file to which every response goes as it comes, and from which those are taken that are there: see
            `toa_trl.evaluation.ledger.ledger_path` for a name that no other model and settings share.
        patience_s: how long a response waits while none of the model's servers answers.
        progress: show a progress bar.

    Raises:
        AgentError: responses are missing; the message counts them and gives the first reason.
        Unavailable: no server for `patience_s`.
    """
    ledger = Ledger(path, "id", "sample")
    if len(ledger):
        logger.warning("%s: %d responses are there already, in %s", agent.name, len(ledger), path)
    bar = counting_bar(progress)
    shown = bar.add_task(agent.name, total=len(prompts) * (1 + num_samples))

    async def ask(prompt: Prompt, number: int) -> Output:
        if (row := ledger.get(prompt.id, number)) is None:
            asked = sampling if number else replace(sampling, temperature=0.0)
            done = await _generate(agent, prompt, asked, seed + max(number - 1, 0), patience_s)
            row = ledger.add(
                prompt.id, number, response=done.text, finish_reason=done.finish_reason
            )
        bar.advance(shown)
        return Output(_parsed(task, prompt, row["response"]), row["finish_reason"])

    with bar, closing(ledger):
        wanted = ((prompt, number) for prompt in prompts for number in range(1 + num_samples))
        given = await asyncio.gather(*(ask(*each) for each in wanted), return_exceptions=True)
    found = [each for each in given if isinstance(each, Output)]
    if errors := [each for each in given if isinstance(each, BaseException)]:
        if not isinstance(errors[0], AgentError):
            raise errors[0]
        raise AgentError(
            f"{len(errors)} of {len(given)} responses are missing; the first: {errors[0]}"
        ) from errors[0]
    step = 1 + num_samples
    return [
        Outputs(found[at], tuple(found[at + 1 : at + step])) for at in range(0, len(found), step)
    ]


def counting_bar(shown: bool) -> Progress:
    """A progress bar with counts, on stderr."""
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
        if error.completion is None or error.completion.finish_reason != "length":
            raise AgentError(f"prompt {prompt.id!r}: {error}") from error
        return Output("", "length")
    return Output(whole_text(done.text), done.finish_reason)


async def check_all(
    entries: Sequence[Mapping[str, Any]], *parts: Agent | RewardModel | None
) -> None:
    """Look at every model and every judge before the first of them is asked: a mistake shall not show after hours.

    Args:
        entries: of models.
        parts: reward models and judges; None is left out.

    Raises:
        ConfigError: a folder without a model, or a server that is not there.
    """
    for entry in entries:
        place = f"model {entry['name']!r}"
        if entry.get("engine") in ("transformers", "vllm") and entry.get("model"):
            read_config(place, entry["model"])
            if entry["engine"] == "vllm":
                check_whole_model(place, entry["model"])
        elif entry.get("engine") == "openai":
            async with closing_all(make_agent(entry)) as (agent,):
                await agent.check()
    for part in parts:
        if part is not None:
            await part.check()


@asynccontextmanager
async def closing_all(*parts: Any) -> AsyncIterator[tuple[Any, ...]]:
    """At the end, whatever happens, close what holds connections or processes: agents, reward models, judges."""
    try:
        yield parts
    finally:
        for part in parts:
            if part is not None:
                await part.aclose()


def _parsed(task: Task, prompt: Prompt, text: str) -> str:
    try:
        return task.parse(prompt, text)
    except AgentError:  # here no answer is a bad answer, not one to be asked for again
        return ""
