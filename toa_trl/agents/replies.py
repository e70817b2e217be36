"""Read the replies of OpenAI-compatible servers, which differ in many details."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from toa_trl.agents.completions import plausible

MALFORMED = "not a chat completion"


class Reply(NamedTuple):
    """One reply, as far as it matters here."""

    text: str
    reasoning: str
    refusal: str  # what the model wrote instead of an answer
    problem: str  # why the reply is no text, or empty
    finish_reason: str | None


def read_reply(answer: Any) -> Reply:
    """Return the first choice of a chat completion.

    Raises:
        ValueError: it is malformed, so that another attempt may help.
    """
    try:
        choice = answer["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        content = message.get("content")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        calls = message.get("tool_calls") or message.get("function_call")
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(MALFORMED) from error
    if not isinstance(finish_reason or "", str) or not isinstance(refusal or "", str):
        raise ValueError(f"{MALFORMED}: something in it has another type")
    if isinstance(content, str) and not (reasoning or calls or refusal):  # most replies
        return Reply(content, "", "", "", finish_reason)
    found = _Parts()
    found.add(content)
    thoughts = _Parts(inside="reasoning")
    thoughts.add(reasoning)
    problem = "it calls a tool, and no tools are offered" if calls else found.problem
    return Reply(
        text="".join(found.text),
        reasoning="\n\n".join(filter(None, (*thoughts.text, *found.reasoning))),
        refusal="".join(filter(None, (refusal, *found.refusal))),
        problem=problem,
        finish_reason=finish_reason,
    )


def read_usage(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Return prompt and completion tokens of a reply; 0 for a missing or implausible count."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    return plausible(usage.get("prompt_tokens")), plausible(usage.get("completion_tokens"))


class _Parts:
    """Collects the text, the reasoning and the refusal of a content: a text, or a list of parts."""

    def __init__(self, inside: str = "content") -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.problem = ""
        self._inside = inside

    def add(self, content: Any) -> None:
        """Add a content.

        Raises:
            ValueError: it is malformed.
        """
        if isinstance(content, str):
            self.text.append(content)
        elif isinstance(content, list):
            for part in content:
                self.add(part)
        elif isinstance(content, Mapping):
            self._add_part(content)
        elif content is not None:
            raise ValueError(f"{MALFORMED}: the {self._inside} has another type")

    def _add_part(self, part: Mapping[str, Any]) -> None:
        kind = part.get("type")
        match kind:
            case "text" | "output_text":
                if not isinstance(part.get("text"), str):
                    raise ValueError(f"{MALFORMED}: a part of the {self._inside} has no text")
                self.text.append(part["text"])
            case "thinking" | "reasoning":
                thoughts = _Parts(inside="reasoning")
                thoughts.add(part.get(kind) or part.get("text") or part.get("content"))
                self.reasoning.append("".join(thoughts.text))
            case "refusal":
                self.refusal.append(str(part.get("refusal")))
            case "reference" | "redacted_thinking":  # no text of the answer
                pass
            case str():
                self.problem = f"its content has a part of type {kind[:40]!r}"
            case _:
                raise ValueError(f"{MALFORMED}: a part of the {self._inside} has no type")
