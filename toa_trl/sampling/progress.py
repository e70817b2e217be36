"""The live view of a run, on stderr: how far it is, how fast, who works, and what it costs.

Plays only raise counters; a thread draws them a few times a second, or writes a plain line a minute where stderr is no
terminal.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from toa_trl.types import AgentCounts, Play

REFRESHES_PER_S = 4
WINDOW_S = 60.0  # the rate is that of about this long


@dataclass(slots=True)
class _Agent:
    in_flight: int = 0
    scored: int = 0
    failed: int = 0
    tokens: int = 0  # of prompts and completions


class Progress:
    """Counts plays and shows them, from entering to leaving it as a context.

    Its methods are for one thread (that of the event loop); the thread that draws only reads.

    Args:
        total: plays to score, those of the journal included.
        agents: names, in the order shown.
        cost: what was spent so far, >= 0; None where no price is known. The drawing thread calls it.
        enabled: whether anything is shown.
        console: to draw on (default: stderr).
        clock: in seconds.
        every_s: between two lines where there is no terminal, > 0.
        title: what is counted.
    """

    def __init__(
        self,
        total: int,
        agents: Sequence[str],
        *,
        cost: Callable[[], float | None] = lambda: None,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = 60.0,
        title: str = "plays",
    ) -> None:
        self._total, self._cost, self._enabled, self._clock = total, cost, enabled, clock
        self._every_s, self._title = every_s, title
        # isatty is asked here, because FORCE_COLOR lets rich take a log file for a terminal
        self._console = console or Console(
            stderr=True, force_terminal=None if sys.stderr.isatty() else False
        )
        self._agents = defaultdict[str, _Agent](_Agent, {name: _Agent() for name in agents})
        self._best: dict[str, float] = {}
        self._best_sum = 0.0
        self._resumed = self._new = 0  # scored plays
        self._started = clock()
        self._pace = deque([(self._started, 0)])  # (when, plays scored by then), over the window
        self._shown = ExitStack()

    def __enter__(self) -> Progress:
        self._started = self._clock()
        self._pace = deque([(self._started, self._new)])
        if not self._enabled:
            return self
        if self._console.is_interactive:
            self._shown.enter_context(_live(self._console, self.__rich__))
        else:
            self._shown.callback(lambda: self._write(self.line()))
            done = threading.Event()
            thread = threading.Thread(
                target=self._write_lines, args=(done,), name="progress", daemon=True
            )
            self._shown.callback(thread.join)
            self._shown.callback(done.set)
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shown.close()

    def resume(
        self, counts: Mapping[str, AgentCounts], best: Mapping[str, float] | None = None
    ) -> None:
        """What a journal holds already; it counts, but not in the rate. Several journals add up.

        Args:
            counts: by agent.
            best: the best reward so far, by prompt id.
        """
        for name, count in counts.items():
            agent = self._agents[name]
            agent.scored += count.num_scored
            agent.failed += count.num_failed
            agent.tokens += count.prompt_tokens + count.completion_tokens
            self._resumed += count.num_scored
        for prompt_id, reward in (best or {}).items():
            self._rewarded(prompt_id, reward)

    def asked(self, agent: str) -> None:
        """A play is in flight."""
        self._agents[agent].in_flight += 1

    def played(self, prompt_id: str, play: Play) -> None:
        """A play in flight was scored, or failed."""
        agent = self._agents[play.action.agent]
        agent.in_flight -= 1
        if play.completion is not None:
            agent.tokens += play.completion.prompt_tokens + play.completion.completion_tokens
        if play.reward is None:
            agent.failed += 1
        else:
            agent.scored += 1
            self._new += 1
            self._rewarded(prompt_id, play.reward)

    def dropped(self, agent: str) -> None:
        """A play in flight was cancelled."""
        self._agents[agent].in_flight -= 1

    def total(self, agent: str, num_scored: int, num_failed: int) -> None:
        """What an agent has done in all, where others count the plays."""
        counted = self._agents[agent]
        self._new += num_scored - counted.scored
        counted.scored, counted.failed = num_scored, num_failed

    def line(self) -> str:
        """Everything in one line of plain text."""
        scored, rate, eta = self._measure()
        agents = list(self._agents.items())
        parts = [
            f"{self._title}: {scored:,}/{self._total:,} ({percent(scored, self._total)})",
            f"{rate:,.1f}/s",
            f"ETA {duration(eta)}",
            f"failed {sum(a.failed for _, a in agents):,}",
            *self._further(),
            *(
                f"{name}: {a.in_flight:,} in flight, {a.scored:,} done, {a.failed:,} failed, {human(a.tokens)} tokens"
                for name, a in agents
            ),
        ]
        return "; ".join(parts)

    def __rich__(self) -> RenderableType:
        """The live view."""
        scored, rate, eta = self._measure()
        agents = agent_table("in flight", "done", "failed", "tokens")
        for name, a in list(self._agents.items()):
            agents.add_row(
                Text(name), f"{a.in_flight:,}", f"{a.scored:,}", f"{a.failed:,}", human(a.tokens)
            )
        further = [*self._further(), f"after {duration(self._clock() - self._started)}"]
        return Group(
            bar(self._title, scored, self._total, f"{rate:,.1f}/s", f"ETA {duration(eta)}"),
            Text("; ".join(further)),
            agents,
        )

    def _rewarded(self, prompt_id: str, reward: float) -> None:
        best = self._best.get(prompt_id)
        if best is None or reward > best:
            self._best[prompt_id] = reward
            self._best_sum += reward - (best or 0.0)

    def _measure(self) -> tuple[int, float, float | None]:
        """(scored plays, scored per second over the last WINDOW_S, seconds to the end where that is known)."""
        now, new = self._clock(), self._new
        self._pace.append((now, new))
        while len(self._pace) > 2 and self._pace[1][0] <= now - WINDOW_S:
            self._pace.popleft()
        then, before = self._pace[0]
        rate = (new - before) / (now - then) if now > then else 0.0
        scored = new + self._resumed
        return scored, rate, time_left(self._total - scored, rate)

    def _further(self) -> Iterator[str]:
        if self._best:
            yield f"mean best reward {self._best_sum / len(self._best):.4g}"
        cost = self._cost()
        if cost is not None:
            yield f"cost {cost:,.{2 if cost >= 1 else 4}f}"

    def _write_lines(self, done: threading.Event) -> None:
        while not done.wait(self._every_s):
            self._write(self.line())

    def _write(self, line: str) -> None:
        with suppress(OSError, ValueError):  # whoever read this has gone; that ends no run
            self._console.file.write(line + "\n")
            self._console.file.flush()


@contextmanager
def _live(console: Console, view: Callable[[], RenderableType]) -> Iterator[None]:
    """A live display; what others print or log meanwhile appears above it instead of tearing it."""
    before = {id(sys.stderr): "stderr", id(sys.stdout): "stdout"}
    # a stdout that goes into a file or a pipe must get there
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
        with suppress(OSError):  # the terminal is gone; that ends no run
            live.stop()


def _handlers() -> list[logging.StreamHandler[Any]]:
    """The handlers of all loggers: they hold the stream of their beginning, whatever sys.stderr is by now."""
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    found = {
        handler: None
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler)
    }
    return list(found)


def bar(title: str, done: int, total: int, *further: str) -> Table:
    """One line: title, a bar, how many of how many, and what else there is to say."""
    numbers = (f"{done:,}/{total:,}", percent(done, total), *further)
    line = Table.grid(
        Column(no_wrap=True), Column(ratio=1), *(Column(no_wrap=True) for _ in numbers), expand=True
    )
    line.padding = (0, 1)
    line.add_row(
        Text(title),
        ProgressBar(total=max(total, 1), completed=done),
        *(Text(number) for number in numbers),
    )
    return line


def agent_table(*columns: str) -> Table:
    """An empty table with a row to come per agent."""
    table = Table("agent", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def time_left(num_left: int, rate: float) -> float | None:
    """Seconds to the end at this rate (per second); None where it stands still."""
    if num_left <= 0:
        return 0.0
    return num_left / rate if rate > 0 else None


def percent(part: int, whole: int) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{100 * part // whole if whole else 100} %"


def duration(seconds: float | None) -> str:
    """As hh:mm:ss; "-" where it is not known."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"


def human(number: float) -> str:
    """Three digits and a unit prefix: 950, 1.23k, 45.6M.

    Args:
        number: >= 0.
    """
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            return f"{number:.3g}{prefix}"
        number /= 1000
    return f"{number:.3g}E"
