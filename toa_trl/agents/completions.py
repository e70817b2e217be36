"""What a completion must be before it is scored, shown to other agents or trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from toa_trl.agents.reasoning import split_reasoning
from toa_trl.errors import AgentError
from toa_trl.types import Completion, Message, as_messages, finish_of
from toa_trl.utils.numbers import as_number

PLAIN = {int, float, type(None)}
MAX_TOKENS = 10**8  # of one call; more is a server's error


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
    if type(count) is int and 0 < count <= MAX_TOKENS:  # most counts
        return count
    count = as_number(count)
    whole = isinstance(count, int) or (isinstance(count, float) and count.is_integer())
    return int(count) if whole and not isinstance(count, bool) and 0 < count <= MAX_TOKENS else 0


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has: one per four bytes, as in English."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


def counted(done: Completion, messages: Sequence[Message]) -> Completion:
    """Return a completion whose tokens are counted; an agent that does not is estimated.

    Args:
        done: the completion.
        messages: what it answers.
    """
    written = f"{done.reasoning or ''}{done.text}"
    num_prompt, num_completion = plausible(done.prompt_tokens), plausible(done.completion_tokens)
    is_known = num_prompt and (num_completion or not written)
    flops = as_number(done.flops)
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
