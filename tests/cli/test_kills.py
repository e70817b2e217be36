"""Killed at any file operation: nothing is lost, nothing of others is touched, repeating ends well.

An audit hook of Python ends a command at its n-th file operation, and forbids all that follow, so
that no `finally` tidies up what a killed process would have left.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from markupsafe import Markup

from tests.helpers import IDENTITY, play
from tests.test_rollouts import rollouts
from toa_trl.cli.main import run as main
from toa_trl.errors import ConfigError
from toa_trl.sampling.journal import Journal
from toa_trl.types import Prompt
from toa_trl.utils import targets
from toa_trl.utils.targets import check_complete

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Killed(BaseException):
    """Stands for SIGKILL."""


class _Killer:
    folder: str | None = None  # below which operations count
    left = 0  # operations before the end

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or not (event in CHANGES or event == "open"):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITING):
            return
        path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""
        # a lock is released by a kill, and holds nothing
        if not path.startswith(self.folder) or path.endswith(".lock"):
            return
        if self.left <= 0:
            raise Killed(event)
        self.left -= 1


@pytest.fixture(scope="module")
def killer() -> _Killer:
    hook = _Killer()
    sys.addaudithook(hook)  # for ever: it does nothing without a folder
    return hook


@contextmanager
def killed_after(killer: _Killer, folder: Path, number: int) -> Iterator[None]:
    killer.folder, killer.left = str(folder), number
    try:
        yield
    finally:
        killer.folder = None


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toa_trl.report.figures.inline_svg", lambda *_: Markup("<svg></svg>"))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A run that was exported once, with files of a user beside."""
    folder = tmp_path / "start"
    folder.mkdir()
    it = rollouts(3, 1.0, None, 3.0, path=folder / "journal.sqlite")
    it.save(folder, preference={"rejected_rank": 2})
    it._journal.close()
    main(["report", str(folder)])
    for name in ("mine/sft/model.safetensors", "sft.new/x", "README.md.new", ".mine"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    with (folder / "README.md").open("a") as card:
        card.write("\nby hand\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith((".lock", "-wal", "-shm")):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "data": lambda run: ["data", str(run), "--rejected_rank", "2", "--top_k", "2"],
    "report": lambda run: ["report", str(run)],
    "audit": lambda run: ["audit", str(run)],
}


@pytest.mark.parametrize(
    "command", [pytest.param("data", marks=pytest.mark.heavy), "report", "audit"]
)
def test_killed_at_every_file_operation(
    command: str,
    start: Path,
    tmp_path: Path,
    killer: _Killer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    arguments = COMMANDS[command](run)
    if command == "audit":  # the report has its own turn
        monkeypatch.setattr("toa_trl.cli.run_commands.write_report", lambda run: run)
    shutil.copytree(start, run)
    main(arguments)
    expected, before = contents(run), contents(start)
    assert expected["README.md"].endswith(b"\nby hand\n")
    mine = {name for name in before if before[name] == b"mine"}
    assert len(mine) == 4
    num_kills = 0
    for number in count():
        shutil.rmtree(run)
        shutil.copytree(start, run)
        try:
            with killed_after(killer, run, number):
                main(arguments)
        except Killed:
            num_kills += 1
        else:
            break
        left = contents(run)
        assert {name: left[name] for name in mine} == dict.fromkeys(mine, b"mine")
        with closing(Journal(run / "journal.sqlite", lock=False)) as journal:
            assert journal.counts().num_scored == 6
        for name in ("README.md", "audit.json", "lineage.json", "report.html"):
            assert left[name] in (before[name], expected[name])  # never a part
        for part, rows in (("sft", (3, 6)), ("dpo", (3,)), ("rollouts", (9,))):
            if (run / part).exists():  # missing for a moment, but never a part of it
                assert pq.read_table(run / part).num_rows in rows
        visible = {name: left[name] for name in left if ".toa_trl-" not in name}
        if command == "data" and visible not in (before, expected):
            with pytest.raises(ConfigError, match="interrupted"):
                check_complete(run)  # old and new data sets side by side are not pushed
        main(arguments)
        assert contents(run) == expected
    assert num_kills >= {"data": 20, "report": 2, "audit": 4}[command]


def test_a_merge_killed_at_every_file_operation(tmp_path: Path, killer: _Killer) -> None:
    runs, output = [tmp_path / "one", tmp_path / "two"], tmp_path / "output"
    for run in runs:
        run.mkdir()
        with closing(Journal(run / "journal.sqlite", create=True)) as journal:
            journal.begin(IDENTITY, [Prompt(run.name, f"{run.name}?")])  # type: ignore[arg-type]
            journal.append(run.name, play(0, 1.0))
    before = [contents(run) for run in runs]
    arguments = ["merge", *map(str, runs), "--output", str(output)]
    for number in count():
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        (output / "mine").write_text("mine")
        try:
            with killed_after(killer, output, number):
                main(arguments)
        except Killed:
            pass
        else:
            break
        if not (output / "journal.sqlite").exists():
            main(arguments)
        assert [contents(run) for run in runs] == before
        assert (output / "mine").read_text() == "mine"
        with closing(Journal(output / "journal.sqlite", lock=False)) as journal:
            assert (journal.num_prompts(), journal.counts().num_scored) == (2, 2)
    assert number >= 4


def test_a_push_writes_nothing_into_the_run(
    start: Path, killer: _Killer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identify(repo_id: str, token: str | None) -> Any:
        raise ConfigError("no Hub here")

    monkeypatch.setattr("toa_trl.hub.push.identify", identify)
    before = contents(start)
    with killed_after(killer, start, 0), pytest.raises(ConfigError, match="no Hub here"):
        main(["push", str(start), "me/data"])
    assert contents(start) == before
    (start / targets.EXPORT).mkdir()
    with pytest.raises(ConfigError, match=r"interrupted; `toa-trl data .*` writes them again"):
        main(["push", str(start), "me/data"])


def test_two_exporters_exclude_each_other(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "LOCK_WAIT_S", 0.1)
    before = contents(start)
    # locks of one process exclude each other as those of two do
    with FileLock(start / ".toa_trl.lock"):
        for command in COMMANDS.values():
            with pytest.raises(ConfigError, match="another process is writing"):
                main(command(start))
    assert contents(start) == before
    monkeypatch.setattr(targets, "LOCK_WAIT_S", 60.0)
    lock = FileLock(start / ".toa_trl.lock", thread_local=False)
    lock.acquire()
    threading.Timer(0.2, lock.release).start()  # the second waits for the first
    main(COMMANDS["data"](start))
    assert pq.read_table(start / "sft").num_rows == 6
