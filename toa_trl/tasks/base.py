"""The base class of tasks: how prompts are read, asked, refined, aggregated and parsed.

The templates are text files, one folder per task: `refine.txt` with the field {draft},
`aggregate.txt` with {drafts}, `draft.txt` with {number} and {draft}, which formats one of several
drafts, and `answer.txt` if the prompt is not sent unchanged. Each may also have {prompt}, the
user's question, and the name of any column of the prompts file. Earlier turns and system prompts
of the conversation are kept; only its last user message is rewritten (paper, section 3.1: an
action conditions an agent on x and on earlier responses).

With `refine_system.txt` or `aggregate_system.txt` the drafts are in a system message instead, after
that of the conversation if it has one, and the user's message is sent unchanged: as MoA shows them.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from toa_trl.errors import ConfigError
from toa_trl.types import Action, Message, Play, Prompt, as_dicts, as_messages
from toa_trl.utils.construction import with_arguments

BUILT_IN = Path(__file__).parent / "templates"
FIELD = re.compile(r"\{(\w+)\}")
NEEDED: dict[str, tuple[str, ...]] = {
    "refine": ("draft",),
    "aggregate": ("drafts",),
    "draft": ("number", "draft"),
}
SYSTEM = {"refine_system": ("draft",), "aggregate_system": ("drafts",)}


@dataclass(frozen=True)
class Templates:
    """The templates of one task."""

    refine: str
    aggregate: str
    draft: str
    answer: str | None = None
    """None: the prompt is sent unchanged."""
    refine_system: str | None = None
    """System message with the draft; None: `refine` shows it."""
    aggregate_system: str | None = None
    """System message with the drafts; None: `aggregate` shows them."""

    @property
    def identity(self) -> dict[str, str | None]:
        """What decides the messages, as JSON values; without system messages that are not used."""
        texts: dict[str, str | None] = asdict(self)
        return {k: text for k, text in texts.items() if text is not None or k not in SYSTEM}

    @classmethod
    def load(cls, folder: str | Path, asked: str = "prompt") -> Self:
        """Read refine.txt, aggregate.txt, draft.txt and, if it exists, answer.txt of a folder.

        Args:
            folder: folder of the files, or the name of a built-in one.
            asked: field with the question, which refine, aggregate and answer must contain.

        Raises:
            ConfigError: a file is missing, or a template lacks a field.
        """
        if not Path(folder).exists() and (BUILT_IN / folder).is_dir():
            folder = BUILT_IN / folder
        texts = {}
        for name in (*NEEDED, *SYSTEM, "answer"):
            path = Path(folder) / f"{name}.txt"
            if path.is_file():
                texts[name] = path.read_text(encoding="utf-8").rstrip("\n")
            elif name in NEEDED:
                files = ", ".join(f"{needed}.txt" for needed in NEEDED)
                raise ConfigError(f"task: {path} is missing; {files} are needed")
        templates = cls(**texts)
        templates.check(f"{folder}/", ".txt", asked)
        return templates

    def check(self, before: str, after: str, asked: str) -> None:
        """Check that every template has its fields.

        Args:
            before: text of the error before the template's name.
            after: text of the error after the template's name.
            asked: see `load`.

        Raises:
            ConfigError: a template lacks a field.
        """
        for name, text in asdict(self).items():
            if text is None:
                continue
            present = FIELD.findall(text)
            needed = (NEEDED | SYSTEM).get(name, ())
            if name not in ("draft", *SYSTEM):
                needed = (*needed, asked)
            for field in needed:
                if field not in present:
                    raise ConfigError(f"{before}{name}{after}: the field {{{field}}} is missing")


class Task:
    """Base class of tasks. Subclasses set `name` and override what differs.

    Args:
        templates: folder of templates that replace the task's own, or the name of a built-in one,
            such as moa_system.

    Raises:
        ConfigError: a template is missing, or lacks a field.
    """

    name: ClassVar[str] = ""
    columns: ClassVar[tuple[str, ...]] = ("prompt",)
    """Columns that a row of the prompts file must have."""
    asked: ClassVar[str] = "prompt"
    """Column with the question."""
    verifier: ClassVar[Mapping[str, Any] | None] = None
    """Entry of the reward that checks responses in evaluations."""
    verifier_column: ClassVar[str] = ""
    """Column with the reference that the verifier needs."""
    inline_templates: ClassVar[Templates | None] = None
    """Templates of a task that has no folder of them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments, which belong to the identity of a run."""
        return with_arguments(cls, *args, **kwargs)

    def __init__(self, templates: str | Path | None = None) -> None:
        if templates is None and self.inline_templates is not None:
            self.inline_templates.check(f"task {self.name!r}: ", "", self.asked)
            self.templates = self.inline_templates
        else:
            self.templates = Templates.load(templates or BUILT_IN / self.name, self.asked)

    @property
    def identity(self) -> dict[str, Any]:
        """What of the task decides a run's result, as JSON values."""
        return {"name": self.name, "templates": self.templates.identity}

    def read(self, place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of the prompts file with the `prompt` that the agents are sent.

        The other columns become metadata. If `answer.txt` wraps the last message of `prompt`, the
        original message is kept in the column `problem`.

        Args:
            place: file and line, for errors.
            row: the row as it is in the file.

        Raises:
            ConfigError: a column is missing or empty.
        """
        self.check(place, row)
        if self.templates.answer is None:
            return row
        if self.asked != "prompt":
            return {**row, "prompt": fill(self.templates.answer, row)}
        try:
            *before, last = as_messages(row["prompt"])
        except (TypeError, ValueError):
            return row  # not a conversation: reported when a `Prompt` is made from it
        self.check(place, {**row, "prompt": last.content})
        content = fill(self.templates.answer, {**row, "prompt": last.content})
        asked = replace(last, content=content)
        return {**row, "prompt": as_dicts([*before, asked]), "problem": last.content}

    def check(self, place: str, columns: Mapping[str, Any]) -> None:
        """Check that the columns that the task needs exist.

        Raises:
            ConfigError: a column is missing or empty; the message names the existing ones.
        """
        for column in self.columns:
            value = columns.get(column)
            if value is None:
                existing = [str(name) for name in columns if columns[name] is not None]
                state = "null" if column in columns else "missing"
                problem = f"is {state}; columns: {', '.join(existing) or 'none'}"
            elif isinstance(value, str) and not value.strip():
                problem = "is empty"
            else:
                continue
            raise ConfigError(f"{place}: the column {column!r} {problem} (task {self.name!r})")

    def question(self, prompt: Prompt) -> str:
        """Return the user's question, without the text that `answer.txt` adds."""
        column = "problem" if self.asked == "prompt" else self.asked
        if self.templates.answer is None or column not in prompt.metadata:
            return prompt.messages[-1].content
        return str(prompt.metadata[column])

    def render(
        self, prompt: Prompt, action: Action, plays: Mapping[int, Play]
    ) -> tuple[Message, ...]:
        """Return the messages for an action: see `toa_trl.tasks.base.render`."""
        return render(prompt, action, plays, self.templates, {self.asked: self.question(prompt)})

    def judged(self, prompt: Prompt) -> Prompt:
        """Return the prompt for the reward model, without the text that `answer.txt` adds."""
        *before, last = prompt.messages
        question = self.question(prompt)
        if question == last.content:
            return prompt
        return replace(prompt, messages=(*before, replace(last, content=question)))

    def parse(self, prompt: Prompt, text: str) -> str:
        """Return the response in an agent's output: what is recorded, scored and trained on.

        Raises:
            AgentError: the output contains no response.
        """
        return text


def render(
    prompt: Prompt,
    action: Action,
    plays: Mapping[int, Play],
    templates: Templates,
    fields: Mapping[str, object] | None = None,
) -> tuple[Message, ...]:
    """Return the messages for an action.

    Args:
        prompt: the prompt; an action without references sends it unchanged.
        action: the search's action.
        plays: at least the scored plays in `action.refs`.
        templates: the task's templates.
        fields: values for the templates, which override the prompt's metadata and {prompt}, its
            last message.
    """
    if not action.refs:
        return prompt.messages
    *before, last = prompt.messages
    fields = {**prompt.metadata, "prompt": last.content, **(fields or {})}
    drafts = [_text(plays[ref]) for ref in action.refs]
    if action.kind == "refine":
        template, system = templates.refine, templates.refine_system
        shown = {"draft": drafts[0]}
    else:
        template, system = templates.aggregate, templates.aggregate_system
        formatted = []
        for number, draft in enumerate(drafts, 1):
            formatted.append(fill(templates.draft, {**fields, "number": number, "draft": draft}))
        shown = {"drafts": "\n\n".join(formatted)}
    if system is None:
        return (*before, replace(last, content=fill(template, {**fields, **shown})))
    content = fill(system, {**fields, **shown})
    if before and before[0].role == "system":
        first, *before = before
        content = f"{first.content}\n\n{content}"
    return (Message("system", content), *before, last)


def fill(template: str, fields: Mapping[str, object]) -> str:
    """Return the template with its fields filled in; braces with an unknown name are kept."""

    # not str.format: prompts and drafts are full of braces, and values must not be filled again
    def value(match: re.Match[str]) -> str:
        return str(fields.get(match[1], match[0]))

    return FIELD.sub(value, template)


def _text(play: Play) -> str:
    assert play.completion is not None
    return play.completion.text
