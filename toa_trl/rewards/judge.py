"""A language model as the judge: it rates a response, or compares it with another.

The judge is any agent. Judging by a strong model and swapping positions against position bias
follow MT-Bench (Zheng et al. 2023, arXiv 2306.05685). The five verdicts of the mode `arena` and
their weights are those of Arena-Hard-Auto (Li et al. 2024, arXiv 2406.11939; its show_result.py
counts a verdict of "much better" three times). The templates are text files.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

from toa_trl.agents import ENGINES, Agent, as_agent, make_agent, make_sampling
from toa_trl.agents.base import Price
from toa_trl.agents.completions import generate_patiently, split_reasoning
from toa_trl.agents.deferred import DeferredAgent
from toa_trl.errors import AgentError, ConfigError, RewardError
from toa_trl.rewards.base import DetailedReward
from toa_trl.rewards.scoring import total_flops
from toa_trl.rewards.spending import spend
from toa_trl.tasks.base import fill
from toa_trl.types import Completion, Message, Prompt, Sampling, Score
from toa_trl.utils.config import NonNegativeFloat, NonNegativeInt, PositiveInt, validate
from toa_trl.utils.registry import or_object

PLACE = "reward 'judge'"
BUILT_IN = Path(__file__).parent / "templates"
MAX_SHOWN = 200  # characters of a judge's answer that an error shows

AgentEntry = Annotated[Any, ENGINES, or_object(as_agent)]


@dataclass(frozen=True, slots=True)
class Mode:
    """What the judge sees, and which verdicts it may give."""

    keyword: str  # before the brackets: "Rating" for Rating: [[7]]
    fields: tuple[str, ...]  # of the template, for the responses
    verdicts: Mapping[str, tuple[float, float]]  # text in the brackets -> value and weight


HALVES = [number / 2 for number in range(2, 21)]
RATINGS = {str(n): (n, 1.0) for n in HALVES} | {f"{n:g}": (n, 1.0) for n in HALVES}
PAIR = ("response_a", "response_b")
MODES = {
    "pointwise": Mode("Rating", ("response",), RATINGS),
    "pairwise": Mode("Verdict", PAIR, {"A": (1, 1), "TIE": (0.5, 1), "B": (0, 1)}),
    "arena": Mode(
        "Verdict",
        PAIR,
        {"A>>B": (1, 3), "A>B": (1, 1), "A=B": (0.5, 1), "B>A": (0, 1), "B>>A": (0, 3)},
    ),
}


class JudgeReward(DetailedReward):
    """Pointwise: a rating from 1 to 10 in halves. Pairwise and arena: a share in [0, 1].

    An answer without a valid verdict, with several different ones, or cut short by max_tokens is a
    failure: the judge is asked again, and no number is invented. The first attempt is greedy. Seeds
    come from `seed`, the texts and the attempt, so that runs are reproducible. Judged texts stand
    between tags that occur in none of them.

    Args:
        agent: an entry {name, engine, ...}, or an agent. Its own `sampling` takes precedence; its
            tokens and its `price` count towards the limits of a run.
        mode: pointwise; pairwise (A, B, TIE); or arena (A>>B, A>B, A=B, B>A, B>>A, where >> has
            three times the weight).
        rubric: how to judge: a text, or a file if it ends in .txt or .md. Default: the file
            templates/rubric.txt.
        template: a file, or a folder with <mode>.txt. Fields: {conversation}, {response} or
            {response_a} and {response_b}, {rubric}, and {tag}, the end of the tags.
        baseline: column with the text that responses are compared with (pairwise and arena).
        sampling: sampling of the attempts after the first, e.g. {temperature: 1.0}; max_tokens
            and stop of all of them.
        max_attempts: maximum number of attempts per verdict, the first included.
        seed: seed of the judge.
        wait_s: how long a verdict waits while no server of the judge answers, before the run
            stops.

    Raises:
        ConfigError: a file cannot be read, a template lacks a field or the form of the verdict,
            or the agent cannot be built.
    """

    def __init__(
        self,
        agent: AgentEntry,
        mode: Literal["pointwise", "pairwise", "arena"] = "pointwise",
        rubric: str = "",
        template: str = "",
        baseline: str = "reference",
        sampling: dict[str, Any] | None = None,
        max_attempts: PositiveInt = 3,
        seed: NonNegativeInt = 0,
        wait_s: NonNegativeFloat = 900.0,
    ) -> None:
        self._mode = MODES[mode]
        self._template = _load_template(Path(template or BUILT_IN), mode, needs_rubric=bool(rubric))
        self._rubric = rubric
        if not rubric or rubric.endswith((".txt", ".md")):
            self._rubric = _read(Path(rubric or BUILT_IN / "rubric.txt"))
        self._pattern = re.compile(
            rf"\b{self._mode.keyword}[\s:*_]*\[\[([^\[\]]*)\]\]", re.IGNORECASE
        )
        self._baseline = baseline
        self._sampling = make_sampling("reward.sampling", Sampling(), sampling or {})
        self._max_attempts, self._seed, self._wait_s = max_attempts, seed, wait_s
        self._given = agent
        # another agent that is given as an object is not closed
        self._owns_agent = isinstance(agent, Mapping | DeferredAgent)
        price = agent.get("price") if isinstance(agent, Mapping) else None
        self._price = validate(Price, price, "reward.agent.price") if price else None
        self._agent: Agent = make_agent(agent) if isinstance(agent, Mapping) else as_agent(agent)

    @property
    def parts(self) -> Mapping[str, Any]:
        """The agent, as it was given."""
        return {"agent": self._given}

    @property
    def texts(self) -> Any:
        """The template and the rubric: they decide the verdicts."""
        return {"template": self._template, "rubric": self._rubric}

    @property
    def prices(self) -> tuple[tuple[str, Price | None], ...]:
        """See `RewardModel`."""
        return (("judge", self._price),)

    async def check(self) -> None:
        """Check the judge's agent."""
        await self._agent.check()

    async def aclose(self) -> None:
        """Close the agent, if it was built from an entry."""
        if self._owns_agent:
            await self._agent.aclose()

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        if self._mode.fields != PAIR:
            return await asyncio.gather(*(self._ask(prompt, text) for text in responses))
        against = prompt.metadata.get(self._baseline)
        if not isinstance(against, str):
            columns = ", ".join(prompt.metadata) or "none"
            raise RewardError(
                f"{PLACE}: the column {self._baseline!r} must hold a text; columns: {columns}"
            )
        return await asyncio.gather(*(self.compare(prompt, text, against) for text in responses))

    async def compare(self, prompt: Prompt, a: str, b: str) -> Score:
        """Return the share for `a` in [0, 1], averaged over both orders of the texts.

        pairwise: 0, 0.25, 0.5, 0.75 or 1. arena: the weighted mean of the verdicts, with their mean
        weight, 1 to 3; over many prompts sum(weight * share) / sum(weight) is Arena-Hard's figure.

        Raises:
            ConfigError: the mode is pointwise.
            RewardError: an order has no verdict.
            Unavailable: none of the judge's servers answers.
        """
        if self._mode.fields != PAIR:
            raise ConfigError(f"{PLACE}: comparing needs the mode pairwise or arena")
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
                if error.completion is None:  # after the agent's own retries; final
                    raise RewardError(f"{PLACE}: {error}") from error
                done, verdict = error.completion, str(error)
            flops.append(done.flops)
            counts = (done.prompt_tokens, done.completion_tokens)
            spend(*counts, self._price, done.tokens_estimated)
            if not isinstance(verdict, str):
                return Score(verdict[0], total_flops(flops), weight=verdict[1])
        ending = " ".join(done.text.split())[-MAX_SHOWN:]
        raise RewardError(
            f"{PLACE}: {verdict} ({self._max_attempts} attempts); the answer ends: {ending!r}"
        )

    def _messages(self, prompt: Prompt, responses: Sequence[str]) -> tuple[Message, ...]:
        conversation: list[str] = []
        for message in prompt.messages:
            conversation += (message.role, message.text)
        tag = _tag(conversation, responses)
        turns = (_between(message.role, tag, message.text) for message in prompt.messages)
        fields = {"conversation": "\n\n".join(turns), "rubric": self._rubric, "tag": tag}
        for name, text in zip(self._mode.fields, responses, strict=True):
            fields[name] = _between(name, tag, text)
        return (Message("user", fill(self._template, fields)),)

    def _verdict(self, done: Completion) -> tuple[float, float] | str:
        """Return value and weight, or the reason why there are none."""
        if done.finish_reason == "length":
            return "an answer cut short; raise max_tokens"
        _, answer = split_reasoning(done.text)
        marks = {"".join(mark.split()).upper() for mark in self._pattern.findall(answer)}
        verdicts = {self._mode.verdicts.get(mark) for mark in marks}
        verdict = verdicts.pop() if len(verdicts) == 1 else None
        if verdict is not None:
            return verdict
        shown = ", ".join(f"[[{mark}]]" for mark in sorted(marks)) or "none"
        return f"the answer must have one {self._mode.keyword}: [[...]], not {shown[:MAX_SHOWN]}"


def _load_template(given: Path, mode: str, needs_rubric: bool) -> str:
    path = given / f"{mode}.txt" if given.is_dir() else given
    text = _read(path)
    needs = [f"{{{field}}}" for field in ("conversation", *MODES[mode].fields)]
    if needs_rubric:
        needs.append("{rubric}")
    for needed in (*needs, f"{MODES[mode].keyword}: [["):
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
    """Return eight hexadecimal digits that occur in none of the texts, so that none closes its tag.

    The same for all responses to a conversation unless one contains it, so that servers can cache
    the common prefix.
    """
    everything = "\n".join((*turns, *responses)).lower()
    tag = _digest(turns)
    while tag in everything:
        tag = _digest(tag)
    return tag


def _seed(*parts: object) -> int:
    return int(_digest(parts), 16) >> 1  # 31 bits, which every engine accepts


def _digest(value: object) -> str:
    return blake2b(repr(value).encode("utf-8", "replace"), digest_size=4).hexdigest()
