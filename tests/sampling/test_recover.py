"""A damaged journal: what is readable is kept, and the run goes on."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers import EchoAgent, TextReward, play
from toa_trl import Rollouts, TOASampler
from toa_trl.cli.main import run as main
from toa_trl.errors import ConfigError, JournalError
from toa_trl.sampling.journal import Journal, Recovered, recover
from toa_trl.sampling.journal.grants import read_grants
from toa_trl.types import Play, Prompt, Spending

IDENTITY = {"search": "toa", "seed": 0}
PROMPTS = [Prompt(f"prompt {i}", f"Question {i}? " * 40, {"answer": str(i)}) for i in range(50)]  # type: ignore[arg-type]
NUM_EACH = 40
PLAYS = {
    p.id: [play(i, n + i / 100, f"{i} of {p.id}. " * 25) for i in range(NUM_EACH)]
    for n, p in enumerate(PROMPTS)
}
PAGE = 8192


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a run whose plays came in no order of their prompts."""
    path = tmp_path_factory.mktemp("source") / "journal.sqlite"
    rows = [(prompt.id, PLAYS[prompt.id][i]) for i in range(NUM_EACH) for prompt in PROMPTS]
    with closing(Journal(path, create=True)) as journal:
        journal.begin(IDENTITY, PROMPTS)
        journal.set_reward_spending(Spending(7, 0.5))
        journal.append_all(rows)
    return path


@pytest.fixture(autouse=True)
def few_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after fewer unreadable rows than in a large run, yet more than there are here."""
    monkeypatch.setattr("toa_trl.sampling.journal.recovery.MAX_MISSES", 3_000)


@pytest.fixture
def run_dir(source: Path, tmp_path: Path) -> Path:
    shutil.copy(source, tmp_path)
    return tmp_path


def owners(path: Path) -> dict[str, list[int]]:
    """The pages of every table and index."""
    pages: dict[str, list[int]] = {}
    with closing(sqlite3.connect(path)) as database:
        for name, page in database.execute("SELECT name, pageno FROM dbstat"):
            pages.setdefault(name, []).append(page)
    return pages


def spoil(path: Path, page: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(content)


def kept(run_dir: Path) -> dict[str, list[Play]]:
    """What the run's journal holds; every play is one that was written."""
    path = run_dir / "journal.sqlite"
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(Journal(path, create=True)) as journal:
        assert (
            journal.begin(IDENTITY, PROMPTS) is True
        )  # the same command goes on, and writes lost prompts again
        rollouts = list(journal.rollouts())
    assert [rollout.prompt for rollout in rollouts] == PROMPTS
    for rollout in rollouts:
        written = {it.index: it for it in PLAYS[rollout.prompt.id]}
        assert all(it == written[it.index] for it in rollout.plays)
    return {rollout.prompt.id: list(rollout.plays) for rollout in rollouts}


def check(found: Recovered, run_dir: Path) -> int:
    """That the figures are right; returns how many plays were lost."""
    plays = kept(run_dir)
    assert found.num_plays == sum(map(len, plays.values()))
    assert found.num_hurt <= sum(len(it) < NUM_EACH for it in plays.values())
    assert found.damaged == run_dir / "journal.sqlite.damaged"
    assert {p.name for p in run_dir.iterdir()} == {
        "journal.sqlite",
        "journal.sqlite.damaged",
        "journal.sqlite.lock",
    }
    return sum(map(len, PLAYS.values())) - found.num_plays


@pytest.mark.parametrize(
    "content", [bytes(PAGE), b"\xff" * PAGE, random.Random(0).randbytes(PAGE)], ids=["0", "f", "r"]
)
@pytest.mark.parametrize("seed", range(4))
def test_a_spoiled_page_costs_the_plays_on_it(run_dir: Path, seed: int, content: bytes) -> None:
    path = run_dir / "journal.sqlite"
    leaves = [page for page in owners(path)["plays"] if page_type(path, page) == 13]
    spoil(path, random.Random(seed).choice(leaves), content)
    with pytest.raises(JournalError, match="recover"):
        Journal(path, create=True)
    found = recover(run_dir)
    assert found.identity
    assert found.num_prompts == len(PROMPTS)
    assert 0 < check(found, run_dir) <= PAGE // 250
    assert found.num_hurt == sum(
        len(it) < NUM_EACH for it in kept(run_dir).values()
    )  # by the index, which is whole


def page_type(path: Path, page: int) -> int:
    return path.read_bytes()[(page - 1) * PAGE]  # 13: a leaf of a table, 10: of an index


@pytest.mark.parametrize("index", ["sqlite_autoindex_plays_1", "plays_written"])
def test_a_spoiled_index_costs_nothing(run_dir: Path, index: str) -> None:
    path = run_dir / "journal.sqlite"
    for page in owners(path)[index]:
        spoil(path, page, b"\xff" * PAGE)
    assert check(recover(run_dir), run_dir) == 0
    with closing(Journal(path, lock=False)) as journal:
        assert journal.reward_spending == Spending(7, 0.5)


