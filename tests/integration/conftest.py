"""Real processes, started as users start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WEIGHTS = "toa_trl/demo/weights"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def command(*arguments: object) -> list[str]:
    """`python ARGUMENTS`, from the project's root."""
    return [sys.executable, *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` to its end."""
    return subprocess.run(command(*arguments), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`accelerate launch ARGUMENTS`, with the configuration for one CPU."""
    accelerate = ("-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/single_cpu.yaml")
    return run(*accelerate, *arguments)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """A YAML of a dry run: two scripted agents, a reward function, 12 prompts; keys can be changed."""

    def write(**changes: Any) -> Path:
        prompts = tmp_path / "prompts.jsonl"
        if not prompts.exists():
            prompts.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"Say {i}."}) + "\n" for i in range(12)))
        config = {
            "prompts": str(prompts),
            "search": "toa",
            "search_params": {"tau": 0.5},
            "budget": 10,
            "agents": [
                {"name": "a", "engine": "scripted", "latency_s": 0.02},
                {"name": "b", "engine": "scripted", "latency_s": 0.02, "failure_rate": 0.2},
            ],
            "reward": {"kind": "function", "function": "tests.integration.rewards:digest_reward"},
            "preference": {"rejected_rank": 0.5},
            "output_dir": str(tmp_path / "run"),
            **changes,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write
