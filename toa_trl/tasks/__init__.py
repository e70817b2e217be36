"""How is a prompt asked? `make_task` builds a task from its configuration entry.

One task, one file, one line here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.tasks.base import Task, Templates
from toa_trl.utils.registry import Registry

TASKS: Registry[Any] = Registry(
    key="name",
    built_in={
        "alignment": "toa_trl.tasks.alignment:Alignment",
        "translation": "toa_trl.tasks.translation:Translation",
        "math": "toa_trl.tasks.math:Math",
    },
    group="toa_trl.tasks",
)

__all__ = ["TASKS", "Task", "Templates", "make_task"]


def make_task(entry: str | Mapping[str, Any] | Task, place: str = "task") -> Task:
    """Return the task that an entry describes.

    Args:
        entry: a name (alignment, translation, math), "package.module:name" of a subclass of
            `Task`, a folder of templates (the alignment task with these templates), or a mapping
            {name, ...} with the arguments of the task's constructor.
        place: path of the entry in the configuration, for errors.

    Raises:
        ConfigError: an unknown task or argument, or a template that is missing or lacks a field.
    """
    if isinstance(entry, Task):
        return entry
    params = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name = params.get("name")
    if isinstance(name, str) and name not in TASKS and Path(name).is_dir():
        params = {"templates": name, **params, "name": "alignment"}
    if "name" in params:
        factory = TASKS.load(params["name"], place)
        if not (isinstance(factory, type) and issubclass(factory, Task)):
            raise ConfigError(f"{place}: {name!r} is not a subclass of toa_trl.tasks.Task")
    task: Task = TASKS.build(place, params)
    return task
