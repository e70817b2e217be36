"""The live view of a run."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.helpers import play
from toa_trl.sampling.progress import Progress, duration, human, percent
from toa_trl.sampling.runner import Load
from toa_trl.types import AgentCounts, Message, Prompt

P, Q = (Prompt(name, (Message("user", "Hi"),)) for name in "pq")


class Clock:
    """Goes on when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(StringIO):
    """Somebody watches."""

    def isatty(self) -> bool:
        return True


def plain(**options: object) -> tuple[Progress, StringIO, Clock]:
    clock, file = Clock(), StringIO()
    console = Console(file=file, force_terminal=False)
    return Progress(100, ["llama", "qwen"], console=console, clock=clock, **options), file, clock  # type: ignore[arg-type]


def live(monkeypatch: pytest.MonkeyPatch, **options: object) -> tuple[Progress, StringIO, Clock]:
    monkeypatch.setenv("TERM", "xterm")
    clock, file = Clock(), Terminal()
    console = Console(
        file=file, force_terminal=True, force_interactive=True, width=100, color_system=None
    )
    return Progress(100, ["llama", "qwen"], console=console, clock=clock, **options), file, clock  # type: ignore[arg-type]


def shown(progress: Progress) -> list[str]:
    """The live view's lines, as they are on the screen."""
    console = Console(file=StringIO(), width=100)
    console.print(progress)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_the_numbers_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, _, clock = live(monkeypatch, cost=lambda: 0.25, title="runs", num_prompts=9)
    progress.loads["llama"] = Load(1, deque([1.0, 3.0]))
    progress.loads["qwen"] = Load(0, deque([2.0]))
    clock.now += 2
    for prompt, index, reward in [(P, 0, 1.0), (P, 1, 3.0), (P, 2, 2.0), (Q, 0, -1.0)]:
        progress.played(prompt, play(index, reward, agent="llama", tokens=(1000, 500)))
    progress.played(Q, play(1, None, agent="qwen"))
    clock.now += 8
    progress.finished(P)
    title, further, header, llama, qwen = shown(progress)
    assert title.startswith("runs ━")
    assert title.endswith("4/100 4 % 0.4/s ETA 00:04:00")
    assert further == "prompts 1/9 finished; mean best reward 1; cost 0.2500; after 00:00:10"
    assert header == "agent in flight done failed tokens latency mean reward"
    assert llama == "llama 1 4 0 6k 2 s 1.25"
    assert qwen == "qwen 0 0 1 0 2 s -"
    assert progress.line() == (
        "runs: 4/100 (4 %); 0.4/s; ETA 00:04:00; failed 1; prompts 1/9 finished; mean best "
        "reward 1; cost 0.2500; llama: 1 in flight, 4 done, 0 failed, 6k tokens, latency 2 s, mean "
        "reward 1.25; qwen: 0 in flight, 0 done, 1 failed, 0 tokens, latency 2 s"
    )


def test_plays_that_a_run_ended_without_leave_the_total() -> None:
    progress, _, _ = plain(num_prompts=2)
    for index in range(40):
        progress.played(P, play(index, 1.0, agent="llama"))
    assert "40/100 (40 %)" in progress.line()
    assert "prompts 1/2 with a reward" in progress.line()  # none has finished yet
    progress.unneeded(60)
    progress.add_finished(2)
    assert "40/40 (100 %)" in progress.line()
    assert "prompts 2/2 finished" in progress.line()


def test_a_failure_that_was_paid_for_counts_its_tokens() -> None:
    progress, _, _ = plain()
    unscored = play(0, 1.0, agent="llama", tokens=(40, 2))
    object.__setattr__(unscored, "reward", None)
    progress.played(P, unscored)
    assert "llama: 0 in flight, 0 done, 1 failed, 42 tokens" in progress.line()


def test_without_a_price_or_a_reward_neither_is_shown() -> None:
    line = plain()[0].line()
    assert "cost" not in line
    assert "reward" not in line
    assert "ETA -" in line


def test_what_the_journals_hold_counts_but_not_in_the_rate() -> None:
    progress, _, clock = plain()
    with progress:
        clock.now += 10
        for best in ({"p": 1.0, "q": 5.0}, {"p": 3.0, "q": 4.0}):
            progress.resume(
                {"llama": AgentCounts(20, 1, 1_000_000, 234_000, 1.0), "old": AgentCounts(5)}, best
            )
        progress.played(P, play(0, 2.0, agent="llama"))
        line = progress.line()
    assert line.startswith(
        "plays: 51/100 (51 %); 0.1/s; ETA 00:08:10; failed 2; mean best reward 4;"
    )
    assert "llama: 0 in flight, 41 done, 2 failed, 2.47M tokens" in line
    assert "old: 0 in flight, 10 done" in line


