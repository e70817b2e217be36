"""One run on many machines: Ray schedules the shards, and restarts those whose worker died.

Every shard has a journal (see `toa_trl.distributed.shards`), from which the next worker resumes it.
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
from toa_trl.distributed.shards import grow, merge, plan, read_progress, sample_shard
from toa_trl.errors import ConfigError, ToaError
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.sampling.extension import Extend
from toa_trl.sampling.journal import locked
from toa_trl.types import Prompt
from toa_trl.utils.config import NonNegativeFloat, PositiveInt, validate

MAX_RETRIES = 20  # workers that a shard may lose in one run; a shard that kills them all must end
CONNECT_S = 10.0
LOOK_S = 2.0  # polling interval for progress
STOP_S = 60.0  # how long Ctrl-C waits for workers to stop gracefully; scored plays are kept


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
    extend: Extend = False,
) -> Rollouts:
    """Sample on a Ray cluster; with the output_dir of an earlier call, resume it.

    With one play in flight per prompt the result is that of `TOASampler.sample`, for any number of
    shards.

    Args:
        sampler_of: returns the sampler of a shard on a worker, given the number of the shard and
            the number of shards; picklable, e.g. a `functools.partial` of a function and a
            configuration.
        prompts: see `TOASampler.sample`.
        output_dir: folder of the run, on a file system that all machines share.
        num_shards: number of shards, >= 1; None: as many as fit on the cluster at once. A resumed
            run keeps its number.
        num_cpus: CPUs that each shard occupies, >= 0.
        num_gpus: GPUs that each shard occupies, >= 0.
        address: address of the cluster, as for `ray.init`; None: RAY_ADDRESS, or the cluster
            started on this machine by `ray start`, or this machine alone.
        on_progress: called every few seconds with the scored and the failed plays of all shards.
        extend: whether the run in output_dir may grow: see `TOASampler.sample`.

    Raises:
        ConfigError: see `TOASampler` and `sample`; or there is no cluster, or no machine in it that
            a shard fits on, or the run was started without shards.
        ToaError: the run cannot continue, or a shard lost too many workers; what was scored is in
            the journals.
        KeyboardInterrupt: on Ctrl-C, after the workers have stopped.
    """
    validate(NonNegativeFloat, num_cpus, "num_cpus")
    validate(NonNegativeFloat, num_gpus, "num_gpus")
    validate(PositiveInt | None, num_shards, "num_shards")
    checked = as_prompts((f"prompt {number}", prompt) for number, prompt in enumerate(prompts))
    if not checked:
        raise ConfigError("prompts: the list is empty")
    run_dir = Path(output_dir).absolute()
    with _cluster(address) as ray:
        num_slots = _num_slots(ray.nodes(), {"CPU": num_cpus, "GPU": num_gpus})
        (run_dir / "shards").mkdir(parents=True, exist_ok=True)
        with locked(run_dir / "shards" / "plan.json"):
            folders = plan(run_dir, checked, num_shards, num_slots, extend)
            # by default, Ray fills one machine before it uses the next
            options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "scheduling_strategy": "SPREAD"}
            remote = ray.remote(max_retries=MAX_RETRIES, **options)
            if extend:
                given = (sampler_of, checked, folders, Path.cwd(), extend)
                _wait(ray, [remote(_grow).remote(*given)], lambda: None)
            work = remote(_work)
            unfinished = [
                shard for shard, folder in enumerate(folders) if not read_progress(folder).done
            ]
            tasks = []
            # At least one: only a worker can check that the configuration is unchanged.
            for shard in unfinished or [0]:
                part, folder = checked[shard :: len(folders)], folders[shard]
                args = (sampler_of, shard, len(folders), part, folder, Path.cwd(), extend)
                tasks.append(work.remote(*args))

            def look() -> None:
                shards = [read_progress(folder) for folder in folders]
                on_progress(sum(s.num_scored for s in shards), sum(s.num_failed for s in shards))

            _wait(ray, tasks, look)
            return merge(run_dir, checked, folders)


def _grow(
    sampler_of: Callable[[int, int], TOASampler],
    prompts: Sequence[Prompt],
    folders: Sequence[Path],
    working_dir: Path,
    extend: Extend,
) -> None:
    """Extend the journals of all shards on a worker, before any is sampled."""
    _enter(folders[0], working_dir)
    grow(sampler_of(0, len(folders)), prompts, folders, extend)


def _work(
    sampler_of: Callable[[int, int], TOASampler],
    shard: int,
    num_shards: int,
    prompts: Sequence[Prompt],
    folder: Path,
    working_dir: Path,
    extend: Extend,
) -> None:
    """Sample one shard on a worker."""
    _enter(folder, working_dir)
    try:
        sample_shard(sampler_of(shard, num_shards), prompts, folder, extend)
    except KeyboardInterrupt:
        import ray

        if not ray.get_runtime_context().is_canceled():  # SIGTERM: this machine is being stopped
            # Ray restarts a shard whose worker died, but not one that ended.
            os.kill(os.getpid(), signal.SIGKILL)
        raise


def _enter(folder: Path, working_dir: Path) -> None:
    """Check that a worker sees the shard's folder, and work where the user does."""
    if not folder.with_name("plan.json").exists():
        raise ConfigError(
            f"output_dir: {folder.parents[1]} is missing on {socket.gethostname()}; choose a "
            "folder that all machines share"
        )
    if working_dir.is_dir():
        os.chdir(working_dir)  # paths in a configuration are relative to the user's directory


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Connect to Ray; an existing connection is used and left open."""
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
        if port.isdecimal():  # if nothing listens, Ray would retry for minutes and then exit
            socket.create_connection((host.rpartition("/")[2], int(port)), CONNECT_S).close()
        ray.init(address=address, logging_level=logging.ERROR)
    except OSError as error:  # ConnectionError is one
        raise ConfigError(
            f"ray: no cluster answers at {address!r} ({error}); start one with `ray start --head`, "
            "or set another address"
        ) from error
    try:
        if in_main_thread:
            # As for Ctrl-C; Ray's own handler would exit at once.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield ray
    finally:
        ray.shutdown()
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def _num_slots(nodes: Iterable[dict[str, Any]], needs: dict[str, float]) -> int:
    """Return how many shards fit on the machines at once.

    Raises:
        ConfigError: no shard fits; Ray would wait for ever.
    """
    needs = {resource: need for resource, need in needs.items() if need > 0}
    machines = [node["Resources"] for node in nodes if node["Alive"]]

    def slots_of(machine: dict[str, float]) -> int:
        fitting = (int(machine.get(resource, 0) / need) for resource, need in needs.items())
        return min(fitting, default=1)

    def listed(resources: dict[str, float]) -> str:
        return " and ".join(f"{resources.get(resource, 0):g} {resource}" for resource in needs)

    num_slots = sum(map(slots_of, machines))
    if num_slots < 1:
        raise ConfigError(
            f"num_cpus, num_gpus: a shard needs {listed(needs)}, and no machine has that "
            f"(available: {'; '.join(map(listed, machines))})"
        )
    return num_slots


def _wait(ray: Any, tasks: Iterable[Any], look: Callable[[], None]) -> None:
    """Wait for all tasks; if one fails, or on Ctrl-C, the others are stopped gracefully."""
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
                f"Ray gave up a shard: {reason} What was scored is kept; resume with the "
                "same command"
            ) from error
        raise
