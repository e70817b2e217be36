"""A real cluster of two nodes on this machine; workers, nodes and drivers are killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.conftest import ENVIRONMENT, ROOT
from toa_trl import Rollouts, TOASampler
from toa_trl.cli.config import SynthesisConfig
from toa_trl.distributed.ray import sample_on_ray
from toa_trl.errors import ToaError
from toa_trl.utils.config import validate

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed")
pytestmark = pytest.mark.heavy

NUM_PROMPTS, BUDGET = 12, 10  # as in write_config
OFFLINE = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that works on nothing, and two machines with a place for one shard each."""
    with pytest.MonkeyPatch.context() as patched:
        for key, value in OFFLINE.items():
            patched.setenv(key, value)
        patched.chdir(ROOT)  # its workers stand where it was started
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def config(write_config: Callable[..., Path]) -> Path:
    """Of a run that takes two workers some seconds."""
    agents = [
        {"name": "a", "engine": "scripted", "latency_s": 0.1},
        {"name": "b", "engine": "scripted", "latency_s": 0.1, "failure_rate": 0.2},
    ]
    return write_config(agents=agents, prompts_in_flight=1)


def start(config: Path, address: str, *options: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.ray_driver", str(config), *map(str, options)],
        cwd=ROOT,
        env={**ENVIRONMENT, **OFFLINE, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a background job, as these tests may be one, has Ctrl-C ignored, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "unfinished: 0" in output
    return output


def plays(shard: Path) -> set[tuple[str, int, float, str]]:
    """Plays of a shard with the time at which they were written."""
    try:
        uri = f"file:{shard / 'journal.sqlite'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as journal:
            return set(journal.execute("SELECT prompt_id, play, written_s, agent FROM plays"))
    except sqlite3.OperationalError:  # not yet made
        return set()


def wait_for(
    process: subprocess.Popen[str], run_dir: Path, num_shards: int, at_least: int
) -> list[Path]:
    shards = [run_dir / "shards" / f"{number:04}" for number in range(num_shards)]
    while process.poll() is None and not all(len(plays(shard)) >= at_least for shard in shards):
        time.sleep(0.05)
    assert process.poll() is None, process.stderr and process.stderr.read()
    return shards


def worker_of(shard: Path) -> psutil.Process:
    (found,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if "ray::" in "".join(process.info["cmdline"] or [])
        and str(shard / "journal.sqlite") in [file.path for file in process.open_files()]
    )
    return found


def machine_of(cluster: Any, worker: psutil.Process) -> Any:
    def raylet(node: Any) -> int:
        return int(node.all_processes["raylet"][0].process.pid)

    (found,) = (
        node
        for node in cluster.worker_nodes
        if raylet(node) in [parent.pid for parent in worker.parents()]
    )
    return found


def assert_as_local(config: Path, run_dir: Path) -> None:
    arguments = validate(SynthesisConfig, yaml.safe_load(config.read_text()))
    agents: Any = [{**agent, "latency_s": 0} for agent in arguments.agents]
    reward: Any = arguments.reward
    local = TOASampler(agents, reward, budget=BUDGET, search_params={"tau": 0.5}, progress=False)
    whole, run = local.sample(arguments.load_prompts()), Rollouts.load(run_dir)
    assert len(run) == NUM_PROMPTS
    assert all(len(rollout.scored) == BUDGET for rollout in run)
    assert list(run) == list(whole)
    assert run.identity == whole.identity


@pytest.mark.parametrize("victim", ["worker", "machine"])
def test_a_shard_is_taken_over(cluster: Any, config: Path, tmp_path: Path, victim: str) -> None:
    driver = start(config, cluster.address, 2)
    shards = wait_for(driver, tmp_path / "run", 2, at_least=15)
    worker = worker_of(shards[0])
    if victim == "worker":
        worker.send_signal(signal.SIGKILL)
    else:
        cluster.remove_node(machine_of(cluster, worker), allow_graceful=False)
        cluster.add_node(num_cpus=1)  # for the tests to come
    worker.wait(timeout=30)
    written = plays(shards[0])
    assert 15 <= len(written) < BUDGET * NUM_PROMPTS / 2
    output = end(driver)
    assert written < plays(shards[0]), "what was written before is there as it was, and more"
    assert_as_local(config, tmp_path / "run")
    assert f"progress: {BUDGET * NUM_PROMPTS} " in output


def test_a_machine_that_is_stopped_in_order(cluster: Any, config: Path, tmp_path: Path) -> None:
    driver = start(config, cluster.address, 2)
    shards = wait_for(driver, tmp_path / "run", 2, at_least=5)
    worker = worker_of(shards[1])
    worker.send_signal(signal.SIGTERM)
    worker.wait(timeout=30)
    written = plays(shards[1])
    end(driver)
    assert written < plays(shards[1])
    assert_as_local(config, tmp_path / "run")


def test_a_driver_is_killed(cluster: Any, config: Path, tmp_path: Path) -> None:
    driver = start(config, cluster.address, 3)  # more shards than places
    shards = wait_for(driver, tmp_path / "run", 1, at_least=15)
    driver.kill()
    driver.communicate()
    assert not (tmp_path / "run" / "journal.sqlite").exists()
    written = plays(shards[0])
    driver = start(config, cluster.address, 2)
    output, errors = driver.communicate(timeout=120)
    assert driver.returncode == 0, errors
    assert "with 3 shards and keeps that number instead of 2" in errors
    assert written <= plays(shards[0])
    assert_as_local(config, tmp_path / "run")
    assert f"progress: {BUDGET * NUM_PROMPTS} " in output


def test_a_signal_ends_a_run_in_order(config: Path, tmp_path: Path) -> None:
    shards = [tmp_path / "run" / "shards" / name for name in ("0000", "0001")]
    for sent in (signal.SIGINT, signal.SIGTERM):
        written = [plays(shard) for shard in shards]
        driver = start(config, "local", 2)  # on this machine alone
        wait_for(driver, tmp_path / "run", 2, at_least=5 + max(map(len, written)))
        driver.send_signal(sent)
        _, errors = driver.communicate(timeout=60)
        assert driver.returncode == 130, errors
        assert "repeat the command to resume" in errors
        assert "Traceback" not in errors
        assert all(before < plays(shard) for before, shard in zip(written, shards, strict=True))
    end(start(config, "local", 2))
    assert_as_local(config, tmp_path / "run")


def test_mistakes(cluster: Any, write_config: Callable[..., Path]) -> None:
    def fail(config: Path, *options: int, address: str = cluster.address) -> list[str]:
        driver = start(config, address, *options)
        _, errors = driver.communicate(timeout=120)
        assert driver.returncode == 2, errors
        return errors.strip().splitlines()

    (error,) = fail(write_config(search_params={"tau": 0}), 2)
    assert error.startswith("error: search_params.tau: must be > 0")
    (error,) = fail(write_config(), 2, 1)
    assert "a shard needs 1 CPU and 1 GPU, and no machine has that" in error
    (error,) = fail(write_config(), 2, address="127.0.0.1:9")
    assert "no cluster answers at '127.0.0.1:9'" in error


def test_a_finished_run_grows(
    cluster: Any, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    def rows() -> set[tuple[str, int, float, str]]:
        return plays(tmp_path / "run" / "shards" / "0000")

    driver = start(write_config(num_prompts=7), cluster.address, 2)
    end(driver)
    before = rows()
    driver = start(write_config(), cluster.address, 2)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 2
    assert "--extend" in errors
    assert rows() == before
    output = end(start(write_config(), cluster.address, 2, 0, 1))
    assert before < rows()
    assert f"progress: {BUDGET * NUM_PROMPTS} " in output
    assert_as_local(write_config(), tmp_path / "run")
    driver = start(write_config(budget=11), cluster.address, 2)
    _, errors = driver.communicate(timeout=120)
    assert (driver.returncode, "  budget: 10 -> 11" in errors) == (2, True)


def test_a_shard_that_kills_every_worker(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toa_trl.distributed.ray.MAX_RETRIES", 1)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        ToaError, match=r"Ray gave up a shard: The worker died .* resume with the same command"
    ):
        sample_on_ray(
            lambda shard, num_shards: os._exit(1),
            ["What?"],
            tmp_path / "run",
            address=cluster.address,
        )
    assert signal.getsignal(signal.SIGTERM) == before
