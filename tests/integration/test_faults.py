"""Servers that fail, die and come back, a process that is killed, and a disk that is full.

The run ends with everything.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import ENVIRONMENT, ROOT, call, preloaded
from tests.integration.test_resume import assert_complete, num_plays
from tests.server import Process, serving
from toa_trl import Rollouts

FAULTS = [
    "reset",
    "refuse_body",
    "500",
    "503",
    "429",
    "429_after",
    "empty",
    "nan",
    "missing",
    "count",
]


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        preloaded("-m", "tests.integration.sampling", config),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


@pytest.fixture
def server_config(write_config: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A configuration with two agents at the first servers and the reward at the last one."""

    def write(servers: list[Process], num_prompts: int, **changes: Any) -> Path:
        prompts = tmp_path / "many.jsonl"
        prompts.write_text(
            "".join(f'{{"id": "p{i}", "prompt": "What is {i}?"}}\n' for i in range(num_prompts))
        )
        *agents, reward = servers
        urls = [server.url for server in agents] or [reward.url]
        shared = {"engine": "openai", "base_url": urls, "max_attempts": 15, "timeout_s": 20}
        return write_config(
            prompts=str(prompts),
            agents=[{"name": name, "model": name, **shared} for name in "ab"],
            reward={
                "kind": "http",
                "url": f"{reward.root}/score",
                "max_attempts": 15,
                "timeout_s": 20,
            },
            **changes,
        )

    return write


def plays(run_dir: Path) -> list[Any]:
    return [(rollout.prompt.id, rollout.plays) for rollout in Rollouts.load(run_dir)]


