"""Every play, written once."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import play, wait
from toa_trl.errors import ConfigError, JournalError
from toa_trl.sampling.journal import Journal, Writer, copy_journals, open_journal
from toa_trl.sampling.journal.table import Row
from toa_trl.types import Action, AgentCounts, Completion, Play, Prompt, Spending

IDENTITY = {
    "search": "toa",
    "search_params": {"tau": 0.1},
    "agents": {"a": {"model": "x"}},
    "seed": 0,
}
PROMPTS = [
    Prompt("p", "What?", {"answer": "2", "n": 3}),  # type: ignore[arg-type]
    Prompt("ä\u2028", [{"role": "user", "content": "Wie?\x00🧮"}]),  # type: ignore[arg-type]
]

texts = st.text(st.characters(exclude_categories=["Cs"]))
completions = st.builds(
    Completion,
    text=texts,
    finish_reason=st.sampled_from(["stop", "length"]),
    prompt_tokens=st.integers(0, 10**6),
    completion_tokens=st.integers(0, 10**6),
    flops=st.none() | st.floats(0, 1e20),
    reasoning=st.none() | texts,
    tokens_estimated=st.booleans(),
)
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
    completion=st.none() | completions,
    reward=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    error=st.none() | texts,
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
    unscored = Play(
        2, Action("a"), Completion("", "length", 3, 9, 1e9, "hmm"), None, "all of it was thought", 8
    )
    journal.append("p", failed)
    journal.append("p", unscored)
    assert journal.plays("p") == [failed, unscored]


def test_a_run_is_there_again_after_it_was_closed(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, create=True)
    assert journal.begin(IDENTITY, PROMPTS) is False
    for index in (2, 0, 1):
        journal.append("p", play(index, 0.5))
    journal.append("ä\u2028", play(0, 0.25))
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
    sql = "SELECT prompt_id, play, response, reward FROM plays"
    with closing(sqlite3.connect(path)) as reader:  # any SQLite tool, while the run goes on
        assert reader.execute(sql).fetchall() == [("p", 0, "text 0", 0.5)]
    with closing(Journal(path, lock=False)) as other:
        assert [len(r.plays) for r in other.rollouts()] == [1, 0]
    journal.close()


@pytest.mark.parametrize("lock", [True, False])
def test_a_journal_that_is_not_used_any_more_is_closed(tmp_path: Path, lock: bool) -> None:
    Journal(tmp_path / "journal.sqlite", create=True).close()
    gc.disable()  # only references count
    try:
        assert Journal(tmp_path / "journal.sqlite", lock=lock).num_prompts() == 0
        assert not {path.suffix for path in tmp_path.iterdir()} & {".sqlite-wal", ".sqlite-shm"}
    finally:
        gc.enable()


def test_counts() -> None:
    journal = memory()
    assert journal.counts().num_scored == 0
    journal.append("p", play(0, 0.5))
    journal.append("p", play(1, 0.5, finish_reason="length", flops=None))
    journal.append("p", play(2, None))
    counts = journal.counts()
    assert (counts.num_prompts, counts.num_scored, counts.num_failed, counts.num_truncated) == (
        2,
        2,
        1,
        1,
    )
    assert (counts.prompt_tokens, counts.completion_tokens, counts.flops, counts.reward_flops) == (
        20,
        10,
        1.0,
        4.0,
    )


def test_counts_by_agent() -> None:
    journal = memory()
    assert journal.agent_counts() == {}
    journal.append("p", play(0, 0.5, agent="a"))
    journal.append("p", play(1, 0.5, agent="b", flops=None))
    journal.append("ä\u2028", play(0, None, agent="a"))
    journal.append(
        "ä\u2028",
        Play(1, Action("a"), Completion("", "length", 7, 3, 2.0, None, True), None, "cut"),
    )
    assert journal.agent_counts() == {
        "a": AgentCounts(1, 2, 17, 8, 3.0, 1),
        "b": AgentCounts(1, 0, 10, 5, 0.0),
    }


def test_the_best_rewards_mean_is_over_prompts_that_have_one() -> None:
    journal = memory()
    assert journal.best_rewards() == {}
    journal.append("p", play(0, None))
    assert journal.best_rewards() == {}
    journal.append_all(
        [("p", play(1, -3.0)), ("p", play(2, -1.0)), ("q", play(0, 2.0)), ("r", play(0, None))]
    )
    assert fmean(journal.best_rewards().values()) == 0.5


def test_when_plays_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = memory()
    assert journal.times() is None
    for index in range(4):
        monkeypatch.setattr(time, "time", lambda index=index: 100.0 + index)
        journal.append("p", play(index, 0.5))
    assert journal.times() == (100.0, 103.0)
    assert [journal.num_written_since(since) for since in (0, 102, 102.5, 104)] == [4, 2, 1, 0]


def test_rollouts_may_be_read_by_several_at_once() -> None:
    journal = memory()
    journal.append("p", play(0, 0.5))
    pairs = [
        (a.prompt.id, b.prompt.id)
        for a, b in zip(journal.rollouts(), journal.rollouts(), strict=True)
    ]
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


def test_many_plays_are_written_all_or_none() -> None:
    journal = memory()
    journal.append_all([("p", play(0, 0.5)), ("q", play(0, 0.5))])
    for bad in (
        play(0, 0.7),
        play(2, 0.7, "half an emoji: \ud83e"),
        replace(play(2, 0.7), seed=2**70),
    ):
        with pytest.raises(JournalError):
            journal.append_all([("p", play(1, 0.5)), ("p", bad)])
    assert [len(journal.plays(prompt_id)) for prompt_id in "pq"] == [1, 1]
    journal.append_all([])
    journal.append_all([("p", play(1, 0.5))])  # no transaction was left open
    assert journal.counts().num_scored == 3


def test_every_column_is_a_field_of_a_row() -> None:
    journal = memory()
    columns = [name for _, name, *_ in journal._db.execute("PRAGMA table_info(plays)")]
    assert sorted(columns) == sorted(Row._fields)


def test_a_commit_is_synced(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    for _ in range(2):  # made, and opened again
        journal = Journal(path, create=True)
        modes = [
            journal._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "journal_mode")
        ]
        assert modes == [2, "wal"]  # 2: FULL
        journal.close()


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


def test_a_journal_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path, create=True).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 1")
    with pytest.raises(
        JournalError, match=r"1 instead of 3.*version of toa_trl that wrote it.*another output_dir"
    ):
        Journal(path)


def test_a_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path, create=True)


def test_a_file_that_is_no_journal_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"This is not a database, but it is long enough to be looked at as one." * 20)
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path, create=True)
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(JournalError, match="7 instead of 3"):
        Journal(other, create=True)
    with pytest.raises(JournalError, match="7 instead of 3"):  # the lock was released
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


def filled(
    path: Path, *, prompts: int = 2, each: int = 10, text: str = "text ", begun: int = 0
) -> Journal:
    journal = Journal(path, create=True)
    journal.begin(IDENTITY, [Prompt(str(i), f"Question {i}?") for i in range(prompts)])  # type: ignore[arg-type]
    for index in range(begun, begun + each):
        journal.append_all(
            [(str(i), play(index, i + index / 100, f"{text}{i} {index}")) for i in range(prompts)]
        )
    return journal


def everything(journal: Journal) -> dict[str, list[Play]]:
    return {rollout.prompt.id: list(rollout.plays) for rollout in journal.rollouts()}


def test_a_journal_that_is_read_halfway_sees_what_is_written_meanwhile(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal.sqlite", prompts=3)
    rollouts = journal.rollouts()
    next(rollouts)
    journal.append("2", play(10, 0.5))
    assert len(journal.plays("2")) == 11
    assert [len(rollout.plays) for rollout in rollouts] == [10, 11]
    assert (
        journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    )  # nothing holds the WAL
    journal.close()


# --- Writer


def test_plays_that_arrive_together_are_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    append_all, batches = journal.append_all, []

    def counting(rows: Any) -> None:
        batches.append(len(rows))
        assert threading.current_thread() is not threading.main_thread()
        append_all(rows)

    monkeypatch.setattr(journal, "append_all", counting)

    async def run() -> None:
        writer = Writer(journal)

        async def work(prompt: int) -> None:
            for index in range(5):
                await writer.append(str(prompt), play(index, 0.5))
                assert journal.plays(str(prompt))[-1].index == index  # returned means written

        await asyncio.gather(*map(work, range(50)))
        await writer.aclose()

    wait(run())
    assert sum(batches) == 250
    assert batches == [50] * 5
    journal.close()


@given(seed=st.integers(0, 10**6), in_memory=st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_play_is_written_once_however_they_come(
    seed: int, in_memory: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = ":memory:" if in_memory else tmp_path_factory.mktemp("run") / "journal.sqlite"
    journal, rng = Journal(path, create=True), random.Random(seed)
    journal.begin(IDENTITY, [Prompt(str(i), "?") for i in range(8)])  # type: ignore[arg-type]
    expected: dict[str, list[Play]] = {str(i): [] for i in range(8)}
    refused = []

    async def run() -> None:
        writer = Writer(journal)

        async def append(prompt_id: str, it: Play) -> None:
            try:
                await writer.append(prompt_id, it)
            except JournalError:
                refused.append(it)

        async def work(prompt_id: str) -> None:
            for index in range(rng.randint(0, 12)):
                it = play(index, rng.random(), rng.choice(["short", "long " * 3000]))
                expected[prompt_id].append(it)
                task = asyncio.create_task(append(prompt_id, it))
                for _ in range(rng.randint(1, 3)):
                    await asyncio.sleep(0)
                if rng.random() < 0.2:
                    task.cancel()  # written all the same
                elif rng.random() < 0.7:
                    await asyncio.wait([task])
                if rng.random() < 0.1 and task.done():
                    await append(prompt_id, replace(it, seed=99))  # a second one of this number

        await asyncio.gather(*map(work, expected))
        await writer.aclose()

    wait(run())
    assert everything(journal) == expected
    assert all(it.seed == 99 for it in refused)
    journal.close()


def test_one_bad_row_costs_no_other(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal.sqlite", prompts=1, each=1)
    rows = [play(1, 0.5), play(0, 0.7), play(2, 0.5, "half: \ud83e"), play(3, 0.5)]

    async def run() -> list[Any]:
        writer = Writer(journal)
        told = await asyncio.gather(
            *(writer.append("0", it) for it in rows), return_exceptions=True
        )
        await writer.aclose()
        return told

    assert [type(error) for error in wait(run())] == [
        type(None),
        JournalError,
        JournalError,
        type(None),
    ]
    assert [p.index for p in journal.plays("0")] == [0, 1, 3]
    journal.close()


def test_a_full_disk_is_told_to_all_and_what_was_written_stays(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal.sqlite", prompts=1, each=3)
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]

    async def run() -> list[Any]:
        writer = Writer(journal)
        journal._db.execute(f"PRAGMA max_page_count = {pages}")
        rows = [play(index, 0.5, "long " * 10_000) for index in range(3, 9)]
        told = await asyncio.gather(
            *(writer.append("0", it) for it in rows), return_exceptions=True
        )
        journal._db.execute("PRAGMA max_page_count = 1000000")  # there is space again
        await writer.append("0", rows[0])
        await writer.aclose()
        return told

    told = wait(run())
    assert len(told) == 6
    assert all(
        isinstance(error, JournalError) and "What was written is safe" in str(error)
        for error in told
    )
    assert [p.index for p in journal.plays("0")] == [0, 1, 2, 3]
    journal.close()


def test_a_commit_that_takes_long_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = filled(tmp_path / "journal.sqlite", prompts=1, each=1)
    append_all, go_on = journal.append_all, threading.Event()

    def slow(rows: Any) -> None:
        assert go_on.wait(60)
        append_all(rows)

    monkeypatch.setattr(journal, "append_all", slow)

    async def run() -> None:
        writer = Writer(journal)
        cancelled = asyncio.create_task(writer.append("0", play(1, 0.5)))
        waiting = asyncio.create_task(writer.append("0", play(2, 0.5)))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(journal.plays("0")) == 1  # the loop runs, and reads
        late = asyncio.create_task(writer.append("0", play(3, 0.5)))
        await asyncio.sleep(0)
        cancelled.cancel()
        late.cancel()
        closing = asyncio.create_task(writer.aclose())
        await asyncio.sleep(0)
        assert not waiting.done()
        go_on.set()
        await closing
        await waiting
        await writer.aclose()

    wait(run())
    assert [p.index for p in journal.plays("0")] == [0, 1, 2, 3]
    journal.close()


# --- merge


@given(
    shards=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), unique=True, max_size=20),
        min_size=1,
        max_size=4,
    ),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=25, deadline=None)
def test_merging_is_idempotent_and_in_any_order(
    shards: list[list[tuple[int, int]]],
    order: random.Random,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, prompts = tmp_path_factory.mktemp("run"), [Prompt(str(i), "?") for i in range(6)]  # type: ignore[arg-type]
    for number, keys in enumerate(shards):
        shard = Journal(folder / f"{number}", create=True)
        shard.begin(IDENTITY, prompts)
        shard.append_all(
            [(str(prompt), play(index, prompt + index / 10)) for prompt, index in keys]
        )
        shard.close()
    expected = {
        str(prompt): [
            play(i, prompt + i / 10)
            for i in sorted({i for keys in shards for p, i in keys if p == prompt})
        ]
        for prompt in range(6)
    }
    paths = [folder / f"{number}" for number in range(len(shards))] * 2
    order.shuffle(paths)
    whole = Journal(":memory:", create=True)
    whole.begin(IDENTITY, prompts)
    assert copy_journals(paths, whole) == sum(map(len, expected.values()))
    assert everything(whole) == expected


def test_a_play_that_is_here_already_is_left_when_merging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toa_trl.sampling.journal.journal.ROWS_PER_COMMIT", 3)
    filled(tmp_path / "shard").close()
    times = Journal(tmp_path / "shard", lock=False).times()
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    journal.begin(IDENTITY, [Prompt("0", "?"), Prompt("1", "?")])  # type: ignore[arg-type]
    journal.append("0", play(3, 7.0))
    assert copy_journals([tmp_path / "shard"], journal) == 19
    assert journal.plays("0")[3] == play(3, 7.0)
    moved = journal.times()
    assert moved is not None
    assert times is not None
    assert moved[0] == times[0]  # when it was written there
    assert copy_journals([tmp_path / "shard"], journal) == 0
    journal.close()


def test_spending_on_rewards_is_written_with_the_plays_and_copied_once(tmp_path: Path) -> None:
    for number in range(2):
        shard = Journal(tmp_path / f"{number}", create=True)
        shard.begin(IDENTITY, PROMPTS)
        shard.set_reward_spending(Spending(10 + number, 0.5))
        assert shard.reward_spending == Spending()
        shard.append(PROMPTS[number].id, play(0, 1.0))
        assert shard.reward_spending == Spending(10 + number, 0.5)
        shard.close()
    whole = memory()
    for _ in range(2):
        copy_journals([tmp_path / "0", tmp_path / "1"], whole)
        assert whole.reward_spending == Spending(21, 1.0)


def test_spending_is_written_again_after_a_commit_that_failed() -> None:
    journal = memory()
    journal.append("p", play(0, 1.0))
    journal.set_reward_spending(Spending(7, 0.0))
    with pytest.raises(JournalError):
        journal.append("p", play(0, 1.0))  # it exists already
    assert journal.reward_spending == Spending()
    journal.append("p", play(1, 1.0))
    assert journal.reward_spending == Spending(7, 0.0)


@pytest.mark.parametrize("unwritable", [play(0, 1.0), play(1, 1.0, "\udcff")])
def test_a_play_that_cannot_be_written_is_not_called_damage(unwritable: Play) -> None:
    journal = memory()
    journal.append("p", play(0, 1.0))
    with pytest.raises(JournalError) as raised:
        journal.append("p", unwritable)  # it exists already, or cannot be encoded
    assert "recover" not in str(raised.value)


def test_a_journal_is_opened_to_be_read_while_a_run_writes_it(tmp_path: Path) -> None:
    writing = filled(tmp_path / "journal.sqlite", prompts=2, each=3)
    with closing(writing), open_journal(tmp_path) as reading:
        assert reading.num_scored() == writing.num_scored()
        writing.append("0", play(3, 1.0))
        assert reading.num_scored() == {"0": 4, "1": 3}


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    journal = memory()
    with pytest.raises(ConfigError, match=r"shard.*no journal"):
        copy_journals([tmp_path / "shard"], journal)
    (tmp_path / "shard").write_bytes(b"no database at all" * 1000)
    with pytest.raises(JournalError, match=r"shard.*damaged or not a journal"):
        copy_journals([tmp_path / "shard"], journal)


# --- damage (what recover saves: test_recover.py)


def test_a_torn_wal_loses_nothing_that_was_committed_before(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    journal = filled(source / "journal.sqlite", prompts=1, each=0)
    sizes = []  # of the WAL after each play
    for index in range(40):
        journal.append("0", play(index, 0.5, "text " * 50))
        sizes.append((source / "journal.sqlite-wal").stat().st_size)
    rng = random.Random(0)
    for number in range(40):
        copy = tmp_path / str(number)
        copy.mkdir()
        for name in ("journal.sqlite", "journal.sqlite-wal"):
            shutil.copy(source / name, copy / name)
        wal, cut = copy / "journal.sqlite-wal", rng.randint(sizes[0], sizes[-1])
        content = wal.read_bytes()
        garbage = rng.choice([b"", rng.randbytes(len(content) - cut), bytes(len(content) - cut)])
        wal.write_bytes(content[:cut] + garbage)
        torn = Journal(copy / "journal.sqlite", create=True)
        written = torn.plays("0")
        assert len(written) >= sum(size <= cut for size in sizes)
        assert written == [play(index, 0.5, "text " * 50) for index in range(len(written))]
        torn.append("0", play(len(written), 0.5))  # and it goes on
        torn.close()
    journal.close()


def test_damage_is_found_when_a_run_begins_and_the_remedy_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    filled(path, prompts=20, each=50).close()
    content = path.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        content[:40_000] + b"\xff" * 9000 + content[49_000:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match=r"damaged.*toa-trl recover") as raised:
            Journal(path, create=True)
        assert "\n" not in str(raised.value)
    with pytest.raises(JournalError, match="toa-trl recover"):
        everything(Journal(path, lock=False))


def test_a_text_that_is_no_text_any_more_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    filled(path, text="find me ").close()
    path.write_bytes(path.read_bytes().replace(b"find me 1 7", b"find \xff\xfe 1 7"))
    journal = Journal(path)
    assert len(journal.plays("0")) == 10
    with pytest.raises(JournalError, match="damaged"):
        journal.plays("1")
    journal.close()
