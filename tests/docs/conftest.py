"""A folder in which what README and docs/ show can be typed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.shell import WEIGHTS, bundled_world, clone
from toa_trl.cli.main import run as toa_trl


@pytest.fixture(scope="session")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with prompts.jsonl, heldout.jsonl, run.yaml and a finished run, runs/my-run."""
    folder = clone(tmp_path_factory.mktemp("docs"))
    for name, numbers in {"prompts": range(1, 21), "heldout": range(21, 25)}.items():
        rows = (
            {"id": f"apples-{number}", "prompt": f"How many are {number} apples?", "reference": "?"}
            for number in numbers
        )
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    agents = [{"name": name, "engine": "scripted"} for name in "ab"]
    config: dict[str, Any] = {"prompts": "prompts.jsonl", "budget": 17, "agents": agents}
    config["sampling"] = {"max_tokens": 32}
    config |= {"reward": {"kind": "length"}, "output_dir": "runs/first"}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toa_trl(["synthesize", "--config", "run.yaml", "--output_dir", "runs/my-run"])
    for run in ("ultrafeedback-toa", "demo/synthesis"):
        shutil.copytree(folder / "runs/my-run", folder / "runs" / run)
    for model in ("my-sft", "demo/sft"):
        shutil.copytree(WEIGHTS / "student", folder / "runs" / model)
        lineage = {"base_model": "a model", "data": []}
        (folder / "runs" / model / "lineage.json").write_text(json.dumps(lineage))
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Hub's cache, with bundled models."""
    with bundled_world(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture
def place(sampled: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of `sampled`."""
    folder = shutil.copytree(sampled, tmp_path / "clone", symlinks=True)
    monkeypatch.chdir(folder)
    return folder
