"""What a task is: how prompts are read, asked, refined and aggregated, and what of an answer is the response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

from toa_trl.errors import ConfigError
from toa_trl.tasks.rendering import BUILT_IN, Templates, fill, render
from toa_trl.types import Action, Message, Play, Prompt, as_dicts, as_messages


class Task:
    """A task of its own is a subclass with a name and, as far as they differ, the rest.

    Args:
        templates: folder with other words than the task's own.

    Raises:
        ConfigError: a template is missing, or lacks a field.
    """

    name: ClassVar[str] = ""
    columns: ClassVar[tuple[str, ...]] = ("prompt",)  # that a row of the prompts file must have
    asked: ClassVar[str] = "prompt"  # the column that holds what is asked
    verifier: ClassVar[Mapping[str, Any] | None] = (
        None  # entry of the reward that checks a response, for evaluations
    )
    verifier_column: ClassVar[str] = ""  # against which it does
    words: ClassVar[Templates | None] = (
        None  # of a task whose templates are no folder of the package
    )

    def __init__(self, templates: str | Path | None = None) -> None:
        if templates is None and self.words is not None:
            self.words.check(f"task {self.name!r}: ", "", self.asked)
            self.templates = self.words
        else:
            self.templates = Templates.load(templates or BUILT_IN / self.name, self.asked)

    @property
    def identity(self) -> dict[str, Any]:
        """What of the task decides a run's result, as JSON values."""
        return {"name": self.name, "templates": asdict(self.templates)}

    def read(self, place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row of the prompts file with its column `prompt` as the agents are asked; the other columns become metadata.

        Where `answer.txt` puts words around the last message of `prompt`, that message is kept in the column `problem`.

        Args:
            place: file and line, for messages.
            row: as it stands in the file.

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
            return row  # no conversation: whoever makes a prompt of it says so
        self.check(place, {**row, "prompt": last.content})
        asked = Message(last.role, fill(self.templates.answer, {**row, "prompt": last.content}))
        return {**row, "prompt": as_dicts([*before, asked]), "problem": last.content}

    def check(self, place: str, columns: Mapping[str, Any]) -> None:
        """Whether the columns that the task needs are there.

        Raises:
            ConfigError: one is missing or empty; the message names those that are there.
        """
        for column in self.columns:
            value = columns.get(column)
            if value is None or (isinstance(value, str) and not value.strip()):
                there = (
                    ", ".join(str(name) for name in columns if columns[name] is not None) or "none"
                )
                what = f"is missing; there are: {there}" if value is None else "is empty"
                raise ConfigError(f"{place}: the column {column!r} {what} (task {self.name!r})")

    def question(self, prompt: Prompt) -> str:
        """What was asked, without the words of `answer.txt`."""
        kept = "problem" if self.asked == "prompt" else self.asked
        as_it_is = self.templates.answer is None or kept not in prompt.metadata
        return prompt.messages[-1].content if as_it_is else str(prompt.metadata[kept])

    def render(
        self, prompt: Prompt, action: Action, plays: Mapping[int, Play]
    ) -> tuple[Message, ...]:
        """The messages for an action: see `toa_trl.tasks.rendering.render`."""
        if not action.refs:
            return prompt.messages
        return render(prompt, action, plays, self.templates, {self.asked: self.question(prompt)})

    def judged(self, prompt: Prompt) -> Prompt:
        """The prompt as the reward model sees it beside a response: without the words of `answer.txt`."""
        *before, last = prompt.messages
        question = self.question(prompt)
        if question == last.content:
            return prompt
        return replace(prompt, messages=(*before, Message(last.role, question)))

    def parse(self, prompt: Prompt, text: str) -> str:
        """The response in what an agent wrote: it is recorded, scored, shown to other agents and trained on.

        Raises:
            AgentError: there is none in it.
        """
        return text
