"""A scripted judge in a separate process: `tests.server` with other texts and some invalid answers.

It rates a response by its number of words (`rating`), and of two it prefers the longer one; with
more than twice as many words it is much better. It finds the texts by the tag that the first lines
of the prompt name. The request and its seed alone decide which answers are invalid.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from functools import partial
from typing import Any

import tests.server as base

NONSENSE = [
    "I would rather not say.",
    "",
    "Rating: [[11]] Verdict: [[C]]",
    "Rating: [[seven]] Verdict: [[the first]]",
    "Rating: [[3]], or rather Rating: [[9]]. Verdict: [[A]], or rather Verdict: [[B]].",
    "Rating: 7, Verdict: A",
    "[[8]] [[A]] [[A>B]]",
    "Rating: [[7.3]] Verdict: [[A or B]]",
    "Rating: [[-4]] Verdict: [[]]",
    "Rating: [[10/10]] Verdict: [[A>>>B]]",
    "x" * 10_000,
]


def rating(response: str) -> float:
    """Return a whole or half number from 1 to 10."""
    return 1 + len(response.split()) % 19 / 2


def verdict(a: str, b: str, arena: bool) -> str:
    first, second = len(a.split()), len(b.split())
    better, worse = ("A", "B") if first > second else ("B", "A")
    if first == second:
        return "A=B" if arena else "TIE"
    much = max(first, second) > 2 * min(first, second)
    return f"{better}{'>>' if much else '>'}{worse}" if arena else better


class JudgeServer(base.Server):
    """The judge, with the slots, latencies, faults and statistics of `tests.server`."""

    def chat(self, request: base.Request) -> dict[str, Any]:
        asked = request.body["messages"][-1]["content"]
        fails, which = base._numbers(request.digest)
        nonsense = fails < self.options.nonsense
        text = NONSENSE[int(which * len(NONSENSE))] if nonsense else _answer(asked)
        answer = super().chat(request)
        for choice in answer["choices"]:
            choice["message"]["content"] = text
            choice["finish_reason"] = "stop"
        return answer


def _answer(asked: str) -> str:
    (tag,) = re.findall(r"tags that end in (\w+)\.", asked[:500])

    def between(name: str) -> str | None:
        found = re.search(rf"<{name}-{tag}>\n(.*)\n</{name}-{tag}>", asked, re.DOTALL)
        return found[1] if found else None

    a, b = between("response_a"), between("response_b")
    if a is not None and b is not None:
        return f"I counted the words.\n\n**Verdict:** [[{verdict(a, b, arena='A>>B' in asked)}]]"
    return f"I counted the words.\n\nRating: [[{rating(between('response') or ''):g}]]"


# judging(nonsense=0.3): the server in a separate process, like `tests.server.serving`
judging = partial(base.serving, "tests.judge_server")


if __name__ == "__main__":
    plain_arguments = base.arguments

    def arguments() -> argparse.ArgumentParser:
        parser = plain_arguments()
        parser.add_argument(
            "--nonsense", type=float, default=0.0, help="share of the answers that are no verdict"
        )
        return parser

    base.Server, base.arguments = JudgeServer, arguments  # type: ignore[misc]
    asyncio.run(base.main())
