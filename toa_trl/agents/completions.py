"""One call of an agent: what it is asked, and what its completion must be.

Before a completion is scored, shown to other agents or trained on, its reasoning is apart, its text
can be stored, it was not interrupted, and its tokens are counted.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from toa_trl.agents.base import Agent, make_sampling
from toa_trl.errors import AgentError, Unavailable
from toa_trl.types import Completion, Message, Sampling, as_messages, as_number, finish_of

PLAIN = {int, float, type(None)}
LOOK_S = 1.0  # polling interval for servers that are unavailable
MAX_TOKENS = 10**8  # of one call; more is a server's error
# How models mark their reasoning; each is an opening and a closing tag.
NAMES = ("think", "thinking", "thought", "thoughts", "reasoning")
TAGS = (
    *((f"<{name}>", f"</{name}>") for name in NAMES),
    *((f"[{name}]", f"[/{name}]") for name in NAMES[:2]),  # Magistral: [THINK]
    *((f"<{prefix}:think>", f"</{prefix}:think>") for prefix in ("seed", "mm")),  # Seed-OSS
    ("<antthinking>", "</antthinking>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think|>", "<|/think|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker, Sky-T1
    ("<|start_thinking|>", "<|end_thinking|>"),  # Command A Reasoning
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<unused94>", "<unused95>"),  # MedGemma
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("◁think▷", "◁/think▷"),  # Kimi
)
CLOSING = dict(TAGS)
FIRST_SIGNS = frozenset(tag[0] for tag in chain.from_iterable(TAGS))
OPEN = re.compile("|".join(re.escape(tag) for tag in CLOSING), re.IGNORECASE)
ANY_CLOSING = "|".join(re.escape(tag) for tag in CLOSING.values())
CODE = re.compile(r"(`{3,}|~{3,}).*?(?:\1|\Z)|`[^`\n]*`", re.DOTALL)
# gpt-oss (harmony): <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final...
HARMONY = re.compile(r"\s*(?:<\|start\|>assistant\s*)?<\|channel\|>")
CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(.*?)"
    r"(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
BARE_HARMONY = re.compile(r"\s*analysis(.*?)assistantfinal(.*)", re.DOTALL)  # without its tokens


class SamplingOf:
    """Give the sampling of one agent: that of the run, with the changes of the agent's entry.

    Args:
        place: path of the agent's entry.
        changes: its key `sampling`.

    Raises:
        ConfigError: a key is unknown, or a value is invalid.
    """

    def __init__(self, place: str, changes: Mapping[str, Any] | None) -> None:
        self._place = f"{place}.sampling"
        self._changes = {} if changes is None else changes
        self._cached = (Sampling(), make_sampling(self._place, Sampling(), self._changes))

    def __call__(self, run: Sampling) -> Sampling:
        """Return the sampling of the agent in a run with this sampling."""
        if run is not self._cached[0]:  # all plays of a run share one object
            self._cached = (run, make_sampling(self._place, run, self._changes))
        return self._cached[1]


def with_system(messages: Sequence[Message], system_prompt: str | None) -> tuple[Message, ...]:
    """Return the messages with a system prompt in front, joined to an existing one."""
    messages = as_messages(messages)
    if not system_prompt:
        return messages
    if messages and messages[0].role == "system":
        return (Message("system", f"{system_prompt}\n\n{messages[0].content}"), *messages[1:])
    return (Message("system", system_prompt), *messages)


async def ask(
    agent: Agent, messages: Sequence[Message], *, sampling: Sampling, seed: int
) -> Completion:
    """Call `agent.generate`, and check what it returns.

    Raises:
        AgentError: see `Agent`, or the completion is not usable: see `checked`.
        Unavailable: see `Agent`.
    """
    try:
        done = await agent.generate(messages, sampling=sampling, seed=seed)
        return counted(checked(f"agent {agent.name!r}", done), messages)
    except AgentError as error:
        if isinstance(error.completion, Completion):
            error.completion = counted(storable(error.completion), messages)
        raise


async def generate_patiently(
    agent: Agent, messages: Sequence[Message], *, sampling: Sampling, seed: int, wait_s: float
) -> Completion:
    """Ask an agent, and repeat it for up to `wait_s` seconds while no server answers.

    Raises:
        AgentError: see `ask`.
        Unavailable: no server has answered for `wait_s` seconds.
    """
    loop, until_s = asyncio.get_running_loop(), None
    while True:
        try:
            return await ask(agent, messages, sampling=sampling, seed=seed)
        except Unavailable:
            until_s = until_s or loop.time() + wait_s
            if loop.time() >= until_s:
                raise
            await asyncio.sleep(min(LOOK_S, wait_s))


def without_reasoning(place: str, done: Completion, keep: bool = False) -> Completion:
    """Return an engine's completion with its reasoning apart from its text.

    Args:
        place: prefix of messages, such as "agent 'llama'".
        done: the response as it was generated.
        keep: leave the reasoning in the text.

    Raises:
        AgentError: there is no answer behind the reasoning.
    """
    reasoning, answer = split_reasoning(done.text)
    if reasoning is not None or done.reasoning is not None:
        parts = filter(None, (done.reasoning, reasoning))
        apart = replace(done, text=answer, reasoning="\n\n".join(parts))
        if not answer.strip():
            problem = f"nothing but reasoning (finish_reason {done.finish_reason})"
            remedy = "; raise max_tokens" if done.finish_reason == "length" else ""
            raise AgentError(f"{place}: {problem}{remedy}", storable(apart))
        return done if keep else apart
    return done


def checked(place: str, done: Any) -> Completion:
    """Return a completion that may be used: a whole or truncated text, which UTF-8 can encode.

    Raises:
        AgentError: it is empty, was interrupted, or is no `Completion`.
    """
    is_completion = isinstance(done, Completion) and isinstance(done.text, str)
    if not is_completion or not isinstance(done.reasoning or "", str):
        raise AgentError(f"{place}: an agent must return a Completion with a text, not {done!r}")
    finish = finish_of(done.finish_reason)
    changed = finish != done.finish_reason
    usable: Completion = storable(replace(done, finish_reason=finish) if changed else done)
    if finish not in ("stop", "length"):
        raise AgentError(
            f"{place}: the response was not completed: finish_reason {finish!r} instead of 'stop'",
            usable,
        )
    if not usable.text.strip():
        raise AgentError(f"{place}: an empty response (finish_reason {finish})", usable)
    return usable


def plausible(count: Any) -> int:
    """Return a number of tokens; 0 where it is missing, negative, absurd or no number."""
    if type(count) is int:  # most counts
        return count if 0 < count <= MAX_TOKENS else 0
    whole = isinstance(count, int) or (isinstance(count, float) and count.is_integer())
    return int(count) if whole and not isinstance(count, bool) and 0 < count <= MAX_TOKENS else 0


def read_usage(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Return prompt and completion tokens of a reply; 0 for a missing or implausible count."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    return plausible(usage.get("prompt_tokens")), plausible(usage.get("completion_tokens"))


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has: one per four bytes, as in English."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


def counted(done: Completion, messages: Sequence[Message]) -> Completion:
    """Return a completion whose tokens are counted; an agent that does not is estimated.

    Args:
        done: a storable completion.
        messages: what it answers.
    """
    num_prompt, num_completion = plausible(done.prompt_tokens), plausible(done.completion_tokens)
    flops = done.flops
    if num_prompt and num_completion and flops is None:  # fast, for most responses
        return done
    written = f"{done.reasoning or ''}{done.text}"
    is_known = num_prompt and (num_completion or not written)
    is_number = isinstance(flops, int | float) and math.isfinite(flops) and flops >= 0
    if is_known and (flops is None or is_number):
        return done
    prompt = "\n".join(message.text for message in as_messages(messages))
    return replace(
        done,
        prompt_tokens=num_prompt or estimated_tokens(prompt),
        completion_tokens=num_completion or estimated_tokens(written),
        flops=flops if is_number else None,
        tokens_estimated=done.tokens_estimated or not is_known,
    )


def storable(done: Completion) -> Completion:
    """Return the completion with numbers of Python and texts that UTF-8 can encode.

    An agent of the user's may count in numpy or torch, which the journal cannot store.
    """
    counts = (done.prompt_tokens, done.completion_tokens, done.flops)
    if not PLAIN.issuperset(map(type, counts)):
        num_prompt, num_completion, flops = map(as_number, counts)
        done = replace(
            done, prompt_tokens=num_prompt, completion_tokens=num_completion, flops=flops
        )
    if done.text.isascii() and not done.reasoning:
        return done
    reasoning = None if done.reasoning is None else whole_text(done.reasoning)
    return replace(done, text=whole_text(done.text), reasoning=reasoning)


def whole_text(text: str) -> str:
    """Replace unpaired surrogates, which a server sends when it cuts an emoji in two."""
    return text.encode("utf-8", "replace").decode("utf-8")


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Split a response into its reasoning (None if it has none) and its answer.

    Reasoning is a block between tags at the start of the response; after such a block, further
    blocks outside of code are reasoning too. A chat template may write the opening tag itself, so
    that the response has only the closing one. max_tokens may cut a response within its
    reasoning, which leaves no answer. A response that merely speaks of tags is left as it is.
    """
    if bare := BARE_HARMONY.fullmatch(text):
        return bare[1].strip(), bare[2].strip()
    if not any(map(text.__contains__, FIRST_SIGNS)):  # fast, for most responses
        return None, text
    if HARMONY.match(text):
        return _split_harmony(text)
    lowered = text.lower()
    if not any(tag in lowered for tag in chain.from_iterable(TAGS)):
        return None, text
    reasoning, answer = _split_leading(text)
    if not reasoning:
        return None, text
    thoughts, answer = _without_blocks(answer)
    return "\n\n".join(filter(None, (*reasoning, *thoughts))), answer


