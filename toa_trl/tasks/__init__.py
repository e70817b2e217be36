"""What is the work? `make_task` finds or builds a task; one task, one file, one line here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.tasks.alignment import Alignment
from toa_trl.tasks.base import Task
from toa_trl.tasks.math import Math
from toa_trl.tasks.translation import Translation
from toa_trl.utils.registry import choose, construct, load_object

TASKS: dict[str, type[Task]] = {task.name: task for task in (Alignment, Translation, Math)}

__all__ = ["TASKS", "Task", "make_task"]


def make_task(entry: str | Mapping[str, Any] | Task) -> Task:
    """A task.

    Args:
        entry: a name (alignment, translation, math), a folder of templates (alignment in other words),
            "package.module:name" of a subclass of `Task`, or a mapping {name, ...} with the arguments of the task's class.

    Raises:
        ConfigError: no such task, an unknown argument, or a template that is missing or lacks a field.
    """
    if isinstance(entry, Task):
        return entry
    params = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name = params.pop("name", None)
    place = f"task {name!r}"
    if isinstance(name, str) and ":" in name:
        found = load_object("task", name)
        if isinstance(found, type) and issubclass(found, Task):
            return construct(place, found, params=params)
        raise ConfigError(f"{place} is no subclass of toa_trl.tasks.Task")
    if isinstance(name, str) and name not in TASKS and Path(name).is_dir():
        return construct(place, Alignment, params={"templates": name, **params})
    return construct(place, choose("task", "name", TASKS, name), params=params)
