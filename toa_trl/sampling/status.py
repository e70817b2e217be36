"""How far a run is, from its journal: read-only, beside the process that writes it or long after."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from toa_trl.errors import ConfigError
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.progress import agent_table, bar, duration, human, time_left
from toa_trl.types import AgentCounts

RECENT_S = 300.0  # plays per second are those of about this long
NUM_REASONS = 5
REASON_LENGTH = 120  # reasons that differ only beyond it, as in a request's id, are one


@dataclass
class _State:
    """What the journals of one run hold together."""

    run: dict[str, Any] = field(default_factory=dict)  # its identity
    running: bool = False
    num_prompts: int = 0
    num_begun: int = 0  # prompts with any play
    num_finished: int = 0
    num_rewarded: int = 0  # prompts with a scored play
    best_sum: float = 0.0  # of their best rewards
    num_recent: int = 0  # plays written within RECENT_S
    written: list[float] = field(
        default_factory=list
    )  # first and last play of each journal, in unix seconds
    agents: dict[str, AgentCounts] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)


def status(run_dir: str | Path, now: float | None = None) -> RenderableType:
    """A view of the run as it is now.

    Args:
        run_dir: folder with a journal.sqlite, or with those of shards/*/ as long as they are not merged.
        now: in unix seconds (default: the clock's).

    Raises:
        ConfigError: the folder has no journal.
        JournalError: a journal cannot be read.
    """
    now = time.time() if now is None else now
    return _view(Path(run_dir), _read(Path(run_dir), now), now)


def print_status(
    run_dir: str | Path, watch: float | None = None, console: Console | None = None
) -> None:
    """Print the status; with `watch` again and again, until the run ends or Ctrl-C.

    Args:
        run_dir: as in `status`.
        watch: seconds between two looks, > 0.
        console: to print on (default: stdout).

    Raises:
        ConfigError: the folder has no journal, or `watch` is out of range.
        JournalError: a journal cannot be read.
    """
    if watch is not None and not watch > 0:
        raise ConfigError(f"--watch: a number of seconds above 0 is needed, not {watch}")
    console = console or Console()
    # what goes into a pipe is for grep, and not to be cut to a width
    show: Callable[[RenderableType], None] = partial(
        console.print, soft_wrap=not console.is_terminal
    )
    with ExitStack() as stack:
        if watch is not None and console.is_interactive:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
            show = partial(live.update, refresh=True)
        stack.enter_context(suppress(KeyboardInterrupt))
        while True:
            now = time.time()
            state = _read(Path(run_dir), now)
            show(_view(Path(run_dir), state, now))
            if watch is None or not state.running:
                return
            time.sleep(watch)


def _read(run_dir: Path, now: float) -> _State:
    paths = [run_dir / "journal.sqlite"]
    if not paths[0].is_file():
        paths = sorted(run_dir.glob("shards/*/journal.sqlite"))
    if not paths:
        raise ConfigError(f"{run_dir} has no journal.sqlite; name the folder of a run")
    state = _State()
    for path in paths:
        _add(state, path, now)
    return state


def _add(state: _State, path: Path, now: float) -> None:
    state.running |= _is_written(path)
    journal = Journal(path, lock=False)
    with closing(journal):
        state.run = state.run or journal.identity
        if not state.run:
            raise ConfigError(f"{path} is of a run that has not begun yet; look again in a moment")
        scored = journal.num_scored()
        state.num_prompts += journal.num_prompts()
        state.num_begun += len(scored)
        state.num_finished += sum(number >= state.run["budget"] for number in scored.values())
        best = journal.best_rewards().values()
        state.num_rewarded += len(best)
        state.best_sum += sum(best)
        state.num_recent += journal.num_written_since(now - RECENT_S)
        state.written += journal.times() or ()
        for name, counts in journal.agent_counts().items():
            before = astuple(state.agents.get(name, AgentCounts()))
            state.agents[name] = AgentCounts(
                *(a + b for a, b in zip(before, astuple(counts), strict=True))
            )
        state.failures.update(journal.failures(REASON_LENGTH))


def _is_written(journal: Path) -> bool:
    """Whether a process holds the journal's lock."""
    lock = Path(f"{journal}.lock")
    if not lock.exists():  # and looking must not make it
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _view(run_dir: Path, state: _State, now: float) -> RenderableType:
    return Group(*_lines(run_dir, state, now))


def _lines(run_dir: Path, state: _State, now: float) -> Iterator[RenderableType]:
    budget = state.run["budget"]
    total = state.num_prompts * budget
    scored = sum(counts.num_scored for counts in state.agents.values())
    failed = sum(counts.num_failed for counts in state.agents.values())
    how = "finished" if state.num_finished == state.num_prompts else "not running"
    yield Text(
        f"{run_dir}: {state.run['search']}, budget {budget}, {'running' if state.running else how}",
        "bold",
    )
    pace = []
    if state.running and state.written:
        rate = state.num_recent / max(min(RECENT_S, now - min(state.written)), 1.0)
        # failed plays are written as well, but bring no prompt nearer to its end
        eta = time_left(total - scored, rate * scored / max(scored + failed, 1))
        pace = [f"{rate:,.1f}/s", f"ETA {duration(eta)}"]
    yield bar("plays", scored, total, *pace)
    yield Text(
        f"prompts: {state.num_finished:,} of {state.num_prompts:,} finished, {state.num_begun:,} begun"
    )
    yield Text(f"plays: {scored:,} scored, {failed:,} failed, {total:,} in all")
    if state.num_rewarded:
        yield Text(f"mean best reward: {state.best_sum / state.num_rewarded:.4g}")
    if state.written:
        last = max(state.written)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last))
        yield Text(f"last play: {when}, {duration(max(now - last, 0.0))} ago")
    agents = agent_table("scored", "failed", "tokens", "FLOPs")
    for name in dict.fromkeys([*state.run["agents"], *state.agents]):
        counts = state.agents.get(name, AgentCounts())
        tokens = counts.prompt_tokens + counts.completion_tokens
        agents.add_row(
            Text(name),
            f"{counts.num_scored:,}",
            f"{counts.num_failed:,}",
            human(tokens),
            human(counts.flops),
        )
    yield agents
    if state.failures:
        yield Text("most frequent failures:")
    for reason, count in state.failures.most_common(NUM_REASONS):
        yield Text(f"{count:>7,}  {' '.join(reason.split())}")
