"""(prompt, action, earlier plays) -> the chat messages that an agent sees.

The words are in plain files, one folder per task: `refine.txt` with the field {draft}, `aggregate.txt` with {drafts},
`draft.txt` with {number} and {draft}, which lays out one of several drafts, and, where a prompt is not asked as it is,
`answer.txt`. Each may also have {prompt}, what the user asked, and the name of any column of the prompts file. Earlier turns
and system prompts of the conversation are kept; only its last user message is rewritten (paper, section 3.1: an action
conditions an agent on x and on earlier responses).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from toa_trl.errors import ConfigError
from toa_trl.types import Action, Message, Play, Prompt

BUILT_IN = Path(__file__).parent / "templates"
FIELD = re.compile(r"\{(\w+)\}")
NEEDED = {"refine": ("draft",), "aggregate": ("drafts",), "draft": ("number", "draft")}


@dataclass(frozen=True)
class Templates:
    """The words of one task."""

    refine: str
    aggregate: str
    draft: str
    answer: str | None = None  # None: the prompt is asked as it is

    @classmethod
    def load(cls, folder: str | Path, asked: str = "prompt") -> Templates:
        """Read a folder with refine.txt, aggregate.txt, draft.txt, and answer.txt where there is one.

        Args:
            folder: of the files.
            asked: the field without which an agent would not know what it is about.

        Raises:
            ConfigError: a missing file, or a template without one of its fields.
        """
        texts = {}
        for name in (*NEEDED, "answer"):
            path = Path(folder) / f"{name}.txt"
            if path.is_file():
                texts[name] = path.read_text(encoding="utf-8").rstrip("\n")
            elif name in NEEDED:
                raise ConfigError(
                    f"task: {path} is missing; {', '.join(f'{n}.txt' for n in NEEDED)} are needed"
                )
        templates = cls(**texts)
        templates.check(f"{folder}/", ".txt", asked)
        return templates

    def check(self, before: str, after: str, asked: str) -> None:
        """Whether every template has its fields; `before` and `after` its name stand in the message.

        Raises:
            ConfigError: one lacks a field.
        """
        for name, text in asdict(self).items():
            fields = (*NEEDED.get(name, ()), *(() if name == "draft" else (asked,)))
            if text is not None and (
                missing := [field for field in fields if field not in FIELD.findall(text)]
            ):
                raise ConfigError(f"{before}{name}{after}: the field {{{missing[0]}}} is missing")


def render(
    prompt: Prompt,
    action: Action,
    plays: Mapping[int, Play],
    templates: Templates,
    fields: Mapping[str, object] | None = None,
) -> tuple[Message, ...]:
    """The messages for `action`.

    Args:
        prompt: an answer sees it as it is.
        action: of the search.
        plays: at least the scored plays that `action.refs` names.
        templates: the words.
        fields: of the templates, beside the prompt's metadata and {prompt}, its last message unless it is among them.
    """
    if not action.refs:
        return prompt.messages
    *before, last = prompt.messages
    fields = {**prompt.metadata, "prompt": last.content, **(fields or {})}
    drafts = [_text(plays[ref]) for ref in action.refs]
    if action.kind == "refine":
        content = fill(templates.refine, {**fields, "draft": drafts[0]})
    else:
        listed = (
            fill(templates.draft, {**fields, "number": i, "draft": d})
            for i, d in enumerate(drafts, 1)
        )
        content = fill(templates.aggregate, {**fields, "drafts": "\n\n".join(listed)})
    return (*before, Message("user", content))


def fill(template: str, fields: Mapping[str, object]) -> str:
    """The template with its fields filled in; braces that name none stay as they are."""
    # not str.format: prompts and drafts are full of braces, and a filled field must not be filled again
    return FIELD.sub(
        lambda match: str(fields[match[1]]) if match[1] in fields else match[0], template
    )


def _text(play: Play) -> str:
    assert play.completion is not None
    return play.completion.text
