"""The base class of tasks: how prompts are read, asked, refined, aggregated and parsed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from toa_trl.errors import ConfigError
from toa_trl.tasks.rendering import BUILT_IN, Templates, fill, render
from toa_trl.types import Action, Message, Play, Prompt, as_dicts, as_messages
from toa_trl.utils.construction import with_arguments


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
                problem = f"is missing; columns: {', '.join(existing) or 'none'}"
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
        """Return the messages for an action: see `toa_trl.tasks.rendering.render`."""
        if not action.refs:
            return prompt.messages
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
