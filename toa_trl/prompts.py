"""(prompt, action, earlier plays) -> the chat messages that an agent sees.

The words are in plain files, one folder per task: `refine.txt` with the fields {prompt} and {draft}, `aggregate.txt`
with {prompt} and {drafts}, and `draft.txt` with {number} and {draft}, which lays out one of several drafts. An answer
sees the prompt as it is. Earlier turns and system prompts of the conversation are kept; only its last user message is
rewritten (paper, section 3.1: an action conditions an agent on x and on earlier responses).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toa_trl.errors import ConfigError
from toa_trl.types import Action, Message, Play, Prompt

BUILT_IN = Path(__file__).parent / "templates"
FIELDS = {"refine": ("prompt", "draft"), "aggregate": ("prompt", "drafts"), "draft": ("number", "draft")}


@dataclass(frozen=True)
class Templates:
    """The words of one task."""

    refine: str
    aggregate: str
    draft: str

    @classmethod
    def load(cls, task: str = "chat") -> Templates:
        """Read a task's templates: a built-in name (`chat`), or a folder with refine.txt, aggregate.txt and draft.txt.

        Raises:
            ConfigError: no such task, a missing file, or a template without one of its fields.
        """
        folder = BUILT_IN / task if (BUILT_IN / task).is_dir() else Path(task)
        texts = {}
        for name, fields in FIELDS.items():
            path = folder / f"{name}.txt"
            if not path.is_file():
                known = ", ".join(sorted(p.name for p in BUILT_IN.iterdir()))
                raise ConfigError(
                    f"task {task!r}: {path} is missing; name a built-in task ({known}) or a folder with it"
                )
            texts[name] = path.read_text(encoding="utf-8").rstrip("\n")
            for field in fields:
                if f"{{{field}}}" not in texts[name]:
                    raise ConfigError(f"{path}: the field {{{field}}} is missing")
        return cls(**texts)


def render(prompt: Prompt, action: Action, plays: Mapping[int, Play], templates: Templates) -> tuple[Message, ...]:
    """The messages for `action`. `plays` holds at least the scored plays that `action.refs` names."""
    if not action.refs:
        return prompt.messages
    *before, last = prompt.messages
    drafts = [_text(plays[ref]) for ref in action.refs]
    if action.kind == "refine":
        content = _fill(templates.refine, prompt=last.content, draft=drafts[0])
    else:
        listed = (_fill(templates.draft, number=str(i), draft=d) for i, d in enumerate(drafts, 1))
        content = _fill(templates.aggregate, prompt=last.content, drafts="\n\n".join(listed))
    return (*before, Message("user", content))


def _text(play: Play) -> str:
    assert play.completion is not None
    return play.completion.text


def _fill(template: str, **fields: str) -> str:
    # not str.format: prompts and drafts are full of braces, and a filled field must not be filled again
    return re.sub(r"\{(" + "|".join(fields) + r")\}", lambda match: fields[match[1]], template)
