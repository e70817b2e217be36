"""`toa-trl run` with the bundled world, killed in the middle of its stages."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset

from tests.integration.conftest import ENVIRONMENT, ROOT, WEIGHTS, preloaded
from tests.integration.test_iterate import num_lines
from tests.integration.test_resume import num_plays

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]


def config(folder: Path) -> Path:
    """Two agents, ten prompts, four steps of LoRA on the best responses, sixteen problems."""
    folder.mkdir()
    data = ROOT / "toa_trl/demo/data/validation.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "heldout.jsonl").write_text("".join(lines[:160:10]), encoding="utf-8")
    # one by one: what is beside a text in a batch changes its rounding, and a kill changes that
    alone = {"max_batch_size": 1}
    reward: dict[str, Any] = {"kind": "likelihood", "model": f"{WEIGHTS}/base", "floor": -4.0}
    reward |= {"aggregate": "sum", **alone}
    agents = [
        {"name": n, "engine": "transformers", "model": f"{WEIGHTS}/{n}", **alone}
        for n in ("generalist", "add")
    ]
    synthesis = {
        "num_prompts": 10,
        "budget": 5,
        "prompts_in_flight": 4,
        "agents": agents,
        "reward": reward,
    }
    sft: dict[str, Any] = {"use_peft": True, "max_steps": 4, "per_device_train_batch_size": 4}
    sft |= {"save_strategy": "steps", "save_steps": 2}
    evaluation = {
        "prompts": str(folder / "heldout.jsonl"),
        "verifier": "toa_trl.demo.world:accuracy_reward",
        "sampling": {"temperature": 0.7, "max_tokens": 64},
        "num_samples": 1,
    }
    content: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "student": {"name": "s", "engine": "transformers", "model": f"{WEIGHTS}/student", **alone},
        "stages": [
            {"run": "synthesize", "config": "demo/synthesize", "options": synthesis},
            {"run": "data", "config": {"trust": True, "top_k": 2}},
            {"run": "sft", "config": "demo/sft", "options": sft},
            {"run": "evaluate", "config": evaluation},
        ],
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(content))
    return folder / "pipeline.yaml"


def start(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        preloaded("-m", "toa_trl", "run", file),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(file: Path) -> str:
    process = start(file)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return output


def kill_when(file: Path, there: Callable[[], bool]) -> None:
    process, end = start(file), time.monotonic() + 600
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def test_killed_in_the_middle_of_its_stages_it_ends_with_equal_results(tmp_path: Path) -> None:
    whole, killed = config(tmp_path / "whole"), config(tmp_path / "killed")
    output = finish(whole)
    assert f"The student is in {whole.parent}/out/sft-merged" in output
    one, two = whole.parent / "out", killed.parent / "out"
    kill_when(killed, lambda: num_plays(two / "synthesize") >= 20)
    kill_when(killed, lambda: (two / "sft/checkpoint-2/trainer_state.json").exists())
    kill_when(killed, lambda: num_lines(two / "outputs", "sft-*") >= 5)
    output = finish(killed)
    assert " synthesize " not in output
    rows = [list(load_dataset(str(out / "data/sft"), split="train")) for out in (one, two)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 10  # two for most prompts
    weights = [(out / "sft-merged/model.safetensors").read_bytes() for out in (one, two)]
    assert weights[0] == weights[1]
    results = [json.loads((out / "results.json").read_text()) for out in (one, two)]
    assert results[0] == results[1]
    assert set(results[0]["student"]) == {"base", "sft"}
    assert "sft" in (one / "report.html").read_text(encoding="utf-8")