def _split_leading(text: str) -> tuple[list[str], str]:
    """Return the blocks at the start of a response, and the rest."""
    blocks: list[str] = []
    while True:
        opening = OPEN.match(text, len(text) - len(text.lstrip()))
        end = _end_of(opening, text) if opening else _unopened_end(text)
        if not opening and not end:
            return blocks, text.lstrip() if blocks else text
        reasoning = text[opening.end() if opening else 0 : end.start() if end else None]
        blocks.append(reasoning.strip())
        text = text[end.end() :] if end else ""


def _closing(tags: str, text: str, start: int = 0) -> Iterator[re.Match[str]]:
    """Yield the closing tags that are not in quotes."""
    unquoted = rf"(?<![`'\"“‘«(])(?:{tags})|(?:{tags})(?![`'\"”’»)])"
    return re.compile(unquoted, re.IGNORECASE).finditer(text, start)


def _end_of(opening: re.Match[str], text: str) -> re.Match[str] | None:
    """Return the closing tag of a block, preferably one that is not in quotes."""
    tag = re.escape(CLOSING[opening[0].lower()])
    end = next(_closing(tag, text, opening.end()), None)
    return end or re.compile(tag, re.IGNORECASE).search(text, opening.end())


def _unopened_end(text: str) -> re.Match[str] | None:
    """Return the closing tag that ends reasoning whose opening tag the chat template wrote.

    A text that speaks of the tag, in quotes, in code or as a word of a sentence, has none.
    """
    opening = OPEN.search(text)
    code = [match.span() for match in CODE.finditer(text)]
    for end in _closing(ANY_CLOSING, text):
        if opening is not None and opening.start() < end.start():
            return None
        line = text[text.rfind("\n", 0, end.start()) + 1 : end.start()]
        is_word = line.strip() and line[-1].isspace() and text[end.end() : end.end() + 1] == " "
        if not is_word and not any(start <= end.start() < stop for start, stop in code):
            return end
    return None


def _without_blocks(text: str) -> tuple[list[str], str]:
    """Return the complete blocks outside of code, and the text without them."""
    blocks, kept, at = list[str](), "", 0
    while opening := OPEN.search(text, at):
        code, end = CODE.search(text, at), _end_of(opening, text)
        if code is not None and code.start() < opening.start():
            kept, at = kept + text[at : code.end()], code.end()
        elif end is None:
            break
        else:
            blocks.append(text[opening.end() : end.start()].strip())
            kept, at = kept + text[at : opening.start()], end.end()
    return blocks, kept + text[at:]


def _split_harmony(text: str) -> tuple[str | None, str]:
    """Split a response in the channels of gpt-oss: `final` is the answer."""
    channels = [(match[1], match[2].strip()) for match in CHANNEL.finditer(text)]
    answer = "\n\n".join(inside for name, inside in channels if name == "final")
    reasoning = "\n\n".join(inside for name, inside in channels if name != "final")
    return reasoning or None, answer
