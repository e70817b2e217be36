"""Where progress is drawn: on a terminal that others write to as well, or in a notebook."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

REFRESHES_PER_S = 4


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def live_view(console: Console, view: Callable[[], RenderableType]) -> Iterator[None]:
    """Show a live display; other output appears above it instead of breaking it."""
    before = {id(sys.stderr): "stderr", id(sys.stdout): "stdout"}
    # stdout is redirected only if it is the terminal too
    live = Live(
        console=console,
        get_renderable=view,
        refresh_per_second=REFRESHES_PER_S,
        redirect_stdout=sys.stdout.isatty(),
    )
    moved = []
    live.start(refresh=True)
    try:
        for handler in _handlers():
            name = before.get(id(handler.stream))
            if name:
                moved.append((handler, handler.setStream(getattr(sys, name))))
        yield
    finally:
        for handler, stream in moved:
            if stream is not None:
                handler.setStream(stream)
        with suppress(OSError):  # a closed terminal must not end the run
            live.stop()


def _handlers() -> list[logging.StreamHandler[Any]]:
    """Return the stream handlers of all loggers; they keep the stream they were created with."""
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    handlers: dict[logging.StreamHandler[Any], None] = {}
    for logger in loggers:
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            if isinstance(handler, logging.StreamHandler):
                handlers[handler] = None
    return list(handlers)


@contextmanager
def notebook_bar(
    title: str, counts: Callable[[], tuple[int, int]], further: Callable[[], str]
) -> Iterator[None]:
    """Show a bar of tqdm, which a thread updates a few times per second.

    Args:
        title: what is counted.
        counts: returns the number that is done, and the total, which may change.
        further: returns a text behind the bar.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    done = threading.Event()
    with tqdm(total=counts()[1], desc=title) as line:

        def update() -> None:
            line.n, line.total = counts()
            line.set_postfix_str(further())  # draws

        def follow() -> None:
            while not done.wait(1 / REFRESHES_PER_S):
                update()

        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            update()
