"""A run in a read-only folder can be looked at, reported on and exported elsewhere."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers import play
from tests.test_rollouts import rollouts
from toa_trl.cli.main import run as main
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.status import is_written

HEADER = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only, also for root: without the capability to ignore permissions."""
    libc, data = ctypes.CDLL(None), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable
    libc.capget(HEADER, data)
    effective = data[0]
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(HEADER, data) == 0
    folder.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            (folder / "x").touch()
        yield
    finally:
        data[0] = effective
        libc.capset(HEADER, data)
        folder.chmod(0o755)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    it = rollouts(3, 1.0, None, 3.0, path=folder / "journal.sqlite")
    it.save(folder, preference={"rejected_rank": 2})
    it._journal.close()
    return folder


def test_a_read_only_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in run.iterdir())
    assert "journal.sqlite-wal" not in before
    with read_only(run):
        main(["status", str(run)])
        main(["report", str(run), "--output", str(tmp_path / "report.html")])
        main(["data", str(run), "--output", str(tmp_path / "data"), "--rejected_rank", "2"])
    assert "plays: 6 scored, 3 failed" in capsys.readouterr().out
    assert (tmp_path / "report.html").is_file()
    assert pq.read_table(tmp_path / "data" / "sft").num_rows == 3
    assert sorted(path.name for path in run.iterdir()) == before


def test_plays_in_the_wal_of_a_killed_run_are_read(run: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    with closing(Journal(run / "journal.sqlite")) as journal:
        (prompt_id, *_) = journal.num_scored()
        journal.append(prompt_id, play(3, 9.0))
        for name in ("journal.sqlite", "journal.sqlite-wal"):  # as a kill leaves them
            shutil.copyfile(run / name, killed / name)
    assert (killed / "journal.sqlite-wal").stat().st_size
    with read_only(killed), closing(Journal(killed / "journal.sqlite", lock=False)) as journal:
        assert journal.best_rewards()[prompt_id] == 9.0
    assert sorted(os.listdir(killed)) == ["journal.sqlite", "journal.sqlite-wal"]


def test_a_read_only_run_that_is_written_is_seen_as_running(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Journal(run / "journal.sqlite")), read_only(run):
        (run / "journal.sqlite.lock").chmod(0o444)
        main(["status", str(run)])
    assert "running" in capsys.readouterr().out.splitlines()[0].replace("not running", "")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("writes", [False, True])
def test_whether_a_run_is_written_is_known_wherever_its_lock_cannot_be_taken(
    number: int, writes: bool, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(run / "journal.sqlite", lock=writes)

    def refuse(path: Path, timeout: float) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("toa_trl.utils.targets.FileLock", refuse)
    with closing(journal):
        if number == errno.EIO:
            with pytest.raises(OSError, match="Input/output error"):
                is_written(run / "journal.sqlite")
        else:
            assert is_written(run / "journal.sqlite") is writes


def test_a_damaged_file_is_still_damaged(run: Path) -> None:
    (run / "journal.sqlite").write_bytes(b"x" * 10_000)
    with pytest.raises(Exception, match="toa-trl recover") as raised:
        Journal(run / "journal.sqlite", lock=False)
    assert isinstance(raised.value.__cause__, sqlite3.DatabaseError)
