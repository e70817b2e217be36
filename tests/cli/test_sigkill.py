"""Killed by SIGKILL at any moment, also within SQLite and pyarrow: nothing is lost or half done."""

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.helpers import killed_at
from toa_trl.cli.main import run as command
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts, is_complete

BUDGET, NUM_PROMPTS = 4, 6
AGENTS = [{"name": name, "engine": "scripted", "latency_s": 0.01} for name in "ab"]
KILLED: list[bool] = []
REWARD = {"kind": "length", "unit": "characters"}


@pytest.fixture(autouse=True)
def quick_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the report in no time; tests/cli/test_kills.py kills the real one."""

    def report(folder: Path, **options: Any) -> Path:
        (folder / "report.html").write_text('<meta name="generator" content="toa_trl">')
        return folder / "report.html"

    monkeypatch.setattr("toa_trl.report.page.write_report", report)
    monkeypatch.setattr("toa_trl.cli.run_commands.write_report", report)


def synthesize(folder: Path, num_prompts: int = NUM_PROMPTS, **more: Any) -> None:
    """Run the command; a complete run is left alone."""
    prompts = folder.parent / "prompts.jsonl"
    rows = [{"prompt": f"What is {number}?"} for number in range(NUM_PROMPTS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if is_complete(folder):
        return
    given = {"prompts": str(prompts), "output_dir": str(folder), "search": "parallel"}
    values = {
        "agents": AGENTS,
        "reward": REWARD,
        "budget": BUDGET,
        "num_prompts": num_prompts,
        "prompts_in_flight": 1,
    }
    values |= {"preference": {"policy": "worst"}, **more}
    options = [f"--{key}={value}" for key, value in given.items()]
    options += [f"--{key}={json.dumps(value)}" for key, value in values.items()]
    command(["synthesize", *options])


def plays(folder: Path) -> set[tuple[Any, ...]]:
    """Return the plays on disk, as another process sees them."""
    try:
        uri = f"file:{folder / 'journal.sqlite'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as journal:
            return set(journal.execute("SELECT prompt_id, play, reward, written_s FROM plays"))
    except sqlite3.OperationalError:  # not made yet
        return set()


def check(folder: Path, expected: list[Any], num_rows: tuple[int, ...] = (NUM_PROMPTS,)) -> None:
    """Check that data sets are whole or missing, and that files of the user are untouched."""
    assert (folder / "mine/sft/model.safetensors").read_text() == "mine"
    for part in ("sft", "dpo"):
        if (folder / part).exists():
            assert pq.read_table(folder / part).num_rows in num_rows
    if expected:
        rollouts = Rollouts.load(folder)
        assert list(rollouts) == expected
        rollouts._journal.close()


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of all files."""
    found = {}
    for parent, _, names in os.walk(folder):  # does not mind a folder that is renamed meanwhile
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):  # renamed meanwhile
                found[str(path)] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def killed_after(delay_s: float, folder: Path, call: Callable[[], Any]) -> set[tuple[Any, ...]]:
    """Kill a call in a child some time after it changed a file; return the plays before that."""
    start = state(folder)
    child = os.fork()
    if not child:
        try:
            call()
        except BaseException:
            os._exit(3)
        os._exit(0)
    ended = 0
    while not ended and state(folder) == start:
        ended, status = os.waitpid(child, os.WNOHANG)
    time.sleep(delay_s)
    before = plays(folder)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    KILLED.append(code != 0)
    return before


def mine(folder: Path) -> Path:
    (folder / "mine/sft").mkdir(parents=True)
    (folder / "mine/sft/model.safetensors").write_text("mine")
    return folder


def test_sigkill_at_any_moment_of_synthesize_and_data(tmp_path: Path) -> None:
    whole, run = mine(tmp_path / "whole"), mine(tmp_path / "run")
    synthesize(whole)
    expected = list(Rollouts.load(whole))
    delays = [0.0, *(random.Random(12).random() / 4 for _ in range(4))]
    KILLED.clear()
    for delay_s in delays:
        before = killed_after(delay_s, run, partial(synthesize, run))
        assert before <= plays(run)
        check(run, [])
    assert any(KILLED)
    synthesize(run)
    check(run, expected)
    assert len(plays(run)) == NUM_PROMPTS * BUDGET

    KILLED.clear()
    arguments = ["data", str(run), "--top_k", "2"]
    for delay_s in delays:
        killed_after(delay_s / 4, run, partial(command, arguments))
        check(run, expected, (NUM_PROMPTS, 2 * NUM_PROMPTS))
    assert any(KILLED)
    command(arguments)
    check(run, expected, (NUM_PROMPTS, 2 * NUM_PROMPTS))
    assert pq.read_table(run / "sft").num_rows == 2 * NUM_PROMPTS


def test_sigkill_at_any_moment_of_an_adaptive_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rollouts, "save", lambda self, run_dir, **options: {})
    adaptive: dict[str, Any] = {
        "allocation": {
            "kind": "adaptive",
            "min_plays": 2,
            "max_plays": 9,
            "wave": 1,
            "stop_reward": 0.6,
        },
        "reward": {"kind": "tests.helpers:TextReward"},
    }
    whole, run = mine(tmp_path / "whole"), mine(tmp_path / "run")
    synthesize(whole, **adaptive)
    expected = list(Rollouts.load(whole))
    assert len({len(rollout.plays) for rollout in expected}) > 1
    KILLED.clear()
    for _ in range(8):
        delay_s = random.Random(len(KILLED)).random() / 8
        before = killed_after(delay_s, run, partial(synthesize, run, **adaptive))
        assert before <= plays(run)
    assert any(KILLED)
    synthesize(run, **adaptive)
    check(run, expected)
    assert len(plays(run)) == len(plays(whole))


def test_killed_at_every_file_operation_synthesize_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tests/cli/test_kills.py kills the export
    monkeypatch.setattr(Rollouts, "save", lambda self, run_dir, **options: {})
    whole, run = mine(tmp_path / "whole"), tmp_path / "run"
    synthesize(whole, 1)
    expected, number, ended = list(Rollouts.load(whole)), 0, False
    while not ended:
        number += 1
        shutil.rmtree(run, ignore_errors=True)
        ended = not killed_at(number, mine(run), partial(synthesize, run, 1))
        before = plays(run)
        synthesize(run, 1)
        assert before <= plays(run)
        check(run, expected, (1,))
        assert is_complete(run)
    assert number > 5


def test_a_run_that_was_killed_while_its_journal_was_made_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with closing(sqlite3.connect(tmp_path / "run/journal.sqlite")) as journal:
        journal.execute("PRAGMA journal_mode=WAL")  # as SQLite leaves it before the first commit
    assert not is_complete(tmp_path / "run")
    with pytest.raises(ConfigError, match="the run has not begun yet"):
        command(["data", str(tmp_path / "run")])
    synthesize(tmp_path / "run", 1)
    assert is_complete(tmp_path / "run")
