"""The task of a run, from what the run recorded of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.tasks import TASKS, make_task
from toa_trl.tasks.base import Task, Templates


def recorded_task(
    configuration: Mapping[str, Any], identity: Mapping[str, Any], trust: bool, place: str
) -> Task:
    """Return the task with the templates that the run used.

    Args:
        configuration: content of run.yaml, if it exists.
        identity: of the run, with the templates.
        trust: whether code that run.yaml names is run.
        place: name of the run, for errors.

    Raises:
        ConfigError: run.yaml names a task by its module, and `trust` is not set; or the task was an
            object that the run could not record.
    """
    entry: Any = configuration.get("task")
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    if isinstance(name, str) and ":" in name and not Path(name).is_dir():
        if not trust:
            raise ConfigError(f"{place}: the task {name!r} is code, which is run only with --trust")
        return make_task(entry)
    recorded = identity.get("task", "alignment")
    params = dict(recorded) if isinstance(recorded, Mapping) else {"name": recorded}
    templates = params.pop("templates", None)
    if params["name"] not in TASKS:
        raise ConfigError(f"{place}: the run recorded only the name of its task {params['name']!r}")
    task = make_task(params)
    if templates is not None:
        task.templates = Templates(**templates)
    return task
