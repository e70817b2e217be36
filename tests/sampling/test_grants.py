"""The decisions of an adaptive allocation in the journal."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers import EchoAgent, TextReward
from toa_trl import Rollouts, TOASampler
from toa_trl.errors import JournalError
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.journal.grants import read_grants


def sample(folder: Path) -> Rollouts:
    sampler = TOASampler(
        [EchoAgent("x")],
        TextReward(),
        budget=5,
        progress=False,
        allocation={"kind": "adaptive", "min_plays": 1, "wave": 2},
    )
    return sampler.sample(["One?", "Two?", "Three?"], folder)


def test_a_finished_run_is_resumed_as_it_is(tmp_path: Path) -> None:
    first = sample(tmp_path)
    plays, grants = list(first), read_grants(first._journal)
    assert first.unfinished == 0
    first._journal.close()
    again = sample(tmp_path)
    assert (list(again), read_grants(again._journal)) == (plays, grants)


@pytest.mark.parametrize(
    "script",
    [
        "UPDATE grants SET position = 'first'",
        "UPDATE grants SET plays = -1",
        "UPDATE grants SET round = 1 << 40",
        "UPDATE grants SET gain = 'much'",
    ],
)
def test_decisions_of_somebody_else_are_an_error_in_one_line(tmp_path: Path, script: str) -> None:
    sample(tmp_path)._journal.close()
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as db:
        db.executescript(script)
    with (
        closing(Journal(tmp_path / "journal.sqlite", lock=False)) as journal,
        pytest.raises(JournalError, match=r"the decision \d+ has a value that is invalid") as error,
    ):
        read_grants(journal)
    assert "\n" not in str(error.value)
