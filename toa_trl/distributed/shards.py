"""A sharded run on disk: every shard has a separate journal, and they are merged at the end.

    output_dir/shards/plan.json         how the prompts are split; written once
    output_dir/shards/identity.json     the configuration; written once, by the first worker
    output_dir/shards/0003/             journal.sqlite and progress.json of a shard

A journal in use can be read only on its writer's machine; other machines read progress.json.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.sampling.extension import Extend
from toa_trl.sampling.identity import (
    check_same_identity,
    differences,
    digest_of_prompts,
    digests_of_prompts,
    identity_of_run,
)
from toa_trl.sampling.journal import Journal, copy_journals
from toa_trl.sampling.progress import Progress
from toa_trl.types import AgentCounts, Play, Prompt
from toa_trl.utils.aio import run_until_signal
from toa_trl.utils.files import read_object, write_json

logger = logging.getLogger(__name__)

TAKEOVER_S = 60.0  # how long a shard waits for its previous worker to end
REPORT_S = 2.0  # interval between two writes of progress.json


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """The progress of a shard."""

    num_scored: int = 0
    num_failed: int = 0
    given_up: tuple[str, ...] = ()  # ids of prompts, once the shard has ended
    limit: str | None = None  # the limit that ended the shard
    done: bool = False  # whether every budget is spent


def check_not_sharded(run_dir: str | Path) -> None:
    """Check that a run was not started in shards, whose journals would hold its plays.

    Raises:
        ConfigError: it was.
    """
    if _is_sharded(Path(run_dir)):
        raise ConfigError(
            f"{run_dir} was started with --runner ray; use it again, or choose another output_dir"
        )


def plan(
    run_dir: Path,
    prompts: Sequence[Prompt],
    num_shards: int | None,
    default: int,
    extend: Extend = False,
) -> list[Path]:
    """Return the folders of the shards; shard i has the prompts i, i + n, i + 2 n, ...

    So the prompts of a shard come first among those that it has when more are appended.

    Args:
        run_dir: folder of the run.
        prompts: prompts of the run.
        num_shards: requested number of shards n, >= 1; a resumed run keeps its number.
        default: number of shards without a request, >= 1.
        extend: see `toa_trl.sampling.extension.Extend`; the plan changes in `grow`.

    Raises:
        ConfigError: the run is not sharded, has other prompts, or its plan cannot be read; or
            there is no run to extend.
    """
    path = run_dir / "shards" / "plan.json"
    resumed = _is_sharded(run_dir)
    if not resumed and (run_dir / "journal.sqlite").exists():
        raise ConfigError(
            f"{run_dir} was started with --runner local; use it again, or choose another output_dir"
        )
    if extend and not resumed:
        raise ConfigError(f"--extend: there is no run in {run_dir}")
    if not resumed:
        # An earlier start may have failed before its first play.
        (run_dir / "shards" / "identity.json").unlink(missing_ok=True)
        wanted = min(num_shards or default, len(prompts))
        _write_plan(path, wanted, prompts)
    try:
        stored = json.loads(path.read_text())
        number = int(stored["num_shards"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}), and the run cannot be resumed without it; restore "
            "it, or choose another output_dir"
        ) from error
    if extend:
        _num_planned(path, stored["prompts"], prompts)
    elif stored["prompts"] != digest_of_prompts(prompts):
        raise ConfigError(
            f"{run_dir} was started with other prompts; restore them, let the run grow with "
            "--extend, or choose another output_dir"
        )
    if resumed and num_shards not in (None, number):
        logger.warning(
            "%s was started with %d shards and keeps that number instead of %s",
            run_dir,
            number,
            num_shards,
        )
    return [path.with_name(f"{shard:04}") for shard in range(number)]


def grow(
    sampler: TOASampler, prompts: Sequence[Prompt], folders: Sequence[Path], extend: Extend
) -> None:
    """Let every shard grow in its journal. Idempotent: repeated after an interruption, it ends.

    Args:
        sampler: of the run as it is wanted.
        prompts: all prompts of the run as it is wanted.
        folders: of the shards, none of which is being sampled.
        extend: see `toa_trl.sampling.extension.Extend`.

    Raises:
        ConfigError: what has changed is no growth, or the search does not continue exactly; then
            every journal is as it was. Or a worker still writes a shard.
    """
    shards = folders[0].parent
    path, num_shards = shards / "plan.json", len(folders)
    before = json.loads((shards / "identity.json").read_text())
    number = _num_planned(path, json.loads(path.read_text())["prompts"], prompts)
    grown: dict[str, Any] = {}
    for shard, folder in enumerate(folders):
        _wait_for_worker(folder)
        if not (folder / "journal.sqlite").exists():  # no worker has begun it yet
            part = prompts[:number][shard::num_shards]
            folder.mkdir(exist_ok=True)
            with closing(Journal(folder / "journal.sqlite", create=True)) as journal:
                journal.begin(identity_of_run(before, part), part)
        (folder / "progress.json").unlink(missing_ok=True)  # it may say that the shard is done
        with closing(sampler.begin(prompts[shard::num_shards], folder, extend)) as journal:
            grown = journal.identity
    del grown["prompts"]
    write_json(shards / "identity.json", grown, indent=None)
    _write_plan(path, num_shards, prompts)


def sample_shard(
    sampler: TOASampler, prompts: Sequence[Prompt], folder: Path, extend: Extend = False
) -> None:
    """Spend the budget on the prompts of one shard, resuming from its journal.

    Args:
        sampler: of the run.
        prompts: of the shard.
        folder: of the shard.
        extend: as `grow` was given it, where the run was extended.

    Raises:
        ConfigError: see `TOASampler.sample`; or the run has another configuration.
        ToaError: see `TOASampler.sample`.
        KeyboardInterrupt: see `TOASampler.sample`.
    """
    if not extend:  # else the journal, which `grow` has extended, is compared
        _agree(folder.with_name("identity.json"), sampler.identity)
    folder.mkdir(exist_ok=True)
    _wait_for_worker(folder)
    report = _Report(folder)
    rollouts = run_until_signal(sampler.asample(prompts, folder, report, part=True, extend=extend))
    done = rollouts.limit is None and not rollouts.given_up
    report.write(
        replace(report.progress, given_up=rollouts.given_up, limit=rollouts.limit, done=done)
    )


def read_progress(folder: Path) -> ShardProgress:
    """Return the last reported progress of a shard."""
    stored = read_object(folder / "progress.json")  # empty if it has not started
    return ShardProgress(**{**stored, "given_up": tuple(stored.get("given_up", ()))})


def merge(run_dir: Path, prompts: Sequence[Prompt], folders: Iterable[Path]) -> Rollouts:
    """Merge the journals of all shards into that of the run, which grows with them. Idempotent.

    Raises:
        ConfigError: a journal is missing, or another process writes the run's.
        JournalError: a journal cannot be read or written.
    """
    identity = json.loads((run_dir / "shards" / "identity.json").read_text())
    identity = identity_of_run(identity, prompts)
    journal = Journal(run_dir / "journal.sqlite", create=True)
    try:
        if journal.identity and differences(journal.identity, identity):
            journal.extend(identity, prompts)
        journal.begin(identity, prompts)
        shards = [read_progress(folder) for folder in folders]
        copy_journals((folder / "journal.sqlite" for folder in folders), journal)
    except BaseException:
        journal.close()
        raise
    journal.unlock()
    limit = next((shard.limit for shard in shards if shard.limit), None)
    given_up = chain.from_iterable(shard.given_up for shard in shards)
    return Rollouts(journal, list(given_up), limit)


class _Report(Progress):
    """Writes the progress of a shard to progress.json instead of showing it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(0, [], enabled=False)
        self.progress = ShardProgress()
        self._path, self._next_s = folder / "progress.json", 0.0

    def resume(
        self, counts: Mapping[str, AgentCounts], best: Mapping[str, float] | None = None
    ) -> None:
        self.progress = ShardProgress(
            sum(count.num_scored for count in counts.values()),
            sum(count.num_failed for count in counts.values()),
        )
        self.write(self.progress)

    def played(self, prompt: Prompt, play: Play) -> None:
        now, failed = self.progress, play.reward is None
        self.progress = replace(
            now, num_scored=now.num_scored + (not failed), num_failed=now.num_failed + failed
        )
        if time.monotonic() >= self._next_s:
            self.write(self.progress)
            self._next_s = time.monotonic() + REPORT_S

    def write(self, progress: ShardProgress) -> None:
        write_json(self._path, asdict(progress), indent=None)