@pytest.mark.heavy
def test_thirty_kills_with_faulty_answers_change_nothing(
    server_config: Callable[..., Path], tmp_path: Path
) -> None:
    num_prompts, budget, num_kills = 60, 16, 30
    options: dict[str, Any] = {"latency_s": (0.03, 0.12), "fault_rate": 0.2, "faults": FAULTS}
    with serving(**options) as server:
        config = server_config([server], num_prompts, budget=budget)
        finish(start(config))
    whole = plays(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "whole")

    rng, killed, run_dir = random.Random(0), 0, tmp_path / "run"
    with serving(**options) as server:
        config = server_config([server], num_prompts, budget=budget)
        while killed < num_kills:
            before, process = num_plays(run_dir), start(config)
            left = num_prompts * budget - before
            after = before + rng.randint(0, max(1, 2 * left // (num_kills - killed + 5)))
            while process.poll() is None and num_plays(run_dir) <= after:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL, "there was nothing left to kill"
            killed += 1
            assert num_plays(run_dir) >= before, "a written play was lost"
        finish(start(config))
        stats = server.stats()
    assert stats["faults"].keys() >= set(FAULTS) - {"nan", "missing", "count"}
    assert_complete(run_dir, num_prompts, budget)
    assert plays(run_dir) == whole
    assert not any(play.error for _, played in whole for play in played)


@pytest.mark.heavy
def test_servers_that_go_and_come_back_and_a_storm(
    server_config: Callable[..., Path], tmp_path: Path
) -> None:
    num_prompts, budget, run_dir = 120, 16, tmp_path / "run"
    slow: dict[str, Any] = {"slots": 12, "latency_s": (0.2, 0.6)}
    with (
        serving(**slow) as one,
        serving(**slow) as two,
        serving(**slow) as three,
        serving() as reward,
    ):
        process = start(
            server_config(
                [one, two, three, reward], num_prompts, budget=budget, prompts_in_flight=64
            )
        )
        began = time.monotonic()

        def at(seconds: float) -> None:
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            assert process.poll() is None, process.communicate()[1]

        while num_plays(run_dir) < 50:
            at(0)
            time.sleep(0.1)
        began = time.monotonic()
        one.kill()
        two.control(status=429, for_s=8)
        at(3)
        before = num_plays(run_dir)
        reward.kill()
        at(8)
        assert num_plays(run_dir) <= before + 100, "nothing can be scored without the reward server"
        reward.restart()
        while num_plays(run_dir) <= before + 100:
            at(0)
            time.sleep(0.1)
        at(14)  # a server that is away is looked for after 15 s, and then only after 31 s
        one.restart()
        said = finish(process)
        assert one.stats()["requests"]["POST /v1/chat/completions"] > 20, "it is asked again"
    assert f"{one.url}: ClientConnector" in said or one.url in said
    assert f"{one.url} is back" in said
    assert f"{reward.root}/score is back" in said
    assert_complete(run_dir, num_prompts, budget)
    assert not any(play.error for _, played in plays(run_dir) for play in played)


@pytest.mark.heavy
def test_an_agent_without_a_server_is_taken_out_and_comes_back(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    slow: dict[str, Any] = {"slots": 4, "latency_s": (0.1, 0.2)}
    with serving(**slow) as one, serving(**slow) as two:
        agents = [
            {"name": name, "engine": "openai", "model": name, "base_url": server.url}
            for name, server in {"a": one, "b": two}.items()
        ]
        process = start(write_config(agents=agents, budget=60))
        while num_plays(tmp_path / "run") < 100:
            time.sleep(0.05)
        one.kill()
        time.sleep(5)
        one.restart()
        said = finish(process)
    assert f"agent 'a': {one.url} is back" in said
    assert_complete(tmp_path / "run", 12, 60)
    by_a = [
        play.index
        for _, played in plays(tmp_path / "run")
        for play in played
        if play.action.agent == "a"
    ]
    assert max(by_a) > 40, "it takes part again"


@pytest.mark.heavy
def test_without_any_server_the_run_stops_and_goes_on_later(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    with serving(latency_s=(0.02, 0.05)) as server:
        agents = [{"name": "a", "engine": "openai", "model": "a", "base_url": server.url}]
        config = write_config(agents=agents, patience_s=1.0)
        process = start(config)
        while num_plays(tmp_path / "run") < 20:
            time.sleep(0.02)
        server.kill()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1, said
        assert f"stopped: no agent has answered for 1 s: {server.url}" in said.replace(
            "agent 'a': ", ""
        )
        assert "Traceback" not in said
        before = num_plays(tmp_path / "run")
        again = call("synthesize", "--config", config)
        assert again.returncode == 2
        assert f"agent 'a': {server.url} cannot be reached" in again.stderr
        assert num_plays(tmp_path / "run") == before
        server.restart()
        finish(start(config))
    assert_complete(tmp_path / "run", 12, 10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.heavy
def test_a_full_disk_is_said_and_a_resume_finds_everything(
    write_config: Callable[..., Path], small_disk: Path
) -> None:
    run_dir = small_disk / "run"
    long = [f"{'word ' * 400}{number}" for number in range(50)]
    agents = [{"name": "a", "engine": "scripted", "responses": long}]
    config = write_config(agents=agents, output_dir=str(run_dir), budget=100)
    process = start(config)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "stopped: " in said
    assert "full" in said
    assert "resume" in said
    assert "Traceback" not in said
    before = plays(run_dir)
    assert sum(len(played) for _, played in before) > 100
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    finish(start(config))
    assert_complete(run_dir, 12, 100)
    for (_, then), (_, now) in zip(before, plays(run_dir), strict=True):
        assert now[: len(then)] == then


def test_the_key_is_written_nowhere(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(fault_rate=0.3, faults=["context"]) as server:
        agents = [
            {
                "name": "a",
                "engine": "openai",
                "model": "a",
                "base_url": server.url,
                "api_key_env": "SECRET_KEY",
            }
        ]
        config = write_config(agents=agents)
        monkeypatch.setenv("SECRET_KEY", "sk-do-not-tell")
        done = call("synthesize", "--config", config)
        assert done.returncode == 0, done.stderr
    assert "maximum context length is 4096" in done.stderr
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"run.yaml", "journal.sqlite", "README.md", "report.html"} <= {
        path.name for path in written
    }
    for said in [
        done.stdout.encode(),
        done.stderr.encode(),
        *(path.read_bytes() for path in written),
    ]:
        assert b"sk-do-not-tell" not in said
    assert (
        "SECRET_KEY"
        in yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["agents"][0]["api_key_env"]
    )
