"""recipes/iterate.py as users type it: two rounds, killed in every kind of stage.

That a run which was killed ends as one that was not, with equal weights and results, is tested by
test_run.py, whose stages the same runner starts.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset

from tests.integration.conftest import ENVIRONMENT, ROOT, WEIGHTS, call, preloaded
from tests.integration.test_resume import num_plays

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]
RECIPE = "recipes/iterate.py"
LAUNCH = "accelerate launch --quiet --config_file accelerate_configs/single_cpu.yaml"


def config(folder: Path) -> Path:
    """Two agents and a student, eight prompts a round, eight steps of LoRA, twelve problems."""
    folder.mkdir()
    lines = (
        (ROOT / "toa_trl/demo/data/validation.jsonl")
        .read_text(encoding="utf-8")
        .splitlines(keepends=True)
    )
    (folder / "heldout.jsonl").write_text("".join(lines[:192:16]), encoding="utf-8")
    # one by one: what is beside a text in a batch changes its rounding, and a kill changes that;
    # besides, so there is a middle of an evaluation
    alone = {"max_batch_size": 1}
    reward = {
        "kind": "likelihood",
        "model": f"{WEIGHTS}/base",
        "aggregate": "sum",
        "floor": -4.0,
        **alone,
    }
    sampling = {"temperature": 0.7, "max_tokens": 64}
    agents = [
        {"name": n, "engine": "transformers", "model": f"{WEIGHTS}/{n}", **alone}
        for n in ("generalist", "add")
    ]
    training = (
        f"{LAUNCH} recipes/sft.py --config recipes/configs/demo/sft.yaml --use_peft "
        "--learning_rate 1e-2 --max_steps 8 "
        "--per_device_train_batch_size 4 --save_strategy steps --save_steps 2"
    )
    content = {
        "rounds": 2,
        "student": {"name": "s", "engine": "transformers", "model": f"{WEIGHTS}/student", **alone},
        "prompts_per_round": 8,
        "synthesize": {
            "prompts": "toa_trl/demo/data/synthesis.jsonl",
            "task": "toa_trl/demo/templates",
            "search_params": {"alpha": 0.05, "tau": 5.0},
            "budget": 7,
            "prompts_in_flight": 4,
            "sampling": sampling,
            "agents": agents,
            "reward": reward,
            "preference": {"rejected_rank": 0.5},
        },
        "train": [{"name": "sft", "data": "sft", "command": training}],
        "evaluate": {
            "prompts": str(folder / "heldout.jsonl"),
            "verifier": "toa_trl.demo.world:accuracy_reward",
            "reward": reward,
            "sampling": sampling,
            "num_samples": 1,
        },
        "output_dir": str(folder / "out"),
    }
    (folder / "iterate.yaml").write_text(yaml.safe_dump(content))
    return folder / "iterate.yaml"


def start(file: Path) -> subprocess.Popen[str]:
    arguments = preloaded(RECIPE, "--config", file)
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(file: Path) -> tuple[int, str, str]:
    process = start(file)
    output, errors = process.communicate(timeout=900)
    return process.returncode, output, errors


def kill_when(file: Path, there: Callable[[], bool], sent: signal.Signals = signal.SIGKILL) -> None:
    process, end = start(file), time.monotonic() + 600
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == (130 if sent is signal.SIGTERM else -sent)


def num_lines(folder: Path, pattern: str) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob(pattern))


def plays(out: Path, number: int) -> list[dict[str, object]]:
    return list(load_dataset(str(out / f"round-{number}/synthesis/rollouts"), split="train"))


def test_killed_in_every_stage_it_makes_nothing_again(tmp_path: Path) -> None:
    killed = config(tmp_path / "killed")
    out = killed.parent / "out"
    first = out / "round-1"

    kill_when(killed, lambda: num_plays(first / "synthesis") >= 20)
    assert num_plays(first / "synthesis") < 8 * 7
    assert not (first / "synthesis/complete.json").exists()
    # of a training, before and after its first checkpoint, and once in order
    kill_when(killed, lambda: (first / "sft.log").exists(), signal.SIGTERM)
    sampled = {
        path: path.stat().st_mtime_ns
        for path in (first / "synthesis").rglob("*.*")
        if "journal" not in path.name
    }
    kill_when(killed, lambda: (first / "sft/checkpoint-4/trainer_state.json").exists())
    assert not (first / "sft/complete.json").exists()
    kill_when(killed, lambda: num_lines(out / "outputs", "round-1-*") >= 5)
    assert num_lines(out / "outputs", "round-1-*") < 24
    assert not (first / "evaluation/complete.json").exists()
    resumed = json.loads((first / "sft/complete.json").read_text())["command"]
    assert resumed[-2] == "--resume_from_checkpoint"
    trained = {path: path.stat().st_mtime_ns for path in first.glob("sft*/*.safetensors")}
    assert len(trained) == 2  # the adapter, and merged

    code, output, errors = finish(killed)
    assert code == 0, errors
    for path, time_ns in (sampled | trained).items():
        assert path.stat().st_mtime_ns == time_ns, f"{path} was made again"
    assert "round 1, synthesis" not in output
    assert "round 2, synthesis" in output

    rows = json.loads((out / "results.json").read_text())["rounds"]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert all(row["interval"][0] <= row["accuracy"] <= row["interval"][1] for row in rows)
    assert rows[2]["win_rate_by"] == "reward"
    assert re.search(rf"\| 2 +\| {rows[2]['accuracy']:.3f} \[", output)
    assert "round-2" in (out / "report.html").read_text(encoding="utf-8")
    # every round has prompts of its own, and the student of the one before
    assert not {row["prompt_id"] for row in plays(out, 1)} & {
        row["prompt_id"] for row in plays(out, 2)
    }
    run_yaml = yaml.safe_load((out / "round-2/synthesis/run.yaml").read_text())
    assert run_yaml["agents"][-1]["model"] == str(out / "round-1/sft-merged")
    assert "s" in {row["agent"] for row in plays(out, 2)}

    before = (out / "results.json").read_bytes()
    again = call("iterate", "--config", killed)
    assert (again.returncode, "round 1," in again.stdout) == (0, False), again.stderr
    assert re.search(r"\| 2 +\|", again.stdout)
    assert (out / "results.json").read_bytes() == before
    again = call("iterate", "--config", killed, "--seed", 1)
    assert (again.returncode, "seed: 0 -> 1" in again.stderr) == (2, True)
    again = call("iterate", "--config", killed, "--rounds", 75)
    assert (again.returncode, len(again.stderr.strip().splitlines())) == (2, 1), again.stderr
    assert "75 rounds need 600 prompts; there are 480" in again.stderr


def test_a_stage_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    file = config(tmp_path / "failing")
    content = yaml.safe_load(file.read_text())
    content["evaluate"]["verifier"] = "toa_trl.demo.world:no_such_function"
    file.write_text(yaml.safe_dump(content))
    code, _, errors = finish(file)
    assert code == 1
    assert "stopped: round 0, evaluation: ended with code 2" in errors
    assert "no_such_function" in errors.splitlines()[-1]
    assert "Traceback" not in errors