def _write_plan(path: Path, num_shards: int, prompts: Sequence[Prompt]) -> None:
    content = {"num_shards": num_shards, "prompts": digest_of_prompts(prompts)}
    write_json(path, content, indent=None)


def _num_planned(path: Path, digest: str, prompts: Sequence[Prompt]) -> int:
    """Return with how many prompts a run was planned, which must come first in those given.

    Raises:
        ConfigError: they do not.
    """
    for number, before in enumerate(digests_of_prompts(prompts), start=1):
        if before == digest:
            return number
    raise ConfigError(
        f"{path}: --extend: the first prompts are not those of the run; restore them, and append "
        "further prompts at the end"
    )


def _wait_for_worker(folder: Path) -> None:
    """Wait until the previous worker of a shard has ended, but not for ever."""
    with suppress(Timeout), FileLock(folder / "journal.sqlite.lock", timeout=TAKEOVER_S):
        pass


def _is_sharded(run_dir: Path) -> bool:
    return any(run_dir.glob("shards/*/journal.sqlite"))


def _agree(path: Path, identity: Mapping[str, Any]) -> None:
    """Check that a shard has the configuration of the first one.

    Raises:
        ConfigError: it has another; the message shows the difference.
    """
    mine = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    mine.write_text(json.dumps(identity))
    with suppress(FileExistsError):
        os.link(mine, path)  # atomic: complete or not at all, and only one is first
    mine.unlink()
    check_same_identity(path.parents[1], json.loads(path.read_text()), identity)