def test_lost_prompts_are_written_again_by_the_next_run(run_dir: Path) -> None:
    path = run_dir / "journal.sqlite"
    leaves = [page for page in owners(path)["prompts"] if page_type(path, page) == 13]
    spoil(path, leaves[len(leaves) // 2], bytes(PAGE))
    found = recover(run_dir)
    assert 0 < found.num_prompts < len(PROMPTS)
    assert check(found, run_dir) == 0


def test_a_lost_configuration_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "journal.sqlite"
    spoil(path, owners(path)["run"][0], bytes(PAGE))
    main(["recover", str(run_dir)])
    assert "configuration was not readable" in capsys.readouterr().out
    with closing(Journal(path, create=True)) as journal:
        assert journal.begin(IDENTITY, PROMPTS) is False
        assert {r.prompt.id: list(r.plays) for r in journal.rollouts()} == PLAYS


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_cost_little(run_dir: Path, seed: int) -> None:
    path, rng = run_dir / "journal.sqlite", random.Random(seed)
    content = bytearray(path.read_bytes())
    numbers = sorted({page for pages in owners(path).values() for page in pages} - {1})
    for page in rng.sample(numbers[len(numbers) // 3 :], 3):
        start = (page - 1) * PAGE
        for at in rng.sample(
            range(start, start + 12), 3
        ):  # the header of the page: it cannot be read
            content[at] ^= 0xFF
    path.write_bytes(content)
    assert check(recover(run_dir), run_dir) <= 3 * PAGE // 250


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_cut_short_keeps_what_is_before_the_cut(run_dir: Path, share: float) -> None:
    path = run_dir / "journal.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    before = [p for p in owners_of(content, run_dir) if p * PAGE <= len(content) * share]
    found = recover(run_dir)
    lost = check(found, run_dir)
    assert found.num_plays >= len(before) * 15  # plays per page
    assert lost > 0


def owners_of(content: bytes, folder: Path) -> list[int]:
    whole = folder / "whole"
    whole.write_bytes(content)
    pages = [page for page in owners(whole)["plays"] if page_type(whole, page) == 13]
    whole.unlink()
    return pages


def test_a_damaged_file_is_never_written_over(run_dir: Path) -> None:
    path = run_dir / "journal.sqlite"
    for number in range(2):
        leaves = [page for page in owners(path)["plays"] if page_type(path, page) == 13]
        spoil(path, leaves[10 + number], bytes(PAGE))
        spoiled = path.read_bytes()
        damaged = recover(run_dir).damaged
        assert damaged is not None
        assert damaged.name == "journal.sqlite.damaged" + ("", ".1")[number]
        assert damaged.read_bytes() == spoiled
        kept(run_dir)


def test_a_journal_without_damage_is_left_alone(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run_dir / "journal.sqlite").read_bytes()
    main(["recover", str(run_dir)])
    assert (
        "is not damaged: 50 prompts and 2,000 plays; nothing was changed" in capsys.readouterr().out
    )
    assert (run_dir / "journal.sqlite").read_bytes() == before
    assert not (run_dir / "journal.sqlite.damaged").exists()


@pytest.mark.parametrize(
    "page", [b"\xff" * PAGE, bytes(PAGE), b"SQLite format 3\x00" + b"\xff" * (PAGE - 16), b""]
)
def test_without_its_first_page_nothing_can_be_read(run_dir: Path, page: bytes) -> None:
    path = run_dir / "journal.sqlite"
    spoiled = page + path.read_bytes()[PAGE:] if page else b""
    path.write_bytes(spoiled)
    with pytest.raises(JournalError, match="nothing could be read"):
        recover(run_dir)
    assert path.read_bytes() == spoiled
    assert not (run_dir / "journal.sqlite.recovered").exists()


def test_only_the_writer_recovers(run_dir: Path, tmp_path: Path) -> None:
    with (
        closing(Journal(run_dir / "journal.sqlite")),
        pytest.raises(ConfigError, match="another process"),
    ):
        recover(run_dir)
    with pytest.raises(ConfigError, match="no journal"):
        recover(tmp_path / "nowhere")


def test_what_a_killed_process_left_in_the_wal_is_recovered_too(run_dir: Path) -> None:
    path = run_dir / "journal.sqlite"
    for page in [page for page in owners(path)["plays"] if page_type(path, page) == 13][5:7]:
        spoil(path, page, bytes(PAGE))
    code = (
        "import os, sys; from toa_trl.sampling.journal import Journal; from tests.helpers import "
        "play\n"
        "journal = Journal(sys.argv[1])\n"
        "journal.append('prompt 3', play(40, 9.0, 'the last')); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60).returncode == 9
    assert path.with_name("journal.sqlite-wal").stat().st_size > 0
    recover(run_dir)
    with closing(Journal(path, create=True)) as journal:
        assert journal.plays("prompt 3")[-1] == play(40, 9.0, "the last")


@pytest.mark.parametrize("spoiled", ["plays", "grants"])
def test_an_adaptive_run_keeps_its_decisions_and_ends_with_its_budget(
    tmp_path: Path, spoiled: str
) -> None:
    def sample() -> Rollouts:
        sampler = TOASampler(
            [EchoAgent("x"), EchoAgent("y")],
            TextReward(),
            budget=6,
            progress=False,
            allocation={"kind": "adaptive", "min_plays": 2},
        )
        return sampler.sample([f"What is {number}?" for number in range(12)], tmp_path)

    first = sample()
    before, grants = {r.prompt.id: r.plays for r in first}, read_grants(first._journal)
    first._journal.close()
    path = tmp_path / "journal.sqlite"
    leaves = [page for page in owners(path)[spoiled] if page_type(path, page) == 13]
    spoil(path, leaves[0], bytes(PAGE))
    assert recover(tmp_path).damaged
    with closing(Journal(path, lock=False)) as journal:
        assert read_grants(journal) == (grants if spoiled == "plays" else [])
    again = sample()
    after = {r.prompt.id: r.plays for r in again}
    assert again.unfinished == 0
    assert sum(map(len, after.values())) == 6 * 12
    if spoiled == "plays":
        assert after == before
    else:
        assert all(after[prompt_id][: len(plays)] == plays for prompt_id, plays in before.items())
