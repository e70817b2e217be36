"""Progress of a stage that may take long: nothing is shown unless it does."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from toa_trl.utils.escape import for_terminal

Item = TypeVar("Item")
SHOWN_AFTER_S = 2.0
EVERY_S = 60.0  # between two lines where stderr is not a terminal
REFRESHES_PER_S = 4


@contextmanager
def stage(title: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Show a stage on stderr once it has taken `SHOWN_AFTER_S`: a bar, or lines in a log.

    Args:
        title: what is done, such as "writing rollouts".
        total: parts of it; None: unknown, only the time is shown.

    Yields:
        A function that counts one part.
    """
    begin_s, done, count = time.monotonic(), threading.Event(), 0

    def advance() -> None:
        nonlocal count
        count += 1

    def line() -> str:
        of = f"/{total:,}" if total else ""
        number = f"{count:,}{of}, " if count or total else ""
        return for_terminal(f"{title}: {number}{time.monotonic() - begin_s:.0f} s")

    def write() -> None:
        with suppress(OSError, ValueError):  # a closed stderr must not end the stage
            sys.stderr.write(line() + "\n")
            sys.stderr.flush()

    def show() -> None:
        if done.wait(SHOWN_AFTER_S):
            return
        console = Console(stderr=True)
        if not (sys.stderr.isatty() and console.is_interactive):
            write()
            while not done.wait(EVERY_S):
                write()
            write()
            return
        columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, redirect_stdout=False) as bar:
            shown = bar.add_task(for_terminal(title), total=total)
            while not done.wait(1 / REFRESHES_PER_S):
                bar.update(shown, completed=count)
            bar.update(shown, completed=count)

    thread = threading.Thread(target=show, name="stage", daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        done.set()
        thread.join()


def counted(title: str, items: Iterable[Item], total: int | None = None) -> Iterator[Item]:
    """Yield items, and show how many were taken if that takes long; see `stage`."""
    with stage(title, total) as advance:
        for item in items:
            yield item
            advance()
