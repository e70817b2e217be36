"""Checks of what a command is about to write: nothing is replaced that this package did not write.

Every kind of file carries a marker, and the module that writes it recognizes it: a key "toa_trl" in
JSON, metadata in parquet and pictures, comments in cards, a <meta> in reports. A name that starts
with a dot and ends with ".toa_trl-new" or ".toa_trl-old" is a file that is being written.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from toa_trl.errors import ConfigError
from toa_trl.utils.files import fresh_path, read_object, replace_path

PARTS = ("sft", "dpo", "kto", "groups", "rollouts", "shards")  # folders of a run
EXPORT = ".export.toa_trl-new"
LOCK_WAIT_S = 30.0
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)  # of a folder, or of its file system
MAX_NAME = 255  # bytes of a file's name, on every common file system


def check_folder(path: str | Path, place: str) -> None:
    """Refuse a folder that cannot be created or written; nothing is created.

    Raises:
        ConfigError: it is a file or in one, its name is too long, or it is not writable.
    """
    shown = str(path) if len(str(path)) < 100 else f"{str(path)[:100]}..."
    nearest = Path(os.path.abspath(path))
    try:
        _check_length(nearest)
        while not os.path.lexists(nearest):
            nearest = nearest.parent
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{nearest} is not writable")
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{place}: {shown}: {reason}; choose another folder") from error


def check_file(path: str | Path, place: str, is_ours: Callable[[Path], bool]) -> None:
    """Refuse a file to be written that cannot be, or that something else has written.

    Raises:
        ConfigError: see `check_folder` and `check_ours`; or it is a folder.
    """
    check_folder(Path(path).parent, place)
    try:
        _check_length(fresh_path(Path(os.path.abspath(path))))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: the name of {str(path)[:100]}... is too long") from error
    if Path(path).is_dir():
        raise ConfigError(f"{place}: {path} is a folder; name a file")
    check_ours({Path(path): is_ours})


def check_ours(targets: Mapping[Path, Callable[[Path], bool]]) -> None:
    """Refuse to replace what something else has written.

    Args:
        targets: for every path that is about to be written, what recognizes it as this package's.

    Raises:
        ConfigError: names the first path that is not.
    """
    for path, is_ours in targets.items():
        if os.path.lexists(path) and (path.is_symlink() or not is_ours(path)):
            raise ConfigError(
                f"{path}: was not written by toa_trl, so it is not replaced; move it away, or "
                "choose another place"
            )


def check_not_in_run(path: str | Path, place: str, *, parts_only: bool = False) -> None:
    """Refuse a run's folder, and those of its data, for something else.

    Args:
        path: the folder.
        place: key or option, for the message.
        parts_only: allow the folder of a run itself.

    Raises:
        ConfigError: it is one.
    """
    real = Path(os.path.realpath(path))
    for folder in (real, *real.parents):
        inside = real.relative_to(folder).parts
        forbidden = inside[0] in PARTS if inside else not parts_only
        if forbidden and is_run(folder):
            what = "the folder of a run" if not inside else f"in {folder}/{inside[0]} of a run"
            raise ConfigError(f"{place}: {path} is {what}; choose another folder")


def check_run_folder(folder: Path) -> None:
    """Check that a run may begin or resume in a folder; nothing is changed.

    Raises:
        ConfigError: it cannot be written, is a part of a run, or has a run.yaml of somebody else.
    """
    check_folder(folder, "output_dir")
    check_not_in_run(folder, "output_dir", parts_only=True)
    if not (folder / "journal.sqlite").exists():
        check_ours({folder / "run.yaml": is_run_file})


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run, or data sets that were derived from one."""
    if (folder / "journal.sqlite").exists() or (folder / "shards" / "plan.json").exists():
        return True
    return is_run_file(folder / "run.yaml") or is_data_lineage(folder / "lineage.json")


def check_has_journal(folder: Path, place: str = "") -> None:
    """Check that a folder is that of a run whose plays can be read.

    Raises:
        ConfigError: it is not.
    """
    if not (folder / "journal.sqlite").is_file():
        before = f"{place}: " if place else ""
        raise ConfigError(f"{before}{folder} has no journal.sqlite; name the folder of a run")


def is_run_file(path: Path) -> bool:
    """Return whether a file is the run.yaml that a run wrote, and not a configuration."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and {"fingerprint", "versions"} <= content.keys()


def is_data_lineage(path: Path) -> bool:
    """Return whether a file is the lineage.json of a run's data."""
    known = is_json(path, old={"fingerprint", "search", "prompts"})
    return known and "data" not in read_object(path)


def head_of(path: Path) -> bytes:
    """Return the beginning of a file, where markers stand; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(10_000)
    except OSError:
        return b""


def is_json(path: Path, old: Collection[str]) -> bool:
    """Return whether a JSON file has the marker, or the old keys of one from before the marker."""
    content = read_object(path)
    return "toa_trl" in content or set(old) <= content.keys()


def is_json_lines(path: Path, keys: Collection[str] = ()) -> bool:
    """Return whether the first line of a JSONL file has the marker, and these keys."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and {"toa_trl", *keys} <= first.keys()


def marked(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON file with the marker."""
    return {"toa_trl": version("toa_trl"), **content}


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time write the data sets, card and report of a folder.

    Raises:
        ConfigError: another process still writes after LOCK_WAIT_S.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".toa_trl.lock", timeout=LOCK_WAIT_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"{folder}: another process is writing its data sets or report; wait for it, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(lock: Path) -> bool:
    """Return whether a process holds the lock of a file, such as a journal's."""
    if not lock.exists():  # looking must not create it
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        # ask for a lock that needs no writing
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


@contextmanager
def replacing(folder: Path, targets: Mapping[str, Callable[[Path], bool]]) -> Iterator[Path]:
    """Replace several files and folders of a folder together, once all of them are written.

    Args:
        folder: created if it is missing.
        targets: for every name in it, what recognizes it as this package's.

    Yields:
        A folder to write them into. A target that is missing there is deleted.

    Raises:
        ConfigError: see `check_ours` and `exclusive`.
    """
    fresh, owned = folder / EXPORT, {folder / name: targets[name] for name in targets}
    with exclusive(folder):
        check_ours(owned)
        shutil.rmtree(fresh, ignore_errors=True)  # left by a process that was killed
        fresh.mkdir()
        try:
            yield fresh
            check_ours(owned)  # it may have taken hours
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        for path in owned:
            if (fresh / path.name).exists():
                replace_path(fresh / path.name, path)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        shutil.rmtree(fresh)


def check_complete(folder: Path) -> None:
    """Refuse data sets of which some may be older than others.

    Raises:
        ConfigError: an export was interrupted, or runs.
    """
    if (folder / EXPORT).exists():
        raise ConfigError(
            f"{folder}: its data sets are being written, or that was interrupted; "
            f"`toa-trl data {folder}` writes them again"
        )


def _check_length(path: Path) -> None:
    if any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
        raise OSError(errno.ENAMETOOLONG, "the name is too long")
    with suppress(FileNotFoundError, NotADirectoryError):
        os.stat(path / ("x" * 64))  # a path as long as those of the files in it
