"""Pipelines whose commands are stubs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_fleet import LAUNCHER, free_ports
from toa_trl.pipeline import Plan, check_plan, run, stages, trainings
from toa_trl.pipeline.config import PipelineConfig
from toa_trl.utils.config import validate

STUB = [sys.executable, str(Path(__file__).with_name("stub.py"))]


@pytest.fixture(name="stub")
def _stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """Let every stage start the stub; returns what it was given so far."""
    for module in (stages, trainings):
        monkeypatch.setattr(module, "TOA_TRL", STUB)
    monkeypatch.setattr(run, "report", lambda plan, number: None)
    monkeypatch.setattr(run, "visible_gpus", lambda: ["0", "1", "2", "3"])
    seen = tmp_path / "seen"
    monkeypatch.setenv("STUB_SEEN", str(seen))
    return lambda: [json.loads(line) for line in seen.read_text().splitlines()]


@pytest.fixture(name="prompt_files")
def _prompt_files(tmp_path: Path) -> None:
    """Six prompts in prompts.jsonl, two in heldout.jsonl."""
    for name, numbers in {"prompts": range(6), "heldout": range(6, 8)}.items():
        rows = (json.dumps({"id": f"p{n}", "prompt": f"Say {n}."}) + "\n" for n in numbers)
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))


@pytest.fixture(name="pipeline")
def _pipeline(prompt_files: None, tmp_path: Path) -> dict[str, Any]:
    """Two agents, a student, six prompts, two held out, and every kind of stage."""
    (tmp_path / "sft.yaml").write_text("learning_rate: 0.1\nuse_peft: true\ndataset_name: x\n")
    synthesis = {
        "prompts": str(tmp_path / "prompts.jsonl"),
        "agents": [{"name": "a", "engine": "scripted"}],
        "reward": {"kind": "length"},
    }
    return {
        "output_dir": str(tmp_path / "out"),
        "student": {"name": "student", "engine": "transformers", "model": "untrained"},
        "stages": [
            {"run": "synthesize", "config": synthesis},
            {"run": "data", "config": {"recipe": ["best"], "trust": True}},
            {"run": "sft", "config": str(tmp_path / "sft.yaml")},
            {"run": "dpo", "config": {"beta": 0.1}, "data": "synthesize"},
            {"run": "evaluate", "config": {"prompts": str(tmp_path / "heldout.jsonl")}},
            {"run": "push", "config": {"repo_id": "me/data", "private": True}},
        ],
    }


@pytest.fixture(name="served")
def _served(pipeline: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A pipeline of a synthesis with a server and a training, on different GPUs."""
    port = free_ports(3)
    pipeline["stages"] = [
        {**pipeline["stages"][0], "servers": ["llama"], "gpus": [0]},
        {"run": "sft", "gpus": [0, 1]},
    ]
    pipeline["stages"][0]["config"]["agents"] = [{"name": "llama", "engine": "openai"}]
    server = {"name": "llama", "model": "meta/llama", "port": port, "gpus": [[1], [2]]}
    server["env"] = {"FAKE_STARTS": str(tmp_path / "starts")}
    pipeline["servers"] = {
        "launcher": LAUNCHER.replace("tests/", f"{Path(__file__).parents[1]}/"),
        "servers": [server],
    }
    return pipeline


def plan_of(content: dict[str, Any]) -> Plan:
    """The checked plan of a pipeline."""
    plan = Plan(validate(PipelineConfig, content))
    check_plan(plan)
    return plan


def with_stage(content: dict[str, Any], number: int, **keys: Any) -> dict[str, Any]:
    """A pipeline in which a stage has other keys; None removes one."""
    stages = [dict(stage) for stage in content["stages"]]
    stages[number] = {k: v for k, v in {**stages[number], **keys}.items() if v is not None}
    return {**content, "stages": stages}
