"""Killed at any moment and started again, a run goes on inside its trees."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from datasets import load_dataset

from tests.integration.conftest import ENVIRONMENT, ROOT, WEIGHTS, call, command
from toa_trl import Rollouts


def start(config: Path, *options: object) -> subprocess.Popen[str]:
    arguments = command("recipes/synthesize.py", "--config", config, *options)
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a background job, as these tests may be one, has Ctrl-C ignored, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def num_plays(run_dir: Path) -> int:
    journal = run_dir / "journal.sqlite"
    if not journal.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM plays").fetchone()[0])
    except sqlite3.OperationalError:  # not yet made
        return 0


def wait_for(process: subprocess.Popen[str], run_dir: Path, at_least: int) -> None:
    while process.poll() is None and num_plays(run_dir) < at_least:
        time.sleep(0.01)


def kill_until_done(config: Path, run_dir: Path, total: int, kills: int, *options: object) -> int:
    """Kill the run a few times on its way; afterwards let it end.

    Returns how often it was killed while it worked.
    """
    killed, rng = 0, random.Random(0)
    for _ in range(kills):
        before = num_plays(run_dir)
        process = start(config, *options)
        wait_for(process, run_dir, before + rng.randint(1, total // (kills + 1)))
        process.send_signal(signal.SIGKILL)
        process.communicate()  # closes the pipes, too
        killed += process.returncode == -signal.SIGKILL
        assert num_plays(run_dir) >= before, "a written play was lost"
    done = call("synthesize", "--config", config, *options)
    assert done.returncode == 0, done.stderr
    return killed


def assert_complete(run_dir: Path, num_prompts: int, budget: int) -> None:
    rollouts = list(Rollouts.load(run_dir))
    assert len(rollouts) == num_prompts
    for rollout in rollouts:
        assert len(rollout.scored) == budget
        assert [play.index for play in rollout.plays] == list(range(len(rollout.plays)))


def test_a_killed_run_ends_as_one_that_was_never_killed(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config, killed_dir, whole_dir = write_config(), tmp_path / "run", tmp_path / "whole"
    assert call("synthesize", "--config", config, "--output_dir", whole_dir).returncode == 0
    assert kill_until_done(config, killed_dir, total=120, kills=2) == 2
    assert_complete(killed_dir, num_prompts=12, budget=10)
    whole, resumed = (
        load_dataset(str(path / "rollouts"), split="train") for path in (whole_dir, killed_dir)
    )
    assert whole["error"].count(None) < len(whole), "the scripted failures did not happen"
    assert whole.to_list() == resumed.to_list()


@pytest.mark.heavy
def test_real_models_with_plays_in_flight_killed(tmp_path: Path) -> None:
    config = "recipes/configs/demo/synthesize.yaml"
    options: tuple[object, ...] = (
        "--num_prompts",
        24,
        "--budget",
        12,
        "--plays_in_flight",
        3,
        "--output_dir",
        tmp_path / "run",
    )
    options += ("--agents", f"[{{name: g, engine: transformers, model: {WEIGHTS}/generalist}}, "
        f"{{name: a, engine: transformers, model: {WEIGHTS}/add}}]")  # fmt: skip
    assert kill_until_done(Path(config), tmp_path / "run", 24 * 12, 2, *options) >= 1
    assert_complete(tmp_path / "run", num_prompts=24, budget=12)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_order(
    write_config: Callable[..., Path], tmp_path: Path, sent: signal.Signals
) -> None:
    config = write_config()
    process = start(config)
    wait_for(process, tmp_path / "run", at_least=5)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "repeat the command to resume" in errors
    assert "Traceback" not in errors
    assert call("synthesize", "--config", config).returncode == 0
    assert_complete(tmp_path / "run", num_prompts=12, budget=10)


def test_two_processes_cannot_write_one_run(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(agents=[{"name": "slow", "engine": "scripted", "latency_s": 3.0}])
    first = start(config)
    wait_for(first, tmp_path / "run", at_least=1)
    second = call("synthesize", "--config", config)
    assert (second.returncode, second.stderr.count("another process is writing")) == (2, 1)
    first.terminate()
    first.communicate(timeout=60)
    assert first.returncode == 130


def test_another_configuration_is_refused_and_the_difference_shown(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config()
    process = start(config)
    wait_for(process, tmp_path / "run", at_least=5)
    process.kill()
    process.communicate()
    before = num_plays(tmp_path / "run")
    refused = call(
        "synthesize", "--config", config, "--budget", 11, "--search_params", "{tau: 0.7}"
    )
    assert refused.returncode == 2
    assert "budget: 10 -> 11" in refused.stderr
    assert "search_params.tau: 0.5 -> 0.7" in refused.stderr
    assert num_plays(tmp_path / "run") == before


def test_a_finished_run_is_not_written_over(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config()
    assert call("synthesize", "--config", config).returncode == 0
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.parquet")}
    again = call("synthesize", "--config", config)
    assert (again.returncode, len(again.stderr.strip().splitlines())) == (2, 1)
    assert "finished" in again.stderr
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.parquet")}
