"""Real processes, started as users start them."""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import random
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import yaml

from toa_trl.cli.main import main
from toa_trl.data.tables import PREFERENCE, SFT, write_parquet
from toa_trl.demo import world

ROOT = Path(__file__).parents[2]
WEIGHTS = "toa_trl/demo/weights"
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def command(*arguments: object) -> list[str]:
    """`python ARGUMENTS`, from the project's root."""
    return [sys.executable, *map(str, arguments)]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` to its end."""
    env = {**ENVIRONMENT, **environment}
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=env, capture_output=True, text=True, timeout=580
    )


def call(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`toa-trl NAME ARGUMENTS` in this process: one of its own imports and loads for seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    handlers, logging.root.handlers = logging.root.handlers, []  # the command makes its own
    try:
        with chdir(ROOT), redirect_stdout(out), redirect_stderr(err):
            main([name, *map(str, arguments)])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        logging.root.handlers = handlers
    return subprocess.CompletedProcess([name], code, out.getvalue(), err.getvalue())


@cache
def _preloaded(
    *variables: tuple[str, str], python: str = sys.executable, modules: Sequence[str] = ()
) -> list[str]:
    """Start the server of tests.integration.preloaded; return the script and argument that ask."""
    script = "tests/integration/preloaded.py"
    path = str(Path(mkdtemp()) / "socket")  # a socket's path must be short
    environment = {**ENVIRONMENT, **dict(variables)}
    serve = [python, script, "serve", path, *modules]
    server = subprocess.Popen(serve, cwd=ROOT, env=environment)
    atexit.register(server.kill)
    deadline = time.monotonic() + 300
    while not Path(path).exists():
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return [script, path]


def preloaded(*arguments: object, **environment: str) -> list[str]:
    """`python ARGUMENTS` in a process that has imported what recipes need, as have its children.

    Args:
        arguments: a script or `-m` and a module, and its arguments.
        environment: variables that the imported libraries read when they are imported.
    """
    _, path = _preloaded(*environment.items())
    return [str(Path(path).with_name("python")), *map(str, arguments)]


def preloaded_python(python: Path, *modules: str) -> str:
    """Return a program that is `python` where a script is run, with modules that are imported."""
    _, path = _preloaded(python=str(python), modules=modules)
    return str(Path(path).with_name("python"))


def launched(config: str, commands: Iterable[Sequence[object]], *options: object) -> list[str]:
    """Return `accelerate launch` of commands that run one after the other.

    The launcher and its processes are started as always, but share their imports, which take longer
    than a test's training.

    Args:
        config: name of the accelerate configuration.
        commands: what is launched: scripts with their arguments, or `-m` and a module.
        options: of accelerate launch.
    """
    preloaded = _preloaded()
    scripts = json.dumps([[str(argument) for argument in arguments] for arguments in commands])
    accelerate = ["-m", "accelerate.commands.launch", "--config_file"]
    accelerate += [f"accelerate_configs/{config}.yaml", *map(str, options)]
    return [*preloaded, json.dumps([[*accelerate, *preloaded, scripts]])]


def launch(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch ARGUMENTS`, with the configuration for one CPU."""
    return run(*launched("single_cpu", [arguments]), **environment)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write the YAML of a dry run: two scripted agents, a reward function, 12 prompts."""

    def write(**changes: Any) -> Path:
        prompts = tmp_path / "prompts.jsonl"
        if not prompts.exists():
            prompts.write_text(
                "".join(
                    json.dumps({"id": f"p{i}", "prompt": f"Say {i}."}) + "\n" for i in range(12)
                )
            )
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


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with sft/ and dpo/ of 64 rows, made from the bundled problems."""
    folder = tmp_path_factory.mktemp("training_data")
    rng, careless = random.Random(0), world.Skill(right=dict.fromkeys("+-*", 0.3))
    sft, dpo = list[dict[str, Any]](), list[dict[str, Any]]()
    for line in (world.DATA / "synthesis.jsonl").read_text(encoding="utf-8").splitlines()[:64]:
        row = json.loads(line)
        problem = world.parse(row["prompt"])
        right = wrong = world.solution(problem)
        while world.verify(wrong, row["answer"]):
            wrong = world.solution(problem, world.work(rng, problem, careless))
        prompt = {"prompt": [{"role": "user", "content": row["prompt"]}], "prompt_id": row["id"]}
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (right, wrong))
        sft.append(
            {**prompt, "completion": chosen, "reward": 1.0, "rank": 1, "agent": "add", "play": 0}
        )
        pair = {
            "chosen": chosen,
            "chosen_reward": 1.0,
            "chosen_rank": 1,
            "chosen_agent": "add",
            "chosen_play": 0,
        }
        pair |= {"rejected": rejected, "rejected_reward": 0.0, "rejected_rank": 2}
        dpo.append({**prompt, **pair, "rejected_agent": "multiply", "rejected_play": 1})
    write_parquet(sft, SFT, folder / "sft")
    write_parquet(dpo, PREFERENCE, folder / "dpo")
    return folder


@pytest.fixture
def recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a recipe that must fail, in this process (importing TRL takes seconds); its error."""

    def fail(name: str, *arguments: object) -> str:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")
        assert stopped.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ") or ": error: " in lines[-1], lines
        return lines[-1]

    return fail
