"""The status of a run, read from its journal during the run or afterwards."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from toa_trl.errors import ConfigError
from toa_trl.sampling.budget import PlaysPerPrompt, is_adaptive
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.journal.grants import num_unfinished
from toa_trl.sampling.progress import bar, duration, human, table_of, time_left
from toa_trl.types import AgentCounts
from toa_trl.utils.config import PositiveFloat, validate
from toa_trl.utils.escape import for_terminal
from toa_trl.utils.targets import is_locked

RECENT_S = 300.0  # length of the window over which plays per second are measured
NUM_REASONS = 5
REASON_LENGTH = 120  # reasons that differ only beyond it, as in a request id, count as one


@dataclass
class _State:
    """Totals over the journals of one run."""

    run: dict[str, Any] = field(default_factory=dict)  # identity of the run
    running: bool = False
    num_prompts: int = 0
    num_scored: list[int] = field(default_factory=list)  # of each prompt with any play
    num_finished: int = 0
    num_rewarded: int = 0  # prompts with a scored play
    best_sum: float = 0.0  # sum of their best rewards
    num_recent: int = 0  # plays written within RECENT_S
    written: list[float] = field(default_factory=list)
    """Unix times of the first and the last play of every journal."""
    agents: dict[str, AgentCounts] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> AgentCounts:
        """Totals over the agents."""
        return sum(self.agents.values(), AgentCounts())

    @property
    def finished(self) -> bool:
        """Whether the budget of every prompt is spent."""
        return self.num_finished == self.num_prompts

    @property
    def whole(self) -> int:
        """Scored plays that the budget allows."""
        return int(self.num_prompts * self.run["budget"])

    @property
    def total(self) -> int:
        """Scored plays that the run makes.

        An adaptive run may end with fewer than the budget allows: a reward was known to be the
        highest, or no prompt may have more plays.
        """
        adaptive_end = self.finished and is_adaptive(self.run)
        return self.counts.num_scored if adaptive_end else self.whole


def status(run_dir: str | Path, now: float | None = None) -> RenderableType:
    """Return a view of the run as it is now.

    Args:
        run_dir: folder with journal.sqlite, or with shards/*/journal.sqlite before they are merged;
            or of a comparison, whose runs are folders in it.
        now: unix time in seconds; None: the current time.

    Raises:
        ConfigError: the folder has no journal.
        JournalError: a journal cannot be read.
    """
    now = time.time() if now is None else now
    return _look(Path(run_dir), now)[0]


def print_status(
    run_dir: str | Path, watch: float | None = None, console: Console | None = None
) -> None:
    """Print the status once, or repeatedly until the run ends or Ctrl-C.

    Args:
        run_dir: see `status`.
        watch: seconds between two updates, > 0; None: print once.
        console: console to print on; None: stdout.

    Raises:
        ConfigError: the folder has no journal, or `watch` is out of range.
        JournalError: a journal cannot be read.
    """
    validate(PositiveFloat | None, watch, "--watch")
    console = console or Console()
    # output into a pipe is not cut to a width
    show: Callable[[RenderableType], None] = partial(
        console.print, soft_wrap=not console.is_terminal
    )
    with ExitStack() as stack:
        if watch is not None and console.is_interactive:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
            show = partial(live.update, refresh=True)
        stack.enter_context(suppress(KeyboardInterrupt))
        while True:
            view, running = _look(Path(run_dir), time.time())
            show(view)
            if watch is None or not running:
                return
            time.sleep(watch)


def _look(folder: Path, now: float) -> tuple[RenderableType, bool]:
    """Return the view of a run or a comparison, and whether it is running."""
    runs = sorted({path.parent for path in folder.glob("*/journal.sqlite")})
    if not runs or (folder / "journal.sqlite").is_file():
        state = _read(folder, now)
        return Group(*_lines(folder, state, now)), state.running
    states = {run.name: _read(run, now) for run in runs}
    running = any(state.running for state in states.values())
    return Group(*_comparison_lines(folder, states)), running


def _comparison_lines(folder: Path, states: Mapping[str, _State]) -> Iterator[RenderableType]:
    running = any(state.running for state in states.values())
    finished = all(state.finished for state in states.values())
    how = "running" if running else "sampling finished" if finished else "not running"
    number = "1 run" if len(states) == 1 else f"{len(states)} runs"
    yield Text(f"{folder}: {number}, {how}", "bold")
    scored = sum(state.counts.num_scored for state in states.values())
    yield bar("plays", scored, sum(state.total for state in states.values()))
    table = table_of("run", "prompts", "plays", "failed", "mean best reward")
    for name, state in states.items():
        best = f"{state.best_sum / state.num_rewarded:.4g}" if state.num_rewarded else "-"
        prompts = f"{state.num_finished:,}/{state.num_prompts:,}"
        plays = f"{state.counts.num_scored:,}/{state.total:,}"
        failed = f"{state.counts.num_failed:,}"
        table.add_row(Text(for_terminal(name)), prompts, plays, failed, best)
    yield table
    if students := len(list(folder.glob("*/student*/training.json"))):
        yield Text(f"students trained: {students}")


