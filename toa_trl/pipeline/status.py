"""Which stages of a pipeline are complete, running, interrupted or waiting."""

import json
import time
from pathlib import Path

from toa_trl.pipeline.config import MERGED
from toa_trl.pipeline.plan import Plan
from toa_trl.pipeline.steps import COMPLETE, is_complete
from toa_trl.sampling.progress import duration
from toa_trl.sampling.status import print_status as print_run_status
from toa_trl.utils.config import PositiveFloat, validate
from toa_trl.utils.escape import say
from toa_trl.utils.files import write_json
from toa_trl.utils.targets import is_locked, marked

FILE = "stages.json"
LOCKS = ("pipeline.lock", "iteration.lock")  # of a pipeline, or of rounds


def write_stages(plan: Plan) -> None:
    """Write the names and folders of all stages, in order, into stages.json."""
    listed = [
        {
            "name": plan.label(stage, number),
            "folder": str(plan.folder(number, stage.folder).relative_to(plan.output)),
            "run": stage.run,
        }
        for stage, number in plan.schedule
    ]
    write_json(plan.output / FILE, marked({"stages": listed}))


def print_status(folder: Path, watch: float | None = None) -> None:
    """Print the state of every stage, and the progress of a synthesis that is not complete.

    Args:
        folder: of a pipeline, or of rounds.
        watch: seconds between two updates, > 0; None: print once.

    Raises:
        ConfigError: `watch` is out of range.
    """
    validate(PositiveFloat | None, watch, "--watch")
    while True:
        running = any(is_locked(folder / name) for name in LOCKS)
        say(
            "\n".join(
                [f"{folder}: {'running' if running else 'not running'}", *_lines(folder, running)]
            )
        )
        current = _current(folder)
        if current is not None and (folder / current / "journal.sqlite").is_file():
            print_run_status(folder / current)
        if watch is None or not running:
            return
        time.sleep(watch)


def _lines(folder: Path, running: bool) -> list[str]:
    stages, current = _stages(folder), _current(folder)
    width = max((len(stage["name"]) for stage in stages), default=0)
    lines = []
    for stage in stages:
        path = folder / stage["folder"]
        log = path.with_name(f"{path.name}.log")
        if is_complete(path):
            seconds = json.loads((path / COMPLETE).read_text(encoding="utf-8")).get("seconds")
            state = "complete" + (f", {duration(seconds)}" if seconds else "")
        elif stage["folder"] == current and running:
            state = f"running (log: {log})"
        elif log.is_file():
            state = f"interrupted (log: {log})"
        else:
            state = "waiting"
        lines.append(f"  {stage['name']:{width}}  {state}")
    return lines


def _stages(folder: Path) -> list[dict[str, str]]:
    """Return the stages as listed; of a folder of an earlier version, those that have begun."""
    if (folder / FILE).is_file():
        return list(json.loads((folder / FILE).read_text(encoding="utf-8"))["stages"])
    logs = sorted(folder.glob("round-*/*.log"), key=lambda log: log.stat().st_mtime)
    folders = [log.with_suffix("").relative_to(folder) for log in logs]
    return [
        {"name": str(path), "folder": str(path)}
        for path in folders
        if not path.name.endswith(MERGED)
    ]


def _current(folder: Path) -> str | None:
    """Return the folder of the first stage that is not complete."""
    for stage in _stages(folder):
        if not is_complete(folder / stage["folder"]):
            return stage["folder"]
    return None
