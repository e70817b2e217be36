"""toa_trl/cli/serve_agents.py, with servers that are none.

No process outlives it, whatever ends it.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.conftest import ENVIRONMENT, ROOT, command, run
from toa_trl.serving.endpoints import load_endpoints

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the fleet is for Linux"
)
SCRIPT = "toa_trl/cli/serve_agents.py"
LAUNCHER = f"{sys.executable} -S tests/integration/fake_vllm.py --model {{model}}"


def free_ports(number: int) -> int:
    """The first of so many free ports in a row.

    Each test process has a range of its own, below those that systems hand out by themselves,
    so that no other process takes the port before the server starts.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    lowest = 10000 + 600 * (worker % 10)
    system = random.SystemRandom()  # training in the same process seeds the common generator
    while True:
        first = system.randrange(lowest, lowest + 600 - number)
        try:
            for port in range(first, first + number):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def within(seconds: float, condition: Callable[[], Any], what: object = "") -> Any:
    """What the condition says, once it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.05)
    return value


class Running:
    """A fleet of fake servers as its own process, three if nothing else is said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config, self.endpoints = (
            folder,
            folder / "fleet.yaml",
            folder / "endpoints.yaml",
        )
        self.first = free_ports(4)
        self.seen: set[psutil.Process] = set()

    def write(
        self,
        servers: list[dict[str, Any]] | None = None,
        env: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Path:
        three = [
            {"name": "a", "port": self.first, "gpus": [[0], [1]]},
            {"name": "b", "port": self.first + 2},
        ]
        base = {
            "model": "some/model",
            "env": {"FAKE_STARTS": str(self.folder / "starts"), **(env or {})},
        }
        content = {
            "endpoints": str(self.endpoints),
            "launcher": LAUNCHER,
            "log_dir": str(self.folder / "logs"),
            "servers": [{**base, **server} for server in servers or three],
            **keys,
        }
        self.config.write_text(yaml.safe_dump(content))
        return self.config

    def start(self, *program: object) -> None:
        with (self.folder / "out").open("w") as output:
            self.process = subprocess.Popen(
                command(*(program or (SCRIPT,)), "--config", self.config),
                cwd=ROOT,
                env=ENVIRONMENT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # as a terminal has it: Ctrl-C goes to the whole group
            )

    @property
    def output(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def starts(self) -> list[dict[str, Any]]:
        path = self.folder / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def says(self, pattern: str, times: int = 1) -> None:
        within(
            20,
            lambda: len(re.findall(pattern, self.output)) >= times,
            lambda: f"{pattern}: {self.output}",
        )

    def family(self) -> list[psutil.Process]:
        """Every process under it now: per server a guard, the server, and its engine."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.seen |= set(found)
        return found

    def whole_family(self, number: int) -> list[psutil.Process]:
        return within(
            10,
            lambda: family if len(family := self.family()) == number else None,
            lambda: self.family(),
        )

    def left(self) -> list[psutil.Process]:
        """Those ever seen that are still alive.

        A zombie has ended; that its new parent did not ask is not our business.
        """
        alive = []
        for process in self.seen:
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
            except psutil.NoSuchProcess:
                continue
        return alive

    def ends(self, code: int) -> None:
        assert self.process.wait(25) == code, self.output
        assert self.left() == []
        assert not self.endpoints.exists()
        assert "Traceback" not in self.output


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    if hasattr(running, "process"):
        running.process.kill()
        running.process.wait()
    for process in running.left():
        process.kill()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_fleet_from_start_to_end(fleet: Running, sent: signal.Signals) -> None:
    fleet.endpoints.write_text("agents: {}\n")  # left by an earlier fleet
    servers = [
        {
            "name": "a",
            "port": fleet.first,
            "gpus": [[0], [1]],
            "memory_share": 0.5,
            "args": {"max-model-len": 64},
        },
        {"name": "judge", "model": "reward/model", "port": fleet.first + 2, "reward": True},
    ]
    fleet.write(servers, env={"FAKE_DELAY_S": 0.5})
    fleet.start()
    fleet.says("waiting for health", times=3)
    assert not fleet.endpoints.exists(), "before every server is healthy"
    fleet.says(f"fleet: ready.*toa-trl synthesize .*--endpoints {fleet.endpoints}")
    url = "http://127.0.0.1:{}/v1".format
    assert load_endpoints(fleet.endpoints).model_dump() == {
        "agents": {
            "a": {"model": "some/model", "base_url": [url(fleet.first), url(fleet.first + 1)]}
        },
        "reward": {"model": "reward/model", "base_url": [url(fleet.first + 2)]},
    }
    starts = sorted(fleet.starts, key=lambda start: start["port"])
    assert [start["gpus"] for start in starts] == ["0", "1", None]
    own = ["--generation-config", "vllm"]  # not the sampling that a model's folder suggests
    memory = ["--gpu-memory-utilization", "0.5"]
    assert starts[0]["others"] == [*own, *memory, "--max-model-len", "64"]
    assert "--runner pooling" in " ".join(starts[2]["others"])
    assert {start["host"] for start in starts} == {"127.0.0.1"}
    fleet.whole_family(9)
    os.killpg(fleet.process.pid, sent) if sent == signal.SIGINT else fleet.process.send_signal(sent)
    fleet.ends(0)
    assert "Traceback" not in (fleet.folder / "logs/a-0.log").read_text(), (
        "Ctrl-C is for the fleet alone"
    )
    assert "fleet: all servers have ended" in fleet.output
    assert "reward/model: loading" in (fleet.folder / "logs/judge.log").read_text()


@pytest.mark.parametrize("delay_s", [0.0, 60.0], ids=["serving", "starting"])
def test_killed_it_leaves_no_process(fleet: Running, delay_s: float) -> None:
    fleet.write(env={"FAKE_DELAY_S": delay_s})
    fleet.start()
    fleet.says("waiting for health" if delay_s else "fleet: ready", times=3 if delay_s else 1)
    fleet.whole_family(9)
    fleet.process.kill()
    within(8, lambda: not fleet.left(), fleet.left)
    assert not fleet.endpoints.exists(), "nobody shall sample from a dead fleet"


@pytest.mark.heavy
def test_killed_it_leaves_no_process_that_ignores_sigterm(fleet: Running) -> None:
    fleet.write(env={"FAKE_STUBBORN": 1})
    fleet.start()
    fleet.says("fleet: ready")
    fleet.whole_family(9)
    fleet.process.kill()
    within(20, lambda: not fleet.left(), fleet.left)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill processes of a fleet that was killed, which may have ended by themselves."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_killed_with_its_servers_it_leaves_no_engine(fleet: Running) -> None:
    fleet.write()
    fleet.start()
    fleet.says("fleet: ready")
    guards = [process for process in fleet.whole_family(9) if process.name() == "toa-guard"]
    assert len(guards) == 3, "killall python would find them"
    servers = [psutil.Process(start["pid"]) for start in fleet.starts]
    fleet.process.kill()
    kill_all(servers)
    within(8, lambda: not fleet.left(), fleet.left)


def test_killed_with_its_guards_it_leaves_no_process(fleet: Running) -> None:
    fleet.write()
    fleet.start()
    fleet.says("fleet: ready")
    guards = [process for process in fleet.whole_family(9) if process.name() == "toa-guard"]
    assert len(guards) == 3
    fleet.process.kill()
    kill_all(guards)
    within(8, lambda: not fleet.left(), fleet.left)


def test_a_signal_while_it_starts(fleet: Running) -> None:
    fleet.write(env={"FAKE_DELAY_S": 60})
    fleet.start()
    fleet.says("waiting for health", times=3)
    fleet.whole_family(9)
    fleet.process.terminate()
    fleet.ends(0)


def test_a_server_that_dies_is_restarted_and_the_others_go_on(fleet: Running) -> None:
    fleet.write()
    fleet.start()
    fleet.says("fleet: ready")
    before = fleet.whole_family(9)
    victim = next(start for start in fleet.starts if start["port"] == fleet.first)
    engine = psutil.Process(victim["pid"]).children()[0]
    psutil.Process(victim["pid"]).kill()
    fleet.says("a-0: died with code 137")
    assert fleet.endpoints.exists()
    assert not engine.is_running(), "it would hold the GPU"
    fleet.says("a-0: restart 1 of 3")
    fleet.says("a-0: healthy", times=2)
    assert len(fleet.left()) == len(before) - 3, "the other servers"
    fleet.whole_family(9)
    assert fleet.output.count("fleet: ready") == 1
    fleet.process.terminate()
    fleet.ends(0)


@pytest.mark.heavy
def test_a_killed_guard_takes_its_server_along(fleet: Running) -> None:
    fleet.write(env={"FAKE_STUBBORN": 1}, servers=[{"name": "a", "port": fleet.first}])
    fleet.start()
    fleet.says("fleet: ready")
    before = fleet.whole_family(3)
    guard = psutil.Process(fleet.starts[0]["pid"]).parent()
    assert guard is not None
    guard.kill()
    fleet.says("a: died with code -9")
    assert not any(process.is_running() for process in before)
    fleet.says("a: healthy", times=2)
    fleet.whole_family(3)


def test_a_server_that_dies_too_often_ends_the_fleet(fleet: Running) -> None:
    servers = [
        {"name": "a", "port": fleet.first},
        {"name": "b", "port": fleet.first + 1, "env": {"FAKE_DIES_S": 0.5}},
    ]
    fleet.write(servers, max_restarts=1)
    fleet.start()
    fleet.says("healthy")
    fleet.family()
    fleet.ends(1)
    assert fleet.output.count("b: died with code 3") == 2
    assert fleet.output.count("b: restart 1 of 1") == 1
    assert "    the last word\n" in fleet.output
    assert re.search(
        r"^stopped: b died after 1 restarts; see .*b\.log$", fleet.output, re.MULTILINE
    )


def test_a_server_that_was_healthy_for_long_gets_its_restarts_back(fleet: Running) -> None:
    fleet.write([{"name": "a", "port": fleet.first, "env": {"FAKE_DIES_S": 1.5}}], max_restarts=1)
    patched = (
        "import runpy, toa_trl.serving.supervisor as s; s.FORGIVEN_S = 0.1; "
        "runpy.run_path('toa_trl/cli/serve_agents.py', run_name='__main__')"
    )
    fleet.start("-c", patched)
    fleet.says("a: restart 1 of 1", times=2)
    fleet.family()
    fleet.process.terminate()
    fleet.ends(0)


def test_a_server_that_is_not_healthy_in_time_ends_the_fleet(fleet: Running) -> None:
    servers = [
        {"name": "a", "port": fleet.first},
        {"name": "b", "port": fleet.first + 1, "env": {"FAKE_DELAY_S": 60}},
    ]
    fleet.write(servers, start_timeout_s=3)
    fleet.start()
    fleet.says("a: healthy")
    fleet.whole_family(6)
    fleet.ends(1)
    assert "stopped: b was not healthy within 3 s" in fleet.output


def test_servers_on_one_gpu_start_one_after_the_other(fleet: Running) -> None:
    shared = {
        "gpus": [0],
        "memory_share": 0.5,
        "env": {"FAKE_DELAY_S": 1, "FAKE_STARTS": str(fleet.folder / "starts")},
    }
    fleet.write([{"name": name, "port": fleet.first + i, **shared} for i, name in enumerate("ab")])
    fleet.start()
    fleet.says("fleet: ready")
    first, second = fleet.starts
    assert second["time"] - first["time"] > 1
    assert "b: waiting for another server to start" in fleet.output


def test_a_port_in_use_is_said_before_anything_starts(fleet: Running) -> None:
    config = fleet.write()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", fleet.first + 1))
        taken.listen()
        done = run(SCRIPT, "--config", config)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"server 'a-1': port {fleet.first + 1} is in use" in done.stderr
    assert fleet.starts == []


def test_a_mistake_is_one_line(fleet: Running) -> None:
    done = run(SCRIPT, "--config", fleet.write([{"name": "a", "port": 1, "gpu": [0]}]))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "servers[0]: unknown key 'gpu'" in done.stderr
    assert "did you mean 'gpus'" in done.stderr
