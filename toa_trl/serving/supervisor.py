"""Keeping a fleet running: start its servers, wait for their health, restart and stop them.

Every server runs under a guard (`toa_trl/utils/guard.py`), which ends it when this process is
gone, even after `kill -9`. Linux only.
"""

import asyncio
import errno
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp

from toa_trl.errors import ConfigError, ToaError
from toa_trl.serving.endpoints import load_endpoints, write_endpoints
from toa_trl.serving.fleet import FleetConfig, Replica
from toa_trl.utils import guard
from toa_trl.utils.subprocesses import last_lines
from toa_trl.utils.targets import check_ours

POLL_S = 0.2
STUCK_S = 30.0  # a process that survives SIGKILL this long is stuck inside the kernel
REMINDER_S = 60.0  # interval of messages about a server that is still starting
FORGIVEN_S = 600.0  # a server that was healthy this long gets its restarts back
MAX_PAUSE_S = 60.0  # between restarts


def check_machine(fleet: FleetConfig) -> None:
    """Check what can be known before anything is started.

    Raises:
        ConfigError: this is not Linux, a launcher is not installed, or a port is in use.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError(
            "serve-agents needs Linux; start the servers yourself, and set the agents' base_url"
        )
    for replica in fleet.replicas:
        program = fleet.command(replica)[0]
        if not shutil.which(program, path=fleet.environment(replica).get("PATH")):
            raise ConfigError(
                f"server {replica.label!r}: the program {program!r} was not found; install vLLM, "
                "or name its Python: "
                "launcher: /path/to/python -m vllm.entrypoints.openai.api_server --model {model}"
            )
        with socket.socket() as probe:
            # a port that was in use a moment ago counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((fleet.address, replica.port))
            except OSError as error:
                in_use = error.errno == errno.EADDRINUSE
                reason = "is in use" if in_use else f"cannot be used: {error.strerror}"
                raise ConfigError(
                    f"server {replica.label!r}: port {replica.port} {reason}; choose another"
                ) from error


def serve(fleet: FleetConfig, say: Callable[[str], None]) -> None:
    """Run a fleet until SIGINT or SIGTERM, and leave no process behind.

    Must be called in the main thread.

    Raises:
        ConfigError: see `check_machine`, or log_dir or endpoints cannot be written; nothing was
            started.
        ToaError: a server died too often, or was not healthy in time.
    """
    check_machine(fleet)
    endpoints = Path(fleet.endpoints)
    if endpoints.is_file():
        check_ours({endpoints: _is_endpoints})
    try:
        Path(fleet.log_dir).mkdir(parents=True, exist_ok=True)
        endpoints.parent.mkdir(parents=True, exist_ok=True)
        endpoints.touch()  # find out whether it can be written before models are loaded
        endpoints.unlink()
    except OSError as error:
        raise ConfigError(
            f"log_dir or endpoints: {error.filename}: {error.strerror}; choose another path"
        ) from error
    guard.become_subreaper()  # a server whose guard was killed becomes a child of this process
    asyncio.run(_Supervisor(fleet, say).run())


def _is_endpoints(path: Path) -> bool:
    """Return whether a file is an endpoints file."""
    try:
        load_endpoints(path)
    except ConfigError:
        return False
    return True


class _Supervisor:
    def __init__(self, fleet: FleetConfig, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._print = say
        self._guards: dict[str, subprocess.Popen[bytes]] = {}  # by label
        # processes to exclude: children that existed before the start, and the guards
        self._spare = guard.descendants()
        self._awaited = {replica.label for replica in fleet.replicas}  # not yet healthy
        self._gpus = defaultdict[int, asyncio.Lock](asyncio.Lock)

    async def run(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as self._session:
            keeping = [asyncio.create_task(self._keep(replica)) for replica in self._fleet.replicas]
            stopping = asyncio.create_task(stop.wait())
            try:
                done, _ = await asyncio.wait(
                    [stopping, *keeping], return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
            finally:
                for task in (stopping, *keeping):
                    task.cancel()
                await asyncio.gather(stopping, *keeping, return_exceptions=True)
                await self._end_all()

    async def _keep(self, replica: Replica) -> None:
        """Start a replica, watch it, and restart it when it dies."""
        num_restarts = 0
        log = Path(self._fleet.log_dir, f"{replica.label}.log")
        log.write_bytes(b"")
        while True:
            async with AsyncExitStack() as gpus:
                # vLLM measures the free memory while it starts, so start one at a time per GPU
                if any(self._gpus[gpu].locked() for gpu in replica.gpus):
                    self._say(replica.label, "waiting for another server to start on its GPU")
                for gpu in sorted(replica.gpus):
                    await gpus.enter_async_context(self._gpus[gpu])
                begin = log.stat().st_size
                process = self._start(replica, log)
                healthy_s = await self._healthy(replica, process, log)
            while process.poll() is None:
                await asyncio.sleep(POLL_S)
            self._spare.discard(process.pid)
            if process.returncode < 0:  # the guard itself was killed
                await self._end_orphans()
            tail = "".join(f"\n    {line}" for line in last_lines(log, begin=begin))
            self._say(
                replica.label, f"died with code {process.returncode}; the end of {log}:{tail}"
            )
            if healthy_s is not None and time.monotonic() - healthy_s >= FORGIVEN_S:
                num_restarts = 0
            if num_restarts == self._fleet.max_restarts:
                raise ToaError(f"{replica.label} died after {num_restarts} restarts; see {log}")
            num_restarts += 1
            await asyncio.sleep(min(MAX_PAUSE_S, 2.0 ** (num_restarts - 1)))
            self._say(replica.label, f"restart {num_restarts} of {self._fleet.max_restarts}")

    def _start(self, replica: Replica, log: Path) -> subprocess.Popen[bytes]:
        endpoints = str(Path(self._fleet.endpoints).resolve())
        with log.open("ab") as output:
            # The guard watches its standard input; Popen lets no other child inherit our end of it.
            self._guards[replica.label] = process = subprocess.Popen(
                guard.guarded(self._fleet.command(replica), endpoints),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._fleet.environment(replica),
                start_new_session=True,  # a Ctrl-C in the terminal reaches this process only
            )
        self._spare.add(process.pid)
        self._say(replica.label, f"started, waiting for health at port {replica.port}; log: {log}")
        return process

    async def _healthy(
        self, replica: Replica, process: subprocess.Popen[bytes], log: Path
    ) -> float | None:
        """Return the monotonic time at which it became healthy; None if it died before."""
        begin_s, reminded_s = time.monotonic(), 0.0
        while process.poll() is None:
            if await self._answers(replica):
                self._say(replica.label, f"healthy after {time.monotonic() - begin_s:.0f} s")
                if self._awaited == {replica.label}:
                    self._ready()
                self._awaited.discard(replica.label)
                return time.monotonic()
            waited_s = time.monotonic() - begin_s
            if waited_s > self._fleet.start_timeout_s:
                raise ToaError(
                    f"{replica.label} was not healthy within {self._fleet.start_timeout_s:g} s; "
                    f"see {log}"
                )
            if waited_s - reminded_s >= REMINDER_S:
                reminded_s = waited_s
                line = " ".join(last_lines(log, 1))
                self._say(replica.label, f"still starting after {waited_s:.0f} s: {line}")
            await asyncio.sleep(POLL_S)
        return None

    async def _answers(self, replica: Replica) -> bool:
        try:
            async with self._session.get(f"http://127.0.0.1:{replica.port}/health") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def _ready(self) -> None:
        write_endpoints(self._fleet)
        command = f"toa-trl synthesize --config run.yaml --endpoints {self._fleet.endpoints}"
        self._say("fleet", f"ready; wrote {self._fleet.endpoints}. Next: {command}")

    async def _end_all(self) -> None:
        Path(self._fleet.endpoints).unlink(missing_ok=True)
        for process in self._guards.values():
            assert process.stdin is not None
            process.stdin.close()
        self._say("fleet", "stopping")
        try:
            async with asyncio.timeout(STUCK_S):
                while any(process.poll() is None for process in self._guards.values()):
                    await asyncio.sleep(POLL_S)
                await self._end_orphans()
        except TimeoutError as error:
            alive = [label for label, process in self._guards.items() if process.poll() is None]
            labels = ", ".join(alive) or "the server of a killed guard"
            raise ToaError(
                f"{labels}: not ended by SIGKILL (stuck in a driver?); the guards keep trying"
            ) from error
        self._say("fleet", "all servers have ended")

    async def _end_orphans(self) -> None:
        """End servers that this process inherited because their guard was killed."""
        for _ in guard.ending(guard.GRACE_S, self._spare):
            await asyncio.sleep(POLL_S)

    def _say(self, label: str, event: str) -> None:
        self._print(f"{time.strftime('%H:%M:%S')} {label}: {event}")
