"""A commit that fails, and the plays that wait for it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers import play, wait
from toa_trl.errors import JournalError
from toa_trl.sampling.journal import Journal, Writer
from toa_trl.types import Play, Prompt

Rows = Sequence[tuple[str, Play]]


@pytest.mark.parametrize(
    ("cause", "num_commits"),
    [(sqlite3.OperationalError("database or disk is full"), 1), (sqlite3.IntegrityError("x"), 4)],
)
def test_a_full_disk_fails_every_waiting_play_without_another_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: sqlite3.Error, num_commits: int
) -> None:
    """Any other error may concern one row alone, so that the rows are then written one by one."""
    commits: list[int] = []

    def append_all(rows: Rows) -> None:
        commits.append(len(rows))
        raise JournalError("not written") from cause

    async def write() -> list[BaseException | None]:
        journal = Journal(tmp_path / "journal.sqlite", create=True)
        journal.begin({}, [Prompt("p", "?")])  # type: ignore[arg-type]
        monkeypatch.setattr(journal, "append_all", append_all)
        writer = Writer(journal)
        appends = (writer.append("p", play(index, 0.5)) for index in range(3))
        results = await asyncio.gather(*appends, return_exceptions=True)
        await writer.aclose()
        journal.close()
        return results

    results = wait(write())
    assert [type(result) for result in results] == [JournalError] * 3
    assert commits == [3, 1, 1, 1][:num_commits]


def test_a_play_that_is_written_is_reported(tmp_path: Path) -> None:
    async def write() -> int:
        journal = Journal(tmp_path / "journal.sqlite", create=True)
        journal.begin({}, [Prompt("p", "?")])  # type: ignore[arg-type]
        writer = Writer(journal)
        appends = [writer.append("p", play(index, 0.5)) for index in range(3)]
        await asyncio.wait_for(asyncio.gather(*appends), 10)
        await writer.aclose()
        num_scored = journal.num_scored()["p"]
        journal.close()
        return num_scored

    assert wait(write()) == 3
