"""The live view of a run on stderr: progress, rate, agents and cost.

Plays only increment counters. A thread draws them a few times per second, or writes a plain line
per minute if stderr is not a terminal.
"""

import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn
from rich.progress import Progress as BarLine
from rich.table import Table
from rich.text import Text

from toa_trl.sampling.runner import Load, Observer
from toa_trl.sampling.screens import in_notebook, live_view, notebook_bar
from toa_trl.types import AgentCounts, Play, Prompt
from toa_trl.utils.escape import for_terminal

WINDOW_S = 60.0  # length of the window over which the rate is measured


@dataclass(slots=True)
class _Agent:
    scored: int = 0
    failed: int = 0
    tokens: int = 0  # prompt and completion tokens
    reward_sum: float = 0.0  # of the plays that were scored here, not of resumed ones
    num_rewarded: int = 0

    @property
    def mean_reward(self) -> str:
        """Mean reward of the plays of this process."""
        return f"{self.reward_sum / self.num_rewarded:.4g}" if self.num_rewarded else "-"


class Progress(Observer):
    """A context manager that counts plays and shows them.

    Call its methods from one thread, that of the event loop; the drawing thread only reads.

    Args:
        total: plays to score, including those in the journal.
        agents: names of the agents, in the order shown.
        cost: returns what was spent so far, >= 0, or None without prices; called when drawing.
        enabled: whether anything is shown.
        console: console to draw on; None: stderr.
        clock: returns the time in seconds.
        every_s: seconds between two lines without a terminal, > 0.
        title: what is counted.
        num_prompts: prompts of the run, or of all runs that share the display; None: not shown.
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
        num_prompts: int | None = None,
    ) -> None:
        self._total, self._cost, self._enabled, self._clock = total, cost, enabled, clock
        self._every_s, self._title = every_s, title
        # with FORCE_COLOR, rich would treat a log file as a terminal
        self._console = console or Console(
            stderr=True, force_terminal=None if sys.stderr.isatty() else False
        )
        self._agents = defaultdict[str, _Agent](_Agent, {name: _Agent() for name in agents})
        self.loads = defaultdict[str, Load](Load)
        """Load of each agent; the runners that share the display keep it up to date."""
        self._best: dict[str, float] = {}
        self._best_sum = 0.0
        self._num_prompts, self._num_finished = num_prompts, 0
        self._resumed = self._new = 0  # scored plays
        self._started = clock()
        self._pace = deque([(self._started, 0)])  # (when, plays scored by then), over the window
        self._display = ExitStack()

    def __enter__(self) -> Self:
        """Start showing progress."""
        self._started = self._clock()
        self._pace = deque([(self._started, self._new)])
        if not self._enabled:
            return self
        if in_notebook():
            self._display.enter_context(
                notebook_bar(self._title, self._counts, lambda: "; ".join(self._further()))
            )
        elif self._console.is_interactive:
            self._display.enter_context(live_view(self._console, self.__rich__))
        else:
            self._display.callback(lambda: self._write(self.line()))
            done = threading.Event()
            thread = threading.Thread(
                target=self._write_lines, args=(done,), name="progress", daemon=True
            )
            self._display.callback(thread.join)
            self._display.callback(done.set)
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop showing progress."""
        self._display.close()

    def resume(
        self, counts: Mapping[str, AgentCounts], best: Mapping[str, float] | None = None
    ) -> None:
        """Add what a journal already holds; it does not count for the rate.

        Args:
            counts: totals by agent.
            best: best reward by prompt id.
        """
        for name, count in counts.items():
            agent = self._agents[name]
            agent.scored += count.num_scored
            agent.failed += count.num_failed
            agent.tokens += count.prompt_tokens + count.completion_tokens
            self._resumed += count.num_scored
        for prompt_id, reward in (best or {}).items():
            self._rewarded(prompt_id, reward)

    def played(self, prompt: Prompt, play: Play) -> None:
        """Count a play that was scored or failed."""
        agent = self._agents[play.action.agent]
        if play.completion is not None:
            agent.tokens += play.completion.prompt_tokens + play.completion.completion_tokens
        if play.reward is None:
            agent.failed += 1
        else:
            agent.scored += 1
            agent.num_rewarded += 1
            agent.reward_sum += play.reward
            self._new += 1
            self._rewarded(prompt.id, play.reward)

    def finished(self, prompt: Prompt) -> None:
        """Count a prompt that gets no more plays."""
        self._num_finished += 1

    def add_finished(self, num_prompts: int) -> None:
        """Count prompts whose budgets were spent before, or need not be."""
        self._num_finished += num_prompts

    def unneeded(self, num_plays: int) -> None:
        """Take plays out of the total that a run has ended without."""
        self._total -= num_plays

    def total(self, agent: str, num_scored: int, num_failed: int) -> None:
        """Set the totals of an agent whose plays are counted elsewhere."""
        counted = self._agents[agent]
        self._new += num_scored - counted.scored
        counted.scored, counted.failed = num_scored, num_failed

    def line(self) -> str:
        """Return everything as one line of plain text."""
        scored, rate, eta = self._measure()
        agents = list(self._agents.items())
        parts = [
            f"{self._title}: {scored:,}/{self._total:,} ({percent(scored, self._total)})",
            f"{rate:,.1f}/s",
            f"ETA {duration(eta)}",
            f"failed {sum(a.failed for _, a in agents):,}",
            *self._further(),
        ]
        for name, a in agents:
            load = self.loads[name]
            latency = f", latency {_mean_s(load)}" if load.took_s else ""
            reward = f", mean reward {a.mean_reward}" if a.num_rewarded else ""
            parts.append(
                f"{name}: {load.in_flight:,} in flight, {a.scored:,} done, {a.failed:,} failed, "
                f"{human(a.tokens)} tokens{latency}{reward}"
            )
        return "; ".join(parts)

    def __rich__(self) -> RenderableType:
        """Return the live view."""
        scored, rate, eta = self._measure()
        columns = ("in flight", "done", "failed", "tokens", "latency", "mean reward")
        agents = table_of("agent", *columns)
        for name, a in list(self._agents.items()):
            load = self.loads[name]
            agents.add_row(
                Text(for_terminal(name)),
                f"{load.in_flight:,}",
                f"{a.scored:,}",
                f"{a.failed:,}",
                human(a.tokens),
                _mean_s(load),
                a.mean_reward,
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

    def _counts(self) -> tuple[int, int]:
        return self._new + self._resumed, self._total

    def _measure(self) -> tuple[int, float, float | None]:
        """Return scored plays, scored plays per second over the last WINDOW_S, and seconds left."""
        now, new = self._clock(), self._new
        self._pace.append((now, new))
        while len(self._pace) > 2 and self._pace[1][0] <= now - WINDOW_S:
            self._pace.popleft()
        then, before = self._pace[0]
        rate = (new - before) / (now - then) if now > then else 0.0
        scored = new + self._resumed
        return scored, rate, time_left(self._total - scored, rate)

    def _further(self) -> Iterator[str]:
        if self._num_prompts is not None:
            has = "finished" if self._num_finished or not self._best else "with a reward"
            count = self._num_finished if has == "finished" else len(self._best)
            yield f"prompts {count:,}/{self._num_prompts:,} {has}"
        if self._best:
            yield f"mean best reward {self._best_sum / len(self._best):.4g}"
        cost = self._cost()
        if cost is not None:
            yield f"cost {cost:,.{2 if cost >= 1 else 4}f}"

    def _write_lines(self, done: threading.Event) -> None:
        while not done.wait(self._every_s):
            self._write(self.line())

    def _write(self, line: str) -> None:
        with suppress(OSError, ValueError):  # a closed stderr must not end the run
            self._console.file.write(for_terminal(line) + "\n")
            self._console.file.flush()


def _mean_s(load: Load) -> str:
    """Return the mean seconds from asking an agent to the journal, over recent plays."""
    return f"{sum(load.took_s) / len(load.took_s):.3g} s" if load.took_s else "-"


def bar(title: str, done: int, total: int, *further: str) -> RenderableType:
    """Return one line: title, bar, done/total, percentage, and further texts."""
    numbers = (f"{done:,}/{total:,}", percent(done, total), *further)
    line = BarLine(title, BarColumn(None), *numbers, expand=True)
    line.add_task(title, total=max(total, 1), completed=done)
    return line.get_renderable()


def table_of(what: str, *columns: str) -> Table:
    """Return an empty table for one row per agent, or whatever the first column names."""
    table = Table(what, box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def time_left(num_left: int, rate: float) -> float | None:
    """Return the seconds left at a rate per second, or None at rate 0."""
    if num_left <= 0:
        return 0.0
    return num_left / rate if rate > 0 else None


def percent(part: int, whole: int) -> str:
    """Return a percentage, rounded down so that 100 % means all."""
    return f"{100 * part // whole if whole else 100} %"


def duration(seconds: float | None) -> str:
    """Return seconds as hh:mm:ss, or "-" for None."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"


def human(number: float) -> str:
    """Return a number >= 0 with three digits and a unit prefix: 950, 1.23k, 45.6M."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            return f"{number:.3g}{prefix}"
        number /= 1000
    return f"{number:.3g}E"
