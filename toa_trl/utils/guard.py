"""Guard of one command: ends its whole process tree when the command or the parent ends.

    python -I -S guard.py FILE GRACE_S COMMAND...

Standard input is a pipe whose other end only the parent holds: end of file means that the parent is
gone, even after `kill -9`. FILE is removed then, unless it is "". As a subreaper the guard inherits
every orphan below it, also those in sessions of their own, so that it finds all of them. Standard
library only and started by its path, so that it starts within some 20 ms. Linux only.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

GRACE_S = 10.0  # between SIGTERM and SIGKILL
POLL_S = 0.1
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
LIBC = ctypes.CDLL(None)


def guarded(command: Sequence[str], file: str = "") -> list[str]:
    """Return the argv that runs a command under a guard; the file is FILE, as above."""
    return [sys.executable, "-I", "-S", __file__, file, str(GRACE_S), *command]


def become_subreaper() -> None:
    """Make orphaned descendants children of this process rather than of init."""
    if LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("this kernel has no child subreapers; servers could be left running")


def descendants(spare: Collection[int] = ()) -> set[int]:
    """Return the ids of all descendants, except those of `spare` and their descendants."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_bytes().rpartition(b")")[2].split()[1]
        except OSError:  # the process has ended in the meantime
            continue
        children[int(parent)].append(int(stat.parent.name))
    pids, parents = set(), [os.getpid()]
    while parents:
        below = [pid for pid in children[parents.pop()] if pid not in spare]
        pids.update(below)
        parents += below
    return pids


def ending(grace_s: float, spare: Collection[int] = ()) -> Iterator[None]:
    """Send SIGTERM to all `descendants(spare)`, and SIGKILL to those that remain after `grace_s`.

    Yields until none remains; the caller sleeps at each yield, and may change `spare` there.
    """
    begin, signalled = time.monotonic(), set[int]()
    while pids := descendants(spare):
        late = time.monotonic() - begin > grace_s
        for pid in pids if late else pids - signalled:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        for pid in pids:
            with suppress(ChildProcessError):  # the child of another process
                os.waitpid(pid, os.WNOHANG)
        signalled |= pids
        yield


def guard(file: str, grace_s: float, command: list[str]) -> int:
    """Run the command, and return its exit code, or 128 + the signal that ended it."""
    become_subreaper()
    LIBC.prctl(PR_SET_NAME, b"toa-guard")  # so that `killall -9 python` does not kill the guards
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # if guard and parent are killed at once, the server can still end its own children
            preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    code = None
    try:
        while code is None and not received:
            if select.select([0], [], [], POLL_S)[0] and not os.read(0, 1):
                if file:
                    Path(file).unlink(missing_ok=True)
                break
            code = _reap().get(server.pid)
    finally:
        for _ in ending(grace_s):
            time.sleep(POLL_S)
    return 0 if code is None else code if code >= 0 else 128 - code


def _reap() -> dict[int, int]:
    """Return the exit codes (negative: the signal) of ended children, including adopted ones."""
    codes = {}
    with suppress(ChildProcessError):  # no child remains
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    return codes


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
