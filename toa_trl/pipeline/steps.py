"""Run steps: each is a command in a process of its own, and runs once."""

import asyncio
import fcntl
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.utils.files import replace_text
from toa_trl.utils.subprocesses import GRACE_S, failed, run_command
from toa_trl.utils.targets import is_json

COMPLETE = "complete.json"


@dataclass(frozen=True)
class Step:
    """One command, and how to know that it has done its work."""

    name: str
    """Shown to the user, such as "round 1, sft"."""
    folder: Path
    """What it writes; its log is beside it."""
    argv: Sequence[str]
    """The command."""
    leaves: str
    """Pattern of the files in the folder that it leaves if it succeeds."""
    restart: bool = False
    """Remove what an interrupted attempt has left, or move it aside if it is not certain that this
    package wrote it."""

    @property
    def log(self) -> Path:
        """File with the output of the command."""
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class Runner:
    """Runs the steps of a folder that are not complete.

    Args:
        say: called with each line of progress.
        lock: file descriptor that every command holds, so that the folder stays locked until the
            last of them has ended.
    """

    say: Callable[[str], None]
    lock: int

    async def run(self, step: Step) -> None:
        """Run a step unless it is complete, and mark it complete.

        Raises:
            ToaError: the command failed; shows the last lines of its log.
        """
        folder = step.folder
        if is_complete(folder):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        if step.restart and folder.exists():
            _clear(folder)
        start = time.monotonic()
        self.say(f"{time.strftime('%H:%M:%S')} {step.name} (log: {step.log})")
        code = await run_command(step.argv, step.log, [self.lock])
        if code or not any(folder.glob(step.leaves)):
            problem = f"ended with code {code}" if code else f"left no {step.leaves}"
            raise failed(f"{step.name}: {problem}", step.log)
        mark_complete(folder, command=list(step.argv), seconds=time.monotonic() - start)


def is_complete(folder: Path) -> bool:
    """Return whether the step of a folder is complete."""
    return (folder / COMPLETE).is_file()


def mark_complete(folder: Path, **facts: Any) -> None:
    """Mark the step of a folder complete."""
    replace_text(folder / COMPLETE, json.dumps(facts) + "\n")


def _clear(folder: Path) -> None:
    if is_json(folder / "lineage.json", old={"base_model", "data"}):
        shutil.rmtree(folder)
        return
    aside = (folder.with_name(f"{folder.name}.interrupted-{i}") for i in count(1))
    os.replace(folder, next(path for path in aside if not path.exists()))


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[int]:
    """Lock a folder, and give the lock as a file descriptor, which commands can hold too.

    Raises:
        ConfigError: another process holds it for longer than the commands of a killed one can run.
    """
    with path.open("a") as file:
        end = time.monotonic() + 2 * GRACE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise ConfigError(
                        f"{path.parent}: in use by another process; wait for it, or stop it"
                    ) from error
            await asyncio.sleep(0.2)
        yield file.fileno()