def test_the_rate_is_the_recent_one() -> None:
    progress, _, clock = plain()
    for second in range(200):
        clock.now += 1
        if second < 50:
            progress.played(P, play(second, 0.0, agent="llama"))
        progress.line()
        if second == 49:
            assert "; 1.0/s; ETA 00:00:50;" in progress.line()
        if second == 79:
            assert "; 0.5/s; ETA 00:01:40;" in progress.line()
    assert "; 0.0/s; ETA -;" in progress.line()
    assert len(progress._pace) < 70


def test_without_a_terminal_plain_lines_are_written() -> None:
    progress, file, _ = plain(every_s=0.01)
    with progress:
        deadline = time.monotonic() + 60
        while file.getvalue().count("\n") < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        progress.played(P, play(0, 0.5, agent="llama"))
    *lines, last, end = file.getvalue().split("\n")
    assert end == ""
    assert any(line.startswith("plays: 0/100 (0 %); ") for line in lines)
    assert last.startswith("plays: 1/100 (1 %); ")
    assert all(line.isprintable() for line in [*lines, last])


def test_a_run_shorter_than_a_minute_writes_one_line() -> None:
    progress, file, _ = plain()
    with progress:
        pass
    assert len(file.getvalue().splitlines()) == 1


def test_force_color_makes_no_terminal_of_a_log_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress(1, ["a"]):
        pass
    assert capsys.readouterr().err == (
        "plays: 0/1 (0 %); 0.0/s; ETA -; failed 0; a: 0 in flight, 0 done, 0 failed, 0 tokens\n"
    )


def test_a_notebook_gets_a_bar_of_tqdm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with plain(num_prompts=2)[0] as progress:
        for index in range(100):
            progress.played(P, play(index, 1.0, agent="llama"))
        progress.finished(P)
    last = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert "plays: 100%" in last
    assert "100/100" in last
    assert "prompts 1/2 finished; mean best reward 1" in last


def test_disabled_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for progress, file, _ in (
        plain(enabled=False, every_s=0.001),
        live(monkeypatch, enabled=False),
    ):
        with progress:
            progress.played(P, play(0, 0.5, agent="llama"))
            time.sleep(0.02)
        assert file.getvalue() == ""


def test_on_a_terminal_the_last_view_stays_and_the_cursor_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    progress, file, _ = live(monkeypatch)

    def dies() -> None:
        with progress:
            progress.played(P, play(0, 0.5, agent="llama"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        dies()
    last = file.getvalue().rsplit("plays ", 1)[1]
    assert "1/100" in last
    assert last.endswith("\x1b[?25h")


def test_logs_and_prints_do_not_tear_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, file, _ = live(monkeypatch)
    terminal, piped = Terminal(), StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", piped)
    handler = logging.StreamHandler()  # holds stderr as it is now
    logger = logging.getLogger("a library's")
    monkeypatch.setattr(logger, "handlers", [handler])
    with progress:
        logger.warning("a server is slow")
        sys.stderr.write("a bare word\n")
        sys.stdout.write("a result\n")
    assert "a server is slow\n" in file.getvalue()
    assert "a bare word\n" in file.getvalue()
    assert terminal.getvalue() == ""
    assert piped.getvalue() == "a result\n"  # and not between the frames
    assert sys.stderr is terminal
    logger.warning("afterwards")
    assert terminal.getvalue() == "afterwards\n"


def test_a_terminal_that_went_away_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for progress, file, _ in (plain(), live(monkeypatch)):
        with progress:

            def gone(text: str) -> int:
                raise OSError(5, "Input/output error")

            monkeypatch.setattr(file, "write", gone)
        assert not isinstance(sys.stderr, type(file))


def test_plays_do_not_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_by: list[threading.Thread] = []
    for build in (plain, lambda **options: live(monkeypatch, **options)):
        progress, _, _ = build(cost=lambda: drawn_by.append(threading.current_thread()))
        it = play(0, 0.5, agent="llama")
        with progress:
            drawn_by.clear()
            for number in range(5000):
                progress.played(Prompt(str(number), P.messages), it)
            assert threading.current_thread() not in drawn_by
        assert threading.current_thread() in drawn_by  # the last view
        assert "llama: 0 in flight, 5,000 done, 0 failed, 75k tokens" in progress.line()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.6, "1k"),
        (1234, "1.23k"),
        (45_600_000, "45.6M"),
        (2.5e12, "2.5T"),
        (3e21, "3e+03E"),
    ],
)
def test_human_numbers(number: float, text: str) -> None:
    assert human(number) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, "100 %"), (0, 9, "0 %"), (999, 1000, "99 %"), (1000, 1000, "100 %")],
)
def test_only_all_is_100_percent(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0, "00:00:00"), (59.6, "00:01:00"), (360_061, "100:01:01")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
