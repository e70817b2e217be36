"""Progress of stages: only of those that take long."""

from __future__ import annotations

import sys
import threading
import time
from io import StringIO

import pytest

from toa_trl.utils import stage as module
from toa_trl.utils.stage import counted, stage


class Terminal(StringIO):
    """Somebody watches."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOWN_AFTER_S", 0.05)
    monkeypatch.setattr(module, "EVERY_S", 0.02)


def test_a_short_stage_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted("writing rows", [1, 2], 2)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_long_stage_writes_lines_with_its_number_and_ends_with_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in counted("writing \x1b[31mrows", range(3), 3):
        time.sleep(0.05)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("writing ") and "\x1b" not in line for line in lines)
    assert "3/3, 0 s" in lines[-1]


def test_without_a_total_the_number_and_the_time_are_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stage("auditing"):
        time.sleep(0.1)
    assert "auditing: 0 s" in capsys.readouterr().err
    for _ in counted("writing sft", range(2)):
        time.sleep(0.06)
    assert "writing sft: 2, 0 s" in capsys.readouterr().err


def test_on_a_terminal_a_bar_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    for _ in counted("writing rows", range(3), 3):
        time.sleep(0.05)
    assert "writing rows" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_a_stage_that_fails_ends_its_display_and_the_error_is_raised() -> None:
    def fail() -> None:
        with stage("auditing"):
            time.sleep(0.1)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert not [thread for thread in threading.enumerate() if thread.name == "stage"]
