"""Run steps: each is a command in a process of its own, and runs once."""

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError, ToaError
from toa_trl.utils.files import write_json
from toa_trl.utils.guard import GRACE_S
from toa_trl.utils.subprocesses import failed, last_lines, run_command
from toa_trl.utils.targets import is_json

COMPLETE = "complete.json"
POLL_S = 0.1
REMINDER_S = 60.0  # interval of messages about servers that are still starting


@dataclass(frozen=True)
class Servers:
    """The servers that run during a step, under `toa-trl serve-agents`."""

    labels: Sequence[str]
    """Their names."""
    argv: Sequence[str]
    """Command that runs them until it is stopped."""
    endpoints: Path
    """File that it writes once all of them are healthy."""
    log: Path
    """File with its output."""


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
    """Pattern of the files in the folder that it leaves if it succeeds; empty: it leaves none."""
    restart: bool = False
    """Remove what an interrupted attempt has left, or move it aside if it is not certain that this
    package wrote it."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the command."""
    servers: Servers | None = None
    """Servers that are started before the command and stopped after it."""

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
        if step.servers is None:
            code = await self._command(step)
        else:
            code = await self._command_with(step, step.servers)
        if code or (step.leaves and not any(folder.glob(step.leaves))):
            problem = f"ended with code {code}" if code else f"left no {step.leaves}"
            raise failed(f"{step.name}: {problem}", step.log)
        folder.mkdir(exist_ok=True)
        mark_complete(folder, command=list(step.argv), seconds=time.monotonic() - start)

    async def _command(self, step: Step) -> int:
        self._say(f"{step.name} (log: {step.log})")
        return await run_command(step.argv, step.log, [self.lock], step.environment)

    async def try_servers(self, name: str, servers: Servers) -> None:
        """Start servers, wait until all of them are healthy, and stop them again.

        Raises:
            ToaError: they ended, or were not healthy in time.
        """
        start = time.monotonic()
        async with self._serving(name, servers):
            seconds = time.monotonic() - start
        self._say(f"{name}: healthy after {seconds:.0f} s, and stopped again")

    async def _command_with(self, step: Step, servers: Servers) -> int:
        """Run the command of a step while its servers run.

        Raises:
            ToaError: the servers have ended, or were not healthy in time.
        """
        async with self._serving(step.name, servers) as serving:
            command = asyncio.create_task(self._command(step))
            try:
                await asyncio.wait([serving, command], return_when=asyncio.FIRST_COMPLETED)
                if not command.done():
                    raise _ended(step.name, servers)
                return command.result()
            finally:
                command.cancel()
                await asyncio.gather(command, return_exceptions=True)

    @asynccontextmanager
    async def _serving(self, name: str, servers: Servers) -> AsyncIterator[asyncio.Task[int]]:
        """Run servers; give their task once all of them are healthy.

        Raises:
            ToaError: they ended, or were not healthy in time.
        """
        self._say(f"{name}: starting {', '.join(servers.labels)} (log: {servers.log})")
        servers.endpoints.unlink(missing_ok=True)  # left by a process that was killed
        serving = asyncio.create_task(run_command(servers.argv, servers.log, [self.lock]))
        start = reminded = time.monotonic()
        try:
            while not servers.endpoints.is_file() and not serving.done():
                await asyncio.sleep(POLL_S)
                if time.monotonic() - reminded >= REMINDER_S:
                    reminded = time.monotonic()
                    self._say(f"{name}: servers still starting after {reminded - start:.0f} s")
            if serving.done():
                raise _ended(name, servers)
            yield serving
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    def _say(self, event: str) -> None:
        self.say(f"{time.strftime('%H:%M:%S')} {event}")


def _ended(name: str, servers: Servers) -> ToaError:
    """Return the error of servers that have ended, with the last line of their log."""
    lines = last_lines(servers.log, 1)
    reason = lines[0].removeprefix("stopped: ") if lines else f"no output in {servers.log}"
    return ToaError(f"{name}: its servers have ended: {reason}")


def is_complete(folder: Path) -> bool:
    """Return whether the step of a folder is complete."""
    return (folder / COMPLETE).is_file()


def mark_complete(folder: Path, **facts: Any) -> None:
    """Mark the step of a folder complete."""
    write_json(folder / COMPLETE, facts, indent=None)


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
