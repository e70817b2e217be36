"""A language model as the judge, through any agent: it rates a response, or compares it with another.

Judging by a strong model, and the swapping of positions against its bias for the first text, are those of MT-Bench
(Zheng et al. 2023, arXiv 2306.05685). The five verdicts of the mode `arena` and their weights are Arena-Hard-Auto's
(Li et al. 2024, arXiv 2406.11939; its show_result.py counts a verdict of "much better" three times). The words are our
own, in text files.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from toa_trl.agents import Agent, as_agent, make_agent, make_sampling
from toa_trl.agents.base import generate_patiently, split_reasoning
from toa_trl.errors import AgentError, ConfigError, RewardError
from toa_trl.rewards.base import DetailedReward, total_flops
from toa_trl.tasks.rendering import fill
from toa_trl.types import Completion, Message, Prompt, Sampling, Score
from toa_trl.utils.registry import check_number, check_whole, choose

PLACE = "reward 'judge'"
BUILT_IN = Path(__file__).parent / "templates"
NUM_LAST_WORDS = 200  # characters of a judge's answer that an error shows


@dataclass(frozen=True, slots=True)
class Mode:
    """What the judge is shown, and what it may say."""

    word: str  # before the brackets: "Rating" for Rating: [[7]]
    fields: tuple[str, ...]  # of the template, for the responses
    verdicts: Mapping[
        str, tuple[float, float]
    ]  # what may stand in the brackets -> value and weight


HALVES = [number / 2 for number in range(2, 21)]
PAIR = ("response_a", "response_b")
MODES = {
    "pointwise": Mode(
        "Rating", ("response",), {form(n): (n, 1) for n in HALVES for form in ("{:g}".format, str)}
    ),
    "pairwise": Mode("Verdict", PAIR, {"A": (1, 1), "TIE": (0.5, 1), "B": (0, 1)}),
    "arena": Mode(
        "Verdict",
        PAIR,
        {"A>>B": (1, 3), "A>B": (1, 1), "A=B": (0.5, 1), "B>A": (0, 1), "B>>A": (0, 3)},
    ),
}


class JudgeReward(DetailedReward):
    """pointwise: a whole or half number from 1 to 10. pairwise and arena: the share for the response, in [0, 1].

    An answer without a verdict in the form that is asked for, with several that differ, or cut short by max_tokens is
    a failure: the judge is asked again, and never is a number made of it. The first attempt is greedy. Seeds come from
    `seed`, the texts and the attempt, so that a run repeats. Texts under judgement stand between tags that occur in
    none of them.

    Args:
        agent: an entry {name, engine, ...}, or an agent. What its own `sampling` says wins over this one's.
        mode: pointwise; pairwise (A, B, TIE); or arena (A>>B, A>B, A=B, B>A, B>>A, where >> weighs three times).
        rubric: how to judge: a text, or a file where it ends in .txt or .md. Default: templates/rubric.txt.
        template: a file in other words, or a folder with <mode>.txt. Fields: {conversation}, {response} or {response_a}
            and {response_b}, {rubric}, and {tag}, which ends the tags around the texts.
        baseline: the column with the text that a response is compared with, where it is scored in pairs.
        sampling: of the attempts after the first, e.g. {temperature: 1.0}; max_tokens and stop of all of them.
        max_attempts: of one verdict, the first included.
        seed: >= 0.
        wait_s: how long a verdict waits while none of the judge's servers answers; then the run stops.

    Raises:
        ConfigError: an unknown mode, a file that cannot be read, a template without one of its fields or the form of
            the verdict, a number out of range, or an agent that cannot be made.
    """

    def __init__(
        self,
        agent: Agent | Mapping[str, Any],
        mode: str = "pointwise",
        rubric: str = "",
        template: str = "",
        baseline: str = "reference",
        sampling: Mapping[str, Any] | None = None,
        max_attempts: int = 3,
        seed: int = 0,
        wait_s: float = 900.0,
    ) -> None:
        self._mode = choose(PLACE, "mode", MODES, mode)
        self._template = _load_template(Path(template or BUILT_IN), mode, needs_rubric=bool(rubric))
        if not isinstance(rubric, str):
            raise ConfigError(
                f"{PLACE}: rubric must be a text, or a file that ends in .txt or .md, not {rubric!r}"
            )
        self._rubric = rubric
        if not rubric or rubric.endswith((".txt", ".md")):
            self._rubric = _read(Path(rubric or BUILT_IN / "rubric.txt"))
        self._pattern = re.compile(rf"\b{self._mode.word}[\s:*_]*\[\[([^\[\]]*)\]\]", re.IGNORECASE)
        self._baseline = baseline
        self._sampling = make_sampling(f"{PLACE}: sampling", Sampling(), sampling or {})
        check_whole(f"{PLACE}: max_attempts", max_attempts, at_least=1)
        check_whole(f"{PLACE}: seed", seed, at_least=0)
        check_number(f"{PLACE}: wait_s", wait_s, at_least=0)
        self._max_attempts, self._seed, self._wait_s = max_attempts, seed, wait_s
        # an agent that was given as an object is its owner's to close
        self._own = isinstance(agent, Mapping)
        self._agent = make_agent(agent) if isinstance(agent, Mapping) else as_agent(agent)

    @property
    def texts(self) -> Any:
        """The template and the rubric: they decide the verdicts."""
        return {"template": self._template, "rubric": self._rubric}

    async def check(self) -> None:
        """Raises:
        ConfigError: a server of the judge is not there.
        """
        await self._agent.check()

    async def aclose(self) -> None:
        """Close what the judge holds."""
        if self._own:
            await self._agent.aclose()

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`.

        Raises:
            Unavailable: none of the judge's servers answers.
        """
        if self._mode.fields != PAIR:
            return list(
                await asyncio.gather(*(self._ask(prompt, response) for response in responses))
            )
        against = prompt.metadata.get(self._baseline)
        if not isinstance(against, str):
            there = ", ".join(prompt.metadata) or "none"
            raise RewardError(
                f"{PLACE}: a text is needed in the column {self._baseline!r}; the columns are: {there}"
            )
        return list(
            await asyncio.gather(
                *(self.compare(prompt, response, against) for response in responses)
            )
        )

    async def compare(self, prompt: Prompt, a: str, b: str) -> Score:
        """The share for `a` over both orders, in [0, 1]; the judge sees `a` first in one and second in the other.

        pairwise: 0, 0.25, 0.5, 0.75 or 1. arena: the mean with the verdicts' weights, and their mean weight, 1 to 3:
        over many prompts sum(weight * share) / sum(weight) is Arena-Hard's figure.

        Raises:
            ConfigError: the mode is pointwise.
            RewardError: no verdict in one of the orders.
            Unavailable: none of the judge's servers answers.
        """
        if self._mode.fields != PAIR:
            raise ConfigError(
                f"{PLACE}: mode pairwise or arena is needed to compare, not pointwise"
            )
        first, second = await asyncio.gather(self._ask(prompt, a, b), self._ask(prompt, b, a))
        weight = first.weight + second.weight
        share = (first.weight * first.value + second.weight * (1 - second.value)) / weight
        return Score(share, total_flops([first.flops, second.flops]), weight=weight / 2)

    async def _ask(self, prompt: Prompt, *responses: str) -> Score:
        messages = self._messages(prompt, responses)
        flops: list[float | None] = []
        for attempt in range(self._max_attempts):
            sampling = self._sampling if attempt else replace(self._sampling, temperature=0.0)
            try:
                seed = _seed(self._seed, messages, attempt)
                done = await generate_patiently(
                    self._agent, messages, sampling=sampling, seed=seed, wait_s=self._wait_s
                )
                verdict = self._verdict(done)
            except AgentError as error:
                if (
                    error.completion is None
                ):  # its own retries have ended, and another seed would change nothing
                    raise RewardError(f"{PLACE}: {error}") from error
                done, verdict = error.completion, str(error)
            flops.append(done.flops)
            if not isinstance(verdict, str):
                return Score(verdict[0], total_flops(flops), weight=verdict[1])
        last_words = " ".join(done.text.split())[-NUM_LAST_WORDS:]
        raise RewardError(
            f"{PLACE}: {verdict} ({self._max_attempts} attempts); its last words: {last_words!r}"
        )

    def _messages(self, prompt: Prompt, responses: Sequence[str]) -> tuple[Message, ...]:
        shown = dict(zip(self._mode.fields, responses, strict=True))
        tag = _tag(
            [text for message in prompt.messages for text in (message.role, message.content)],
            responses,
        )
        turns = (_between(message.role, tag, message.content) for message in prompt.messages)
        fields = {"conversation": "\n\n".join(turns), "rubric": self._rubric, "tag": tag}
        fields |= {name: _between(name, tag, text) for name, text in shown.items()}
        return (Message("user", fill(self._template, fields)),)

    def _verdict(self, done: Completion) -> tuple[float, float] | str:
        """Value and weight, or why there are none."""
        if done.finish_reason == "length":
            return "an answer cut short; raise max_tokens"
        _, answer = split_reasoning(done.text)
        found = {"".join(mark.split()).upper() for mark in self._pattern.findall(answer)}
        verdicts = {self._mode.verdicts.get(mark) for mark in found}
        if len(verdicts) == 1 and (verdict := verdicts.pop()) is not None:
            return verdict
        named = ", ".join(f"[[{mark}]]" for mark in sorted(found)) or "none"
        return f"one {self._mode.word}: [[...]] was needed, not {named[:NUM_LAST_WORDS]}"