def _read(run_dir: Path, now: float) -> _State:
    paths = [run_dir / "journal.sqlite"]
    if not paths[0].is_file():
        paths = sorted(run_dir.glob("shards/*/journal.sqlite"))
    if not paths:
        raise ConfigError(
            f"{run_dir} has no journal.sqlite; name the folder of a run, a comparison or a pipeline"
        )
    state = _State()
    for path in paths:
        _add(state, path, now)
    return state


def _add(state: _State, path: Path, now: float) -> None:
    state.running |= is_written(path)
    journal = Journal(path, lock=False)
    with closing(journal):
        state.run = state.run or journal.identity
        if not state.run:
            raise ConfigError(f"{path}: the run has not started yet; try again in a moment")
        scored = journal.num_scored()
        state.num_prompts += journal.num_prompts()
        state.num_scored += scored.values()
        state.num_finished += journal.num_prompts() - num_unfinished(journal)
        best = journal.best_rewards().values()
        state.num_rewarded += len(best)
        state.best_sum += sum(best)
        state.num_recent += journal.num_written_since(now - RECENT_S)
        state.written += journal.times() or ()
        for name, counts in journal.agent_counts().items():
            state.agents[name] = state.agents.get(name, AgentCounts()) + counts
        state.failures.update(journal.failures(REASON_LENGTH))


def is_written(journal: Path) -> bool:
    """Return whether a process writes a journal."""
    return is_locked(Path(f"{journal}.lock"))


def _lines(run_dir: Path, state: _State, now: float) -> Iterator[RenderableType]:
    budget, adaptive = state.run["budget"], is_adaptive(state.run)
    total, whole = state.total, state.whole
    scored, failed = state.counts.num_scored, state.counts.num_failed
    how = "finished" if state.finished else "not running"
    search = for_terminal(str(state.run["search"]))
    yield Text(
        f"{run_dir}: {search}, budget {budget}{' on average (adaptive)' if adaptive else ''}, "
        f"{'running' if state.running else how}",
        "bold",
    )
    pace = []
    if state.running and state.written:
        rate = state.num_recent / max(min(RECENT_S, now - min(state.written)), 1.0)
        # failed plays are written too, but do not count towards the budget
        eta = time_left(total - scored, rate * scored / max(scored + failed, 1))
        pace = [f"{rate:,.1f}/s", f"ETA {duration(eta)}"]
    yield bar("plays", scored, total, *pace)
    prompts, plays = f"{state.num_prompts:,}", f"plays: {scored:,} scored, {failed:,} failed"
    if adaptive:
        spread = PlaysPerPrompt.of(state.num_scored, state.num_prompts)
        yield Text(f"prompts: {len(state.num_scored):,} of {prompts} started")
        yield Text(f"plays per prompt: {spread}")
    else:
        yield Text(
            f"prompts: {state.num_finished:,} of {prompts} finished, "
            f"{len(state.num_scored):,} started"
        )
    left = f"; {whole - total:,} of the budget were not needed" if total < whole else ""
    yield Text(f"{plays}, {whole:,} in all{left}")
    if state.num_rewarded:
        yield Text(f"mean best reward: {state.best_sum / state.num_rewarded:.4g}")
    if state.written:
        last = max(state.written)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last))
        yield Text(f"last play: {when}, {duration(max(now - last, 0.0))} ago")
    agents = table_of("agent", "scored", "failed", "tokens", "FLOPs")
    for name in dict.fromkeys([*state.run["agents"], *state.agents]):
        counts = state.agents.get(name, AgentCounts())
        tokens = counts.prompt_tokens + counts.completion_tokens
        agents.add_row(
            Text(for_terminal(name)),
            f"{counts.num_scored:,}",
            f"{counts.num_failed:,}",
            human(tokens),
            human(counts.flops),
        )
    yield agents
    if state.failures:
        yield Text("most frequent failures:")
    for reason, count in state.failures.most_common(NUM_REASONS):
        yield Text(f"{count:>7,}  {for_terminal(' '.join(reason.split()))}")
