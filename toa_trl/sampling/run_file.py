"""run.yaml: the resolved configuration, written when a run starts and completed when it ends."""

import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import yaml

from toa_trl.errors import ConfigError
from toa_trl.sampling.identity import fingerprint
from toa_trl.utils.files import read_yaml, replace_text

FILE = "run.yaml"
PACKAGES = ("toa_trl", "torch", "transformers", "trl", "datasets", "accelerate", "peft")


def start_run_file(
    run_dir: Path,
    configuration: Mapping[str, Any],
    identity: Mapping[str, Any] | None,
    first_play_s: float | None = None,
    extensions: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write run.yaml; `started` stays the time of the first start, `resumed` lists the others.

    Args:
        run_dir: folder of the run; created if it is missing.
        configuration: every key of the run's configuration, as YAML values.
        identity: what decides the run; None where it is not known yet, as before shards start.
        first_play_s: unix time of the first play in the journal, for a run without run.yaml.
        extensions: see `Journal.extensions`.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / FILE
    previous = read_yaml(path) if path.is_file() else {}
    started, resumed = previous.get("started"), list(previous.get("resumed") or ())
    if started is None and first_play_s is not None:
        started = as_text(first_play_s)
    content = {
        **configuration,
        "fingerprint": fingerprint(identity) if identity else None,
        "versions": {"python": platform.python_version(), **versions_of(PACKAGES)},
        "started": started or now(),
    }
    if started is not None:
        content["resumed"] = [*resumed, now()]
    _write(path, {**content, **_growth(identity or {}, extensions)})


@contextmanager
def run_file_of_shards(run_dir: Path, configuration: Mapping[str, Any]) -> Iterator[None]:
    """Write run.yaml before a worker can check the configuration; refused, it is as before."""
    path = run_dir / FILE
    previous = path.read_text(encoding="utf-8") if path.is_file() else None
    start_run_file(run_dir, configuration, identity=None)
    try:
        yield
    except ConfigError:
        if previous is not None:
            replace_text(path, previous)
        raise


def finish_run_file(
    run_dir: Path, identity: Mapping[str, Any], extensions: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Add the fingerprint, what the run grew by and the time of the end to run.yaml."""
    path = run_dir / FILE
    content = read_yaml(path) if path.is_file() else {}
    content |= _growth(identity, extensions)
    _write(path, {**content, "fingerprint": fingerprint(identity), "finished": now()})


def _growth(identity: Mapping[str, Any], extensions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the keys of run.yaml that an extension adds or changes."""
    if not extensions:
        return {}
    listed = [{"time": as_text(one["time_s"]), "changes": one["changes"]} for one in extensions]
    params = identity.get("search_params", {})
    kept = {"search_params": params} if "width" in params else {}  # --extend may have kept it
    return {**kept, "extended": listed}


def is_finished(run_dir: Path) -> bool:
    """Return whether run.yaml exists and records the end of the run."""
    path = run_dir / FILE
    return path.is_file() and "finished" in read_yaml(path)


def now() -> str:
    """Return the time in UTC, to the second."""
    return as_text(time.time())


def as_text(unix_s: float) -> str:
    """Return a unix time in UTC, to the second."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    versions = {package: _version(package) for package in packages}
    return {package: found for package, found in versions.items() if found is not None}


@cache
def _version(package: str) -> str | None:
    """Return the version of a package; a comparison asks for it once for each of its runs."""
    try:
        metadata = distribution(package)
    except PackageNotFoundError:
        return None
    # `version` would parse the whole file, and with it the package's README
    lines = (metadata.read_text("METADATA") or metadata.read_text("PKG-INFO") or "").splitlines()
    return next((line[9:] for line in lines if line.startswith("Version: ")), None)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    replace_text(path, text)


def configuration_of(
    identity: Mapping[str, Any], agents: Sequence[Any], task: Any, **given: Any
) -> dict[str, Any]:
    """Return what run.yaml records of a run that was started in Python.

    Args:
        identity: of the sampler.
        agents: entries, or objects, of which only the names are recorded.
        task: as it was given.
        given: further keys with their values.
    """
    sampling = {**identity["sampling"], "stop": list(identity["sampling"]["stop"])}
    entries = [
        dict(agent) if isinstance(agent, Mapping) else {"name": agent.name} for agent in agents
    ]
    last = {key: given.pop(key) for key in ("limits", "sft", "preference")}
    return {
        **{key: identity[key] for key in ("search", "search_params", "budget", "seed")},
        **given,
        "plays_in_flight": identity["plays_in_flight"],
        "sampling": sampling,
        "task": task if isinstance(task, str) else identity["task"],
        "limits": last.pop("limits"),
        "agents": entries,
        "reward": identity["reward"],
        **last,
    }