def _load_template(given: Path, mode: str, needs_rubric: bool) -> str:
    path = given / f"{mode}.txt" if given.is_dir() else given
    text = _read(path)
    fields = ("conversation", *MODES[mode].fields, *(("rubric",) if needs_rubric else ()))
    for needed in (*(f"{{{field}}}" for field in fields), f"{MODES[mode].word}: [["):
        if needed not in text:
            raise ConfigError(f"{PLACE}: {path}: {needed} is missing")
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{PLACE}: {path} cannot be read: {error}") from error


def _between(name: str, tag: str, text: str) -> str:
    return f"<{name}-{tag}>\n{text}\n</{name}-{tag}>"


def _tag(turns: Sequence[str], responses: Sequence[str]) -> str:
    """Eight hexadecimal digits that occur in none of the texts: whoever wrote one could not close the tag around it.

    The same for all responses to a conversation, where none holds it: so a server can cache the prompt up to there.
    """
    everything = "\n".join((*turns, *responses)).lower()
    tag = _digest(turns)
    while tag in everything:
        tag = _digest(tag)
    return tag


def _seed(*parts: object) -> int:
    return int(_digest(parts), 16) >> 1  # 31 bits: what every engine takes


def _digest(value: object) -> str:
    return blake2b(repr(value).encode("utf-8", "replace"), digest_size=4).hexdigest()
