"""The paper's data table by recipes/compare.py, as users type it.

Real models, real trainings, a kill, and a mistake.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ENVIRONMENT, ROOT, WEIGHTS, call, preloaded

CONFIG = "recipes/configs/demo/data_table.yaml"
TRAINING = "python recipes/sft.py --config recipes/configs/demo/sft.yaml --max_steps 2"
pytestmark = pytest.mark.heavy


def options(folder: Path, **train: object) -> list[object]:
    """Two searches, two seeds, few problems, and a training of two steps."""
    heldout = folder / "heldout.jsonl"
    lines = (
        (ROOT / "toa_trl/demo/data/validation.jsonl")
        .read_text(encoding="utf-8")
        .splitlines(keepends=True)
    )
    heldout.write_text("".join(lines[::10]), encoding="utf-8")
    training = {
        "command": TRAINING,
        "base": f"{WEIGHTS}/student",
        "heldout": str(heldout),
        "budget": 4,
        "seeds": [0, 1],
        **train,
    }
    searches: dict[str, Any] = {"parallel": {}, "sequential": {}}
    given = (
        "--num_prompts",
        12,
        "--budgets",
        4,
        "--searches",
        json.dumps(searches),
        "--train",
        json.dumps(training),
    )
    return [
        "--config",
        CONFIG,
        *given,
        "--output_dir",
        folder / "runs",
        "--results",
        folder / "results.json",
    ]


def test_a_killed_data_table_goes_on(tmp_path: Path) -> None:
    arguments = options(tmp_path)
    first = tmp_path / "runs/parallel-4/student/model.safetensors"
    process = subprocess.Popen(
        preloaded("recipes/compare.py", *arguments),
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 300
    while not first.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    trained = first.stat().st_mtime_ns
    journals = {path: path.read_bytes() for path in (tmp_path / "runs").glob("*/journal.sqlite")}
    assert len(journals) == 4

    done = subprocess.run(
        preloaded("recipes/compare.py", *arguments),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == trained
    results = json.loads((tmp_path / "results.json").read_text())
    assert [
        row["best_reward_over_n"][-1] == row["mean_best_reward"] for row in results["searches"]
    ] == [True, True]
    assert (tmp_path / "runs/best_reward_over_n.png").stat().st_size > 10_000
    assert (
        len(list((tmp_path / "runs").glob("*/journal.sqlite"))) == 4
    )  # students learn from the runs compared
    untrained, *rows = results["data_table"]
    assert untrained["num_problems"] == 20
    assert [row["search"] for row in rows] == ["parallel", "sequential"]
    for row in rows:
        assert (row["seeds"], row["budget"], row["num_rows"]) == ([0, 1], 4, 12)
        assert row["flops"] > 0
        assert row["num_overlapping"] == untrained["num_overlapping"] >= 0
        assert f"| {row['search']}" in done.stdout
    # seeds are seeds of the sampling, too
    rewards = [
        (tmp_path / f"runs/parallel-4{seed}/sft/train.parquet").read_bytes()
        for seed in ("", "-seed1")
    ]
    assert rewards[0] != rewards[1]

    again = call("compare", *arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    failing = options(tmp_path, command="no-such-launcher")
    done = call("compare", *failing)
    assert done.returncode == 2
    assert "cannot be started" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
    failing = options(tmp_path, command="python -c raise(Exception('nonsense'))", seeds=[0])
    done = call("compare", *failing)
    assert done.returncode == 1
    assert "stopped: the training of parallel, budget 4, seed 0, ended with code" in done.stderr
    assert "nonsense" in done.stderr
