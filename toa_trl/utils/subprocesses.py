"""Commands as a user types them: the training and recipe commands that other recipes start."""

import asyncio
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from toa_trl.errors import ConfigError, ToaError
from toa_trl.utils import guard

LAST_LINES = 15  # of a log, shown if its command fails
LAST_BYTES = 20_000  # of a log, which can be large, among which they are


def check_command(place: str, command: str) -> list[str]:
    """Split a command into argv and validate it.

    Raises:
        ConfigError: the program was not found, or a YAML file that the command names is missing.
    """
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{place}: {command!r}: {error}") from error
    if not argv or shutil.which(argv[0], path=_path()) is None:
        raise ConfigError(
            f"{place}: {command!r} cannot be started; write a command such as toa-trl sft ..."
        )
    for file in configurations(command):
        if not file.is_file():
            raise ConfigError(f"{place}: the file {file} does not exist")
    return argv


def configurations(command: str) -> list[Path]:
    """Return the YAML files that a command names."""
    return [Path(part) for part in shlex.split(command) if part.endswith((".yaml", ".yml"))]


async def run_command(
    argv: Sequence[str],
    log: Path,
    held: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command to its end, and end all its processes if this one ends.

    On Linux that includes the case that this process is ended by `kill -9`.

    Args:
        argv: the command; programs of this Python's environment are found even if it is not
            activated.
        log: file that receives the output; replaced if it exists.
        held: file descriptors that stay open until every process of the command has ended, such as
            those of locks.
        environment: variables besides those of this process.

    Returns:
        The exit code of the command.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(guard.guarded(argv) if sys.platform == "linux" else argv),
            stdin=asyncio.subprocess.PIPE,  # watched by the guard
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PATH": _path(), **(environment or {})},
            start_new_session=True,  # the children of a launcher end with its process group
            pass_fds=held,
        )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)
            await process.wait()


def failed(what: str, log: Path) -> ToaError:
    """Return the error of a failed command, with the last lines of its log."""
    return ToaError("\n  ".join([f"{what}; {log} ends:", *last_lines(log)]))


def last_lines(log: Path, number: int = LAST_LINES, begin: int = 0) -> list[str]:
    """Return the last lines of a log.

    Args:
        log: the file.
        number: of lines, at most.
        begin: only of what was written after this byte.
    """
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - LAST_BYTES))
        return file.read().decode("utf-8", "replace").splitlines()[-number:]


def _path() -> str:
    """Return PATH with the programs of this Python's environment first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
