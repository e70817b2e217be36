"""Commands are validated, run with this environment, and never outlive their parent."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import is_running, wait_until_ended
from toa_trl.errors import ConfigError
from toa_trl.utils import guard
from toa_trl.utils.subprocesses import (
    check_command,
    configurations,
    failed,
    last_lines,
    run_command,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="the guard needs Linux")
# writes its id to a file, ignores SIGTERM for a second, and then ends
SLOW = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(0)))
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""


def pid_of(file: Path) -> int:
    """Wait until a process has written its id."""
    deadline = time.monotonic() + 30
    while not file.exists() or not file.read_text():
        assert time.monotonic() < deadline, "the process did not start"
        time.sleep(0.02)
    return int(file.read_text())


def test_a_command_runs_with_the_programs_of_this_environment(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = check_command("train", "python -c 'import sys; print(sys.executable); sys.exit(3)'")
    log.write_text("of an earlier command")
    assert asyncio.run(run_command(argv, log)) == 3
    assert Path(log.read_text().strip()).parent == Path(sys.executable).parent


def test_the_error_shows_the_last_lines_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff\n" + b"".join(b"line %d\n" % number for number in range(40)))
    first, *lines = str(failed("the training ended with code 1", log)).splitlines()
    assert first == f"the training ended with code 1; {log} ends:"
    assert lines == [f"  line {number}" for number in range(25, 40)]
    begin = log.stat().st_size
    assert last_lines(log, begin=begin) == []
    with log.open("a") as file:
        file.write("new\n" + "x" * 30_000)
    assert last_lines(log, 2, begin) == ["x" * 20_000]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python 'x", "train: .*No closing quotation"),
        ("", "train: '' cannot be started"),
        ("no-such-program --x", "train: 'no-such-program --x' cannot be started"),
        ("python sft.py --config none.yaml", r"train: the file none\.yaml does not exist"),
    ],
)
def test_commands_that_cannot_be_started(command: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_command("train", command)


def test_configurations_are_the_yaml_files_of_a_command() -> None:
    command = "toa-trl sft --config 'my run.yaml' --accelerate_config x.yml --out y.json"
    assert configurations(command) == [Path("my run.yaml"), Path("x.yml")]


@linux
def test_cancelling_ends_every_process_of_the_command(tmp_path: Path) -> None:
    child = [sys.executable, "-c", SLOW, str(tmp_path / "pid")]
    launcher = f"import subprocess; subprocess.run({child!r}, start_new_session=True)"

    async def cancel() -> int:
        running = asyncio.create_task(
            run_command([sys.executable, "-c", launcher], tmp_path / "log")
        )
        pid = await asyncio.to_thread(pid_of, tmp_path / "pid")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return pid

    assert not is_running(asyncio.run(cancel())), "also in a session of its own"


@linux
def test_after_kill_9_of_the_parent_the_command_ends_and_then_the_lock_is_free(
    tmp_path: Path,
) -> None:
    child = ["bash", "-c", f'{sys.executable} -c "$0" {tmp_path}/pid & wait', SLOW]
    code = f"""
import asyncio, fcntl
from pathlib import Path
from toa_trl.utils.subprocesses import run_command
lock = open({str(tmp_path / "lock")!r}, "a")
fcntl.flock(lock, fcntl.LOCK_EX)
asyncio.run(run_command({child!r}, Path({str(tmp_path / "log")!r}), [lock.fileno()]))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    pid = pid_of(tmp_path / "pid")
    parent.kill()
    parent.wait()
    with (tmp_path / "lock").open("a") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX)  # free once every process of the command has ended
    assert not is_running(pid)


class Guarded:
    """A guard with its command."""

    def __init__(self, *command: str, file: str = "", grace_s: float = 10.0) -> None:
        argv = [sys.executable, "-I", "-S", guard.__file__, file, str(grace_s), *command]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def close_pipe(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self) -> int:
        """Return the exit code of the guard; closes the pipes only when it has ended."""
        with self.process:
            return self.process.wait()


@linux
def test_the_guard_returns_the_exit_code_of_its_command() -> None:
    assert Guarded("bash", "-c", "exit 7").wait() == 7
    assert Guarded("bash", "-c", "kill -9 $$").wait() == 128 + signal.SIGKILL
    missing = Guarded("/no/such/program").process
    assert missing.communicate()[1] == b"/no/such/program: No such file or directory\n"
    assert missing.returncode == 127


@linux
def test_sigterm_to_the_guard_ends_its_command_gracefully(tmp_path: Path) -> None:
    guarded = Guarded(sys.executable, "-c", SLOW, str(tmp_path / "pid"))
    pid = pid_of(tmp_path / "pid")
    begin = time.monotonic()
    guarded.process.terminate()
    guarded.wait()
    assert time.monotonic() - begin >= 0.9, "the command had time to end by itself"
    assert not is_running(pid)


@linux
def test_the_end_of_the_pipe_ends_the_command_and_removes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.touch()
    guarded = Guarded(sys.executable, "-c", SLOW, str(tmp_path / "pid"), file=str(file))
    pid = pid_of(tmp_path / "pid")
    assert file.exists()
    guarded.close_pipe()
    guarded.wait()
    assert not file.exists()
    assert not is_running(pid)


@linux
def test_sigkill_follows_after_the_grace_period(tmp_path: Path) -> None:
    deaf = f"trap '' TERM; echo $$ > {tmp_path}/pid; while true; do sleep 0.1; done"
    guarded = Guarded("bash", "-c", deaf, grace_s=0.5)
    pid = pid_of(tmp_path / "pid")
    begin = time.monotonic()
    guarded.process.terminate()
    guarded.wait()
    assert 0.5 <= time.monotonic() - begin < 10
    assert not is_running(pid)


@linux
def test_children_that_the_command_leaves_are_ended(tmp_path: Path) -> None:
    orphan = f"setsid bash -c 'echo $$ > {tmp_path}/pid; sleep 600' & sleep 0.3"
    assert Guarded("bash", "-c", orphan).wait() == 0
    assert not is_running(pid_of(tmp_path / "pid"))


@linux
def test_if_the_guard_is_killed_its_command_gets_sigterm(tmp_path: Path) -> None:
    guarded = Guarded(sys.executable, "-c", SLOW, str(tmp_path / "pid"))
    pid = pid_of(tmp_path / "pid")
    guarded.process.kill()
    guarded.wait()
    wait_until_ended(pid)


@linux
def test_descendants_can_be_spared() -> None:
    spared, other = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    try:
        assert {spared.pid, other.pid} <= guard.descendants()
        assert other.pid in guard.descendants([spared.pid])
        assert spared.pid not in guard.descendants([spared.pid])
        before = guard.descendants() - {other.pid}
        for _ in guard.ending(5.0, before):
            time.sleep(0.02)
        assert not is_running(other.pid)
        assert spared.poll() is None
    finally:
        for process in (spared, other):
            process.kill()
            process.wait()


def test_the_guard_needs_the_standard_library_only() -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='guard')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, guard.__file__], check=True)
