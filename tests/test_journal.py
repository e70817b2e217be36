"""Every play, written once."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import play
from toa_trl.errors import ConfigError, JournalError
from toa_trl.journal import Journal
from toa_trl.types import Action, Completion, Play, Prompt, Score

IDENTITY = {"search": "toa", "search_params": {"tau": 0.1}, "agents": {"a": {"model": "x"}}, "seed": 0}
PROMPTS = [
    Prompt("p", "What?", {"answer": "2", "n": 3}),
    Prompt("ä\u2028", [{"role": "user", "content": "Wie?\x00🧮"}]),
]  # type: ignore[arg-type]

texts = st.text(st.characters(exclude_categories=["Cs"]))
plays = st.builds(
    Play,
    index=st.integers(0, 10**6),
    action=st.builds(
        Action,
        agent=texts,
        kind=st.sampled_from(["answer", "refine", "aggregate"]),
        refs=st.lists(st.integers(0, 99), max_size=3).map(tuple),
        parent=st.none() | st.integers(0, 99),
        depth=st.integers(0, 9),
    ),
    completion=st.builds(
        Completion,
        text=texts,
        finish_reason=st.sampled_from(["stop", "length"]),
        prompt_tokens=st.integers(0, 10**6),
        completion_tokens=st.integers(0, 10**6),
        flops=st.none() | st.floats(0, 1e20),
    ),
    reward=st.floats(allow_nan=False, allow_infinity=False),
    seed=st.integers(0, 2**31 - 1),
    reward_flops=st.none() | st.floats(0, 1e20),
)


def memory() -> Journal:
    journal = Journal(":memory:", create=True)
    journal.begin(IDENTITY, PROMPTS)
    return journal


@given(plays)
def test_a_play_comes_back_as_it_was(it: Play) -> None:
    journal = memory()
    journal.append("p", it)
    assert journal.plays("p") == [it]
    journal.close()


def test_failed_plays_come_back_with_their_reason() -> None:
    journal = memory()
    failed = Play(1, Action("a"), error="it's gone", seed=7)
    unscored = Play(2, Action("a"), Completion("text"), None, "no reward", 8)
    journal.append("p", failed)
    journal.append("p", unscored)
    assert journal.plays("p") == [failed, unscored]


def test_a_run_is_there_again_after_it_was_closed(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, create=True)
    assert journal.begin(IDENTITY, PROMPTS) is False
    for index in (2, 0, 1):
        journal.append("p", play(index, 0.5))
    journal.append("ä\u2028", play(0, Score(0.25, 3.0)))
    journal.close()

    again = Journal(path)
    assert again.begin(IDENTITY, []) is True
    assert again.identity == IDENTITY
    assert [r.prompt for r in again.rollouts()] == PROMPTS
    assert [[p.index for p in r.plays] for r in again.rollouts()] == [[0, 1, 2], [0]]
    assert again.num_scored() == {"p": 3, "ä\u2028": 1}
    again.close()


def test_what_was_appended_survives_without_a_close(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, create=True)
    journal.begin(IDENTITY, PROMPTS)
    journal.append("p", play(0, 0.5))
    reader = sqlite3.connect(path)  # any SQLite tool, while the run goes on
    assert reader.execute("SELECT prompt_id, play, response, reward FROM plays").fetchall() == [("p", 0, "text 0", 0.5)]
    reader.close()
    assert [len(r.plays) for r in Journal(path, lock=False).rollouts()] == [1, 0]
    journal.close()


def test_counts() -> None:
    journal = memory()
    assert journal.counts().num_scored == 0
    journal.append("p", play(0, 0.5))
    journal.append("p", play(1, 0.5, finish_reason="length", flops=None))
    journal.append("p", play(2, None))
    counts = journal.counts()
    assert (counts.num_prompts, counts.num_scored, counts.num_failed, counts.num_truncated) == (2, 2, 1, 1)
    assert (counts.prompt_tokens, counts.completion_tokens, counts.flops, counts.reward_flops) == (20, 10, 1.0, 4.0)


def test_rollouts_may_be_read_by_several_at_once() -> None:
    journal = memory()
    journal.append("p", play(0, 0.5))
    pairs = [(a.prompt.id, b.prompt.id) for a, b in zip(journal.rollouts(), journal.rollouts(), strict=True)]
    assert pairs == [("p", "p"), ("ä\u2028", "ä\u2028")]


def test_another_configuration_is_refused_and_the_difference_shown(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, create=True)
    journal.begin(IDENTITY, PROMPTS)
    other = {**IDENTITY, "search_params": {"tau": 1.0, "alpha": 2}, "seed": 0}
    with pytest.raises(ConfigError) as raised:
        journal.begin(other, PROMPTS)
    message = str(raised.value)
    assert "search_params.tau: 0.1 -> 1.0" in message
    assert "search_params.alpha: null -> 2" in message
    assert "seed" not in message
    assert journal.identity == IDENTITY
    assert journal.begin({**IDENTITY}, PROMPTS) is True
    journal.close()


def test_tuples_and_lists_are_one_identity(tmp_path: Path) -> None:
    journal = Journal(":memory:", create=True)
    journal.begin({"stop": ("a",)}, [])
    assert journal.begin({"stop": ["a"]}, []) is True


def test_a_play_is_written_once() -> None:
    journal = memory()
    journal.append("p", play(0, 0.5))
    with pytest.raises(JournalError):
        journal.append("p", play(0, 0.7))
    assert [p.reward for p in journal.plays("p")] == [0.5]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, create=True)
    with pytest.raises(ConfigError, match="another process"):
        Journal(path, create=True)
    Journal(path, lock=False).close()  # a reader may
    journal.close()
    Journal(path).close()


def test_a_journal_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no journal"):
        Journal(tmp_path / "journal.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_journal_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"This is not a database, but it is long enough to be looked at as one." * 20)
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path, create=True)
    other = tmp_path / "other.sqlite"
    database = sqlite3.connect(other)
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(JournalError, match="7 instead of 1"):
        Journal(other, create=True)
    with pytest.raises(JournalError, match="7 instead of 1"):  # the lock was released
        Journal(other, create=True)


def test_a_disk_that_is_full_is_an_error_that_says_what_is_safe(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, create=True)
    journal.begin(IDENTITY, PROMPTS)
    journal.append("p", play(0, 0.5))
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match=r"full.*What was written is safe"):
        journal.append("p", play(1, 0.5, "long " * 100_000))
    journal.close()
    assert Journal(path, lock=False).plays("p")[0] == play(0, 0.5)


def test_metadata_that_json_does_not_know() -> None:
    journal = Journal(":memory:", create=True)
    when = datetime(2026, 1, 2, 3, 4, 5)
    journal.begin({}, [replace(PROMPTS[0], metadata={"when": when, "raw": b"x"})])
    (it,) = journal.rollouts()
    assert "2026-01-02" in json.dumps(it.prompt.metadata)
