"""The guard of one server: ends its whole process tree when the server dies, or when the parent is gone.

    python -I -S guard.py FILE GRACE_S COMMAND...

Standard input is a pipe whose other end only the parent holds: its end of file says that the parent is gone, `kill -9`
included. FILE, unless it is "", is removed then. As a subreaper the guard inherits every orphan below it, also those that made sessions
of their own, so that it finds all of them. Standard library only and started by its path: it is up in some 20 ms.
Linux only.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

POLL_S = 0.1
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
LIBC = ctypes.CDLL(None)


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children, rather than init's."""
    if LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("this kernel has no child subreapers, and servers could be left behind")


def descendants(spare: Collection[int] = ()) -> set[int]:
    """Every process under this one, but those of `spare` and what is under them."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_bytes().rpartition(b")")[2].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        children[int(parent)].append(int(stat.parent.name))
    found, left = set(), [os.getpid()]
    while left:
        pids = [pid for pid in children[left.pop()] if pid not in spare]
        found.update(pids)
        left += pids
    return found


def ending(grace_s: float, spare: Collection[int] = ()) -> Iterator[None]:
    """SIGTERM to every `descendants(spare)`, SIGKILL to what is left after `grace_s`; yields for as long as one is left.

    The caller sleeps at each yield, and may change `spare` there.
    """
    begin, asked = time.monotonic(), set[int]()
    while pids := descendants(spare):
        late = time.monotonic() - begin > grace_s
        for pid in pids if late else pids - asked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        for pid in pids:
            with suppress(ChildProcessError):  # it is another's child
                os.waitpid(pid, os.WNOHANG)
        asked |= pids
        yield


def guard(file: str, grace_s: float, command: list[str]) -> int:
    """Run the command; its exit code, or 128 + the signal that ended it."""
    become_subreaper()
    LIBC.prctl(
        PR_SET_NAME, b"toa-guard"
    )  # so that `killall -9 python` spares those who clean up after it
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # for the case that guard and parent are killed at once: the server still can end its own children
            preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    code = None
    try:
        while code is None and not asked:
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
    """The exit codes (negative: the signal) of the children, adopted ones included, that have ended."""
    codes = {}
    with suppress(ChildProcessError):  # none is left
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    return codes


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
