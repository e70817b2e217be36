"""One run over many machines. Ray decides which of them works on which shard, and starts a shard whose worker died again.

What a shard has done is in its journal (see `toa_trl.distributed.shards`), so whoever takes it over goes on inside its trees.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toa_trl.data.prompts import as_prompts
from toa_trl.distributed.shards import merge, plan, read_progress, sample_shard
from toa_trl.errors import ConfigError, ToaError
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.sampling.journal import locked
from toa_trl.types import Prompt
from toa_trl.utils.registry import check_number, check_whole

MAX_RETRIES = (
    20  # workers that a shard may lose in one run: one that kills them all must not run for ever
)
CONNECT_S = 10.0
LOOK_S = 2.0  # between two looks at the progress
STOP_S = 60.0  # how long Ctrl-C waits for the workers to end in order; what they have scored is written in any case


def sample_on_ray(
    sampler_of: Callable[[int, int], TOASampler],
    prompts: Iterable[Any],
    output_dir: str | Path,
    *,
    num_shards: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    address: str | None = None,
    on_progress: Callable[[int, int], None] = lambda num_scored, num_failed: None,
) -> Rollouts:
    """`TOASampler.sample` over a Ray cluster. Called again with the same output_dir it goes on where the journals end.

    With one play in flight per prompt the result is that of `TOASampler.sample`, whatever the number of shards.

    Args:
        sampler_of: builds the sampler of a shard from (number of the shard, number of shards), on a worker; picklable,
            e.g. a `functools.partial` of a function and a configuration.
        prompts: as of `TOASampler.sample`.
        output_dir: folder of the run, on a file system that all machines see.
        num_shards: >= 1; default: as many as the cluster works on at once. A run that goes on keeps its number.
        num_cpus: that each shard occupies, >= 0.
        num_gpus: that each shard occupies, >= 0.
        address: of the cluster, as of `ray.init`; default: RAY_ADDRESS, or the cluster that `ray start` began on this
            machine, or this machine alone.
        on_progress: called every few seconds with the scored and the failed plays of all shards.

    Raises:
        ConfigError: as of `TOASampler` and `sample`; no cluster, or no machine in it that a shard fits on; a run that
            was begun without shards.
        ToaError: nothing works any more, or a shard lost too many workers; what was scored is in the journals.
        KeyboardInterrupt: on Ctrl-C, once everything is in order.
    """
    check_number("num_cpus", num_cpus, at_least=0)
    check_number("num_gpus", num_gpus, at_least=0)
    if num_shards is not None:
        check_whole("num_shards", num_shards, at_least=1)
    known = as_prompts((f"prompt {number}", prompt) for number, prompt in enumerate(prompts))
    if not known:
        raise ConfigError("prompts: there is none")
    run_dir = Path(output_dir).absolute()
    with _cluster(address) as ray:
        num_slots = _num_slots(ray.nodes(), {"CPU": num_cpus, "GPU": num_gpus})
        (run_dir / "shards").mkdir(parents=True, exist_ok=True)
        with locked(run_dir / "shards" / "plan.json"):
            folders = plan(run_dir, known, num_shards, num_slots)
            # SPREAD, since the default fills one machine before it takes the next
            options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "scheduling_strategy": "SPREAD"}
            work = ray.remote(max_retries=MAX_RETRIES, **options)(_work)
            unfinished = [
                shard for shard, folder in enumerate(folders) if not read_progress(folder).done
            ]
            todo = unfinished or [
                0
            ]  # one at least: only a worker sees whether the configuration is still the run's
            tasks = [
                work.remote(
                    sampler_of,
                    shard,
                    len(folders),
                    known[shard :: len(folders)],
                    folders[shard],
                    Path.cwd(),
                )
                for shard in todo
            ]

            def look() -> None:
                shards = [read_progress(folder) for folder in folders]
                on_progress(sum(s.num_scored for s in shards), sum(s.num_failed for s in shards))

            _wait(ray, tasks, look)
            return merge(run_dir, known, folders)


def _work(
    sampler_of: Callable[[int, int], TOASampler],
    shard: int,
    num_shards: int,
    prompts: Sequence[Prompt],
    folder: Path,
    working_dir: Path,
) -> None:
    """One shard, on a worker."""
    if not folder.with_name("plan.json").exists():
        raise ConfigError(
            f"output_dir: {folder.parents[1]} is not there on {socket.gethostname()}; take a folder that all machines see"
        )
    if working_dir.is_dir():
        os.chdir(working_dir)  # the paths of a configuration are seen from where the user stands
    try:
        sample_shard(sampler_of(shard, num_shards), prompts, folder)
    except KeyboardInterrupt:
        import ray

        if not ray.get_runtime_context().is_canceled():  # SIGTERM: this machine is being stopped
            os.kill(
                os.getpid(), signal.SIGKILL
            )  # Ray starts a shard again whose worker died, not one that was ended
        raise


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected; a connection that is there already is used, and left as it is."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            'runner ray: ray is missing; install it with: pip install "toa_trl[ray]"'
        ) from error
    if ray.is_initialized():
        yield ray
        return
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    address = address or os.environ.get("RAY_ADDRESS")
    host, _, port = (address or "").rpartition(":")
    try:
        if port.isdecimal():  # where nothing listens, Ray would try for minutes, and then exit
            socket.create_connection((host.rpartition("/")[2], int(port)), CONNECT_S).close()
        ray.init(address=address, logging_level=logging.ERROR)
    except OSError as error:  # ConnectionError is one
        raise ConfigError(
            f"ray: no cluster answers at {address!r} ({error}); start one with `ray start --head`, or name another address"
        ) from error
    try:
        if in_main_thread:
            signal.signal(
                signal.SIGTERM, signal.default_int_handler
            )  # as Ctrl-C; Ray's own handler would just exit
        yield ray
    finally:
        ray.shutdown()
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def _num_slots(nodes: Iterable[dict[str, Any]], needs: dict[str, float]) -> int:
    """How many shards the machines work on at once.

    Raises:
        ConfigError: none; Ray would wait for such a machine for ever.
    """
    needs = {resource: need for resource, need in needs.items() if need > 0}
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    num_slots = sum(
        min((int(m.get(r, 0) / need) for r, need in needs.items()), default=1) for m in machines
    )
    if num_slots < 1:
        wanted = " and ".join(f"{need:g} {resource}" for resource, need in needs.items())
        there = "; ".join(
            " and ".join(f"{m.get(resource, 0):g} {resource}" for resource in needs)
            for m in machines
        )
        raise ConfigError(
            f"num_cpus, num_gpus: a shard needs {wanted}, and no machine has that (there are: {there})"
        )
    return num_slots


def _wait(ray: Any, tasks: Iterable[Any], look: Callable[[], None]) -> None:
    """Until all tasks have ended; where one fails, or on Ctrl-C, the others are ended in order."""
    pending = list(tasks)
    try:
        while pending:
            done, pending = ray.wait(pending, timeout=LOOK_S)
            look()
            ray.get(done)
    except BaseException as error:
        for task in pending:
            ray.cancel(task)
        if pending:
            ray.wait(pending, num_returns=len(pending), timeout=STOP_S)
        if isinstance(error, ray.exceptions.RayTaskError):
            if isinstance(error.cause, ToaError | OSError):
                raise error.cause from None  # as the worker raised it
        elif isinstance(error, ray.exceptions.RayError):
            reason = str(error).strip().partition("\n")[0]
            raise ToaError(
                f"Ray gave a shard up: {reason} What was scored is kept, and the same command goes on"
            ) from error
        raise
