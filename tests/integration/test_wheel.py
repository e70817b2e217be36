"""The wheel, installed into a fresh environment and used outside the clone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import ENVIRONMENT, ROOT

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
COPIED = (
    *("toa_trl", "recipes", "accelerate_configs"),
    *("pyproject.toml", "README.md", "LICENSE"),
)


def environment() -> dict[str, str]:
    """Return the tests' environment without a path to the clone."""
    return {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and the libraries, but without the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files behind
    source.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*install, *build], check=True, cwd=folder, env=environment())
    (wheel,) = folder.glob("*.whl")

    venv.create(folder / "env", with_pip=False)
    (packages,) = (folder / "env/lib").glob("python*/site-packages")
    python = folder / "env/bin/python"
    target = [*install, "--python", str(python), "install", "--no-deps", str(wheel)]
    subprocess.run(target, check=True, cwd=folder, env=environment())
    libraries = [
        path
        for path in map(Path, sys.path)
        if path.name == "site-packages" and path.is_dir() and not (path / "toa_trl").exists()
    ]
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in libraries))
    return python


@pytest.fixture
def run(python: Path, tmp_path: Path) -> Callable[..., str]:
    """Run `toa-trl ARGUMENTS` of that environment in an empty folder; return what it prints."""

    def call(*arguments: object) -> str:
        argv = [str(python.with_name("toa-trl")), *map(str, arguments)]
        done = subprocess.run(
            argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_the_wheel_samples_and_trains_outside_the_clone(
    python: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    code = "import toa_trl; print(toa_trl.__file__)"
    where = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert Path(where.stdout.strip()).is_relative_to(python.parents[1]), where
    assert run("--version").split()[-1][0].isdigit()

    prompts = [{"id": f"p{number}", "prompt": f"Say {number}."} for number in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    config = {
        "prompts": "prompts.jsonl",
        "budget": 4,
        "agents": [{"name": name, "engine": "scripted"} for name in "ab"],
        "reward": {"kind": "length"},
        "preference": {"rejected_rank": 0.5},
        "output_dir": "run",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    run("synthesize", "--config", "run.yaml")
    assert (tmp_path / "run/report.html").is_file()
    shutil.rmtree(tmp_path / "run/sft")
    run("data", "run")
    assert list((tmp_path / "run/sft").glob("*.parquet"))
    run("report", "run", "--output", "again.html")
    assert "few-prompts: 5 stages" in run("run", "pipelines/few_prompts", "--dry_run")
    assert (tmp_path / "again.html").is_file()

    (packages,) = (python.parents[1] / "lib").glob("python*/site-packages")
    assert (packages / "toa_trl/viewer/static/index.html").is_file()
    student = packages / "toa_trl/demo/weights/student"
    options = ("--model_name_or_path", student, "--dataset_name", "run", "--output_dir", "student")
    launch = ("sft", "--accelerate_config", "single_cpu", "--config", "demo/sft", "--use_cpu")
    run(*launch, *options, "--max_steps", 2)
    assert (tmp_path / "student/model.safetensors").is_file()
    assert "SFT" in (tmp_path / "student/README.md").read_text()
