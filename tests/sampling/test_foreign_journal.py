"""A journal that somebody else made or changed gives one line, and never an endless loop."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers import IDENTITY, play
from toa_trl.errors import JournalError, SearchError, ToaError
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.journal import Journal, recover
from toa_trl.sampling.journal.reading import check_tree
from toa_trl.sampling.status import status
from toa_trl.search import make_search
from toa_trl.types import Action, Play, Prompt

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM c)"
VIEWS = [
    "ALTER TABLE plays RENAME TO other; CREATE VIEW plays AS "
    f"{ENDLESS} SELECT 'p' AS prompt_id, x AS play, 'a' AS agent, 0.5 AS reward FROM c",
    "ALTER TABLE prompts RENAME TO other; CREATE VIEW prompts AS "
    f"{ENDLESS} SELECT x AS position, 'p' || x AS id, '\"hi\"' AS messages, '{{}}' AS metadata "
    "FROM c",
    "CREATE VIEW further AS SELECT 1",
    "CREATE TRIGGER t AFTER INSERT ON plays BEGIN DELETE FROM plays; END",
    "DROP TABLE prompts; CREATE VIRTUAL TABLE prompts USING fts5(position, id, messages, metadata)",
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of one prompt with three plays, each the child of the one before."""
    with closing(Journal(tmp_path / "journal.sqlite", create=True)) as journal:
        journal.begin(IDENTITY, [Prompt("p", "What?")])  # type: ignore[arg-type]
        for index in range(3):
            journal.append("p", play(index, index / 2, parent=index - 1 if index else None))
    return tmp_path


def change(run_dir: Path, script: str) -> None:
    with closing(sqlite3.connect(run_dir / "journal.sqlite")) as db:
        db.executescript(script)


def read(run_dir: Path) -> None:
    """Read everything, as data and report do."""
    rollouts = Rollouts.load(run_dir)
    try:
        assert rollouts.identity
        list(rollouts)
        rollouts._journal.times()
    finally:
        rollouts._journal.close()


@pytest.mark.parametrize(
    "script",
    [
        "UPDATE plays SET parent = 1, refs = '[1]' WHERE play = 1",
        "UPDATE plays SET parent = 2, refs = '[2]' WHERE play = 1",
        "UPDATE plays SET reward = 'high' WHERE play = 1",
        "UPDATE plays SET reward = 9e999 WHERE play = 1",
        "UPDATE plays SET reward = x'00ff' WHERE play = 1",
        "UPDATE plays SET response = x'00ff' WHERE play = 1",
        "UPDATE plays SET prompt_tokens = 'many'",
        "UPDATE plays SET play = -3 WHERE play = 2",
        "UPDATE plays SET depth = 'deep'",
        "UPDATE plays SET kind = 'dance' WHERE play = 1",
        "UPDATE plays SET agent = x'41' WHERE play = 1",
        "UPDATE plays SET refs = '{\"a\": 1}' WHERE play = 1",
        "UPDATE plays SET refs = '\"abc\"' WHERE play = 1",
        "UPDATE plays SET refs = '7' WHERE play = 1",
        f"UPDATE plays SET refs = '{'[' * 100_000}' WHERE play = 1",
        f"UPDATE plays SET refs = '[{'9' * 6000}]' WHERE play = 1",
        "UPDATE plays SET written_s = 'soon'",
        "UPDATE plays SET written_s = 1e300",
        "UPDATE prompts SET messages = '7'",
        "UPDATE prompts SET messages = '[1]'",
        "UPDATE prompts SET messages = '[]'",
        "UPDATE prompts SET metadata = '[1]'",
        "UPDATE prompts SET metadata = 'null'",
        "UPDATE prompts SET id = x'41'",
        "UPDATE run SET value = '[1]'",
        "UPDATE run SET value = '7'",
        'UPDATE run SET value = \'{"budget": "x"}\'',
        "UPDATE run SET value = '{\"agents\": [1]}'",
        f"UPDATE run SET value = '{'[' * 100_000}'",
        *VIEWS,
    ],
)
def test_what_no_run_writes_is_one_line(run_dir: Path, script: str) -> None:
    change(run_dir, script)
    with pytest.raises(ToaError) as error:
        read(run_dir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("script", VIEWS)
def test_rows_that_are_computed_are_neither_recovered_nor_resumed(
    run_dir: Path, script: str
) -> None:
    change(run_dir, script)
    with pytest.raises(JournalError, match="not a journal"):
        recover(run_dir)
    with pytest.raises(JournalError, match="tables are not those of a journal"):
        Journal(run_dir / "journal.sqlite", create=True)


@pytest.mark.parametrize("tokens", [2**63 - 1, -5])
def test_absurd_counts_do_not_stop_a_run(run_dir: Path, tokens: int) -> None:
    change(run_dir, f"UPDATE plays SET prompt_tokens = {tokens}")
    read(run_dir)
    status(run_dir)
    with closing(Journal(run_dir / "journal.sqlite", lock=False)) as journal:
        assert journal.counts().num_scored == 3
        assert journal.agent_counts()["a"].num_scored == 3


def test_an_index_far_beyond_the_others_is_refused_at_once() -> None:
    far = Play(2**62, Action("a"), error="lost")
    with pytest.raises(SearchError, match="too many gaps"):
        make_search("toa", ["a"], 5).restore([far])


def test_a_long_chain_backwards_is_checked_in_linear_time() -> None:
    plays = [play(index, 0.5, parent=index + 1) for index in range(50_000)]
    check_tree([*plays, play(50_000, 0.5)])
    with pytest.raises(ValueError, match="sees itself"):
        check_tree([*plays, play(50_000, 0.5, parent=0)])
