"""Read the replies of servers that are more than a text, in which they differ in many details."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

MALFORMED = "not a chat completion"


class Reply(NamedTuple):
    """One reply, as far as it matters here."""

    text: str
    reasoning: str
    refusal: str  # what the model wrote instead of an answer
    problem: str  # why the reply is no text, or empty
    finish_reason: str | None


def reply_of_parts(
    content: Any, reasoning: Any, refusal: str | None, calls: Any, finish_reason: str | None
) -> Reply:
    """Return the reply of a message that is more than a text.

    Args:
        content: a text, or a list of parts.
        reasoning: the same, of the reasoning.
        refusal: what the message has beside its content.
        calls: its tool calls.
        finish_reason: of the choice.

    Raises:
        ValueError: it is malformed, so that another attempt may help.
    """
    found, thoughts = _Parts(content), _Parts(reasoning, inside="reasoning")
    problem = "it calls a tool, and no tools are offered" if calls else found.problem
    return Reply(
        text="".join(found.text),
        reasoning="\n\n".join(filter(None, (*thoughts.text, *found.reasoning))),
        refusal="".join(filter(None, (refusal, *found.refusal))),
        problem=problem,
        finish_reason=finish_reason,
    )


class _Parts:
    """The text, the reasoning and the refusal of a content: a text, or a list of parts.

    Raises:
        ValueError: it is malformed.
    """

    def __init__(self, content: Any, inside: str = "content") -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.problem = ""
        self._inside = inside
        self._add(content)

    def _add(self, content: Any) -> None:
        if isinstance(content, str):
            self.text.append(content)
        elif isinstance(content, list):
            for part in content:
                self._add(part)
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
                thoughts = part.get(kind) or part.get("text") or part.get("content")
                self.reasoning.append("".join(_Parts(thoughts, inside="reasoning").text))
            case "refusal":
                self.refusal.append(str(part.get("refusal")))
            case "reference" | "redacted_thinking":  # no text of the answer
                pass
            case str():
                self.problem = f"its content has a part of type {kind[:40]!r}"
            case _:
                raise ValueError(f"{MALFORMED}: a part of the {self._inside} has no type")
