"""Commands as a person types them, run to their end: the trainings and recipes that another recipe starts."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from toa_trl.errors import ConfigError, ToaError
from toa_trl.utils import guard

GRACE_S = 10.0  # between SIGTERM and SIGKILL
LAST_LINES = 15  # of a command that failed


def check_command(place: str, command: str) -> list[str]:
    """Its words.

    Raises:
        ConfigError: it cannot be started, or a YAML file that it names is not there.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{place}: {command!r}: {error}") from error
    if not words or shutil.which(words[0], path=_path()) is None:
        raise ConfigError(
            f"{place}: {command!r} cannot be started; give one such as accelerate launch ..."
        )
    if missing := [file for file in configurations(command) if not file.is_file()]:
        raise ConfigError(f"{place}: there is no file {missing[0]}")
    return words


def configurations(command: str) -> list[Path]:
    """The YAML files that it names."""
    return [Path(word) for word in shlex.split(command) if word.endswith((".yaml", ".yml"))]


async def run_command(words: Sequence[str], log: Path, held: Sequence[int] = ()) -> int:
    """Run a command to its end; on Linux nothing of it outlives this process, whatever ends that, `kill -9` included.

    Args:
        words: of the command; a program of this Python's environment is found whether that is activated or not.
        log: the file that its output replaces.
        held: file descriptors that stay open until nothing of the command is left, such as those of locks.

    Returns:
        Its exit code.
    """
    guarded = (
        [sys.executable, "-I", "-S", guard.__file__, "", str(GRACE_S)]
        if sys.platform == "linux"
        else []
    )
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *guarded,
            *words,
            stdin=asyncio.subprocess.PIPE,  # what the guard watches
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PATH": _path()},
            start_new_session=True,  # a launcher has children, which end with its group
            pass_fds=held,
        )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)
            await process.wait()


def failed(what: str, log: Path) -> ToaError:
    """The error that says `what` of a command, and shows the last lines of its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    return ToaError("\n  ".join([f"{what}; {log} ends:", *lines]))


def _path() -> str:
    """PATH, with the programs of this Python's environment in front."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
