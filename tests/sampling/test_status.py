"""How far a run is, read beside the process that writes it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.helpers import EchoAgent, TextReward, play
from toa_trl import TOASampler
from toa_trl.cli.main import run as main
from toa_trl.errors import ConfigError, JournalError
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.journal.grants import write_grants
from toa_trl.sampling.status import print_status, status
from toa_trl.types import Action, Grant, Play, Prompt

IDENTITY = {"search": "toa", "budget": 2, "agents": {"llama": {}, "qwen": {}}}


def begin(folder: Path, ids: Iterable[str]) -> Journal:
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "journal.sqlite", create=True)
    journal.begin(IDENTITY, [Prompt(id, "What?") for id in ids])  # type: ignore[arg-type]
    return journal


def fill(journal: Journal) -> None:
    """The first prompt is finished, the second begun, the third failed."""
    journal.append("p", play(0, 1.0, agent="llama", tokens=(1000, 500), flops=2e9))
    journal.append("p", play(1, 3.0, agent="qwen"))
    journal.append("q", play(0, -1.0, agent="llama", tokens=(1000, 500), flops=1e9))
    for index in range(2):
        journal.append("r", Play(index, Action("qwen"), error="qwen: no\n  [/server] answers"))
    journal.append("q", Play(1, Action("qwen"), error="x" * 500))


def seen(run_dir: Path, now: float | None = None) -> list[str]:
    console = Console(file=StringIO(), width=200)
    console.print(status(run_dir, now))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_run_that_is_written(tmp_path: Path) -> None:
    journal = begin(tmp_path, "pqrs")
    fill(journal)
    with closing(journal):
        first_written, _ = journal.times() or (0, 0)
        lines = seen(tmp_path, first_written + 10)
        journal.append("q", play(2, 0.0))  # looking took nothing away from the writer
        with pytest.raises(ConfigError, match="another process"):
            Journal(tmp_path / "journal.sqlite")
    title, bar, prompts, plays, reward, last, header, llama, qwen, failures, first, second = lines
    assert title == f"{tmp_path}: toa, budget 2, running"
    assert bar.startswith("plays ━")
    # six plays in ten seconds, of which three were scored: five more take 16.7 s
    assert bar.endswith("3/8 37 % 0.6/s ETA 00:00:17")
    assert prompts == "prompts: 1 of 4 finished, 3 started"
    assert plays == "plays: 3 scored, 3 failed, 8 in all"
    assert reward == "mean best reward: 1"
    assert last.startswith(f"last play: {time.strftime('%Y-')}")
    assert last.endswith((", 00:00:10 ago", ", 00:00:09 ago"))
    assert header == "agent scored failed tokens FLOPs"
    assert llama == "llama 2 0 3k 3G"
    assert qwen == "qwen 1 3 15 1"
    assert failures == "most frequent failures:"
    assert first == "2 qwen: no [/server] answers"
    assert second == f"1 {'x' * 120}"


def test_an_adaptive_run_shows_its_plays_per_prompt_and_may_end_early(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    prompts = [Prompt(id, "What?") for id in "pqrs"]  # type: ignore[arg-type]
    journal.begin({**IDENTITY, "budget": 4, "allocation": {"kind": "adaptive"}}, prompts)
    with closing(journal):
        write_grants(journal, [Grant(0, 0, 0, 3), Grant(1, 0, 1, 1), Grant(2, 0, 2, 1)])
        for index in range(3):
            journal.append("p", play(index, 1.0, agent="llama"))
        journal.append("q", play(0, 1.0, agent="llama"))
        journal.append("r", Play(0, Action("qwen"), error="no"))
        title, bar, started, spread, plays, *_ = seen(tmp_path, time.time() + 10)
        assert title.endswith("toa, budget 4 on average (adaptive), running")
        assert " 4/16 25 % " in bar
        assert started == "prompts: 3 of 4 started"
        assert spread == "plays per prompt: least 0, mean 1.0, most 3"
        assert plays == "plays: 4 scored, 1 failed, 16 in all"
        journal.append("r", play(1, 1.0, agent="llama"))
        write_grants(journal, [Grant(3, 1, 3, 1)], ended=True)
        journal.append("s", play(0, 1.0, agent="llama"))
    title, bar, started, spread, plays, *_ = seen(tmp_path)
    assert title.endswith("finished")
    assert bar.endswith("6/6 100 %")
    assert spread == "plays per prompt: least 1, mean 1.5, most 3"
    assert plays == "plays: 6 scored, 1 failed, 16 in all; 10 of the budget were not needed"


def test_old_plays_are_not_the_pace_of_today(tmp_path: Path) -> None:
    with closing(begin(tmp_path, "pqrs")) as journal:
        fill(journal)
        assert "3/8 37 % 0.0/s ETA -" in seen(tmp_path, time.time() + 1000)[1]
        assert "3/8 37 % 0.0/s ETA 00:" in seen(tmp_path, time.time() + 200)[1]


def test_a_run_that_nobody_writes_has_no_pace(tmp_path: Path) -> None:
    with closing(begin(tmp_path, "pqr")) as journal:
        fill(journal)
    title, bar, *_ = seen(tmp_path)
    assert title.endswith("budget 2, not running")
    assert bar.endswith("3/6 50 %")
    (tmp_path / "journal.sqlite.lock").unlink(missing_ok=True)
    assert seen(tmp_path)[0] == title
    assert not (tmp_path / "journal.sqlite.lock").exists()
    Journal(tmp_path / "journal.sqlite").close()


def test_a_finished_run(tmp_path: Path) -> None:
    with closing(begin(tmp_path, "p")) as journal:
        journal.append("p", play(0, 1.0))
        journal.append("p", play(1, 1.0))
    title, bar, *_ = seen(tmp_path)
    assert title.endswith("budget 2, finished")
    assert bar.endswith("2/2 100 %")


def test_a_run_without_a_play(tmp_path: Path) -> None:
    with closing(begin(tmp_path, "p")):
        title, bar, *rest = seen(tmp_path)
    assert title.endswith("running")
    assert bar.endswith("0/2 0 %")
    assert rest == [
        "prompts: 0 of 1 finished, 0 started",
        "plays: 0 scored, 0 failed, 2 in all",
        "agent scored failed tokens FLOPs",
        "llama 0 0 0 0",
        "qwen 0 0 0 0",
    ]


def test_shards_are_one_run_until_they_are_merged(tmp_path: Path) -> None:
    for name, ids in {"0": "pqr", "1": "s", "2": "pqrtu"}.items():
        with closing(begin(tmp_path / "shards" / name, ids)) as journal:
            if len(ids) > 1:
                fill(journal)
    running = Journal(tmp_path / "shards" / "1" / "journal.sqlite")
    running.append("s", play(0, 7.0, agent="llama"))
    lines = seen(tmp_path)
    running.close()
    assert lines[0] == f"{tmp_path}: toa, budget 2, running"
    assert " 7/18 38 % " in lines[1]
    assert lines[2] == "prompts: 2 of 9 finished, 7 started"
    assert "mean best reward: 2.2" in lines  # (3 - 1 + 3 - 1 + 7) / 5
    assert "llama 5 0 6.01k 6G" in lines
    assert "4 qwen: no [/server] answers" in lines
    with closing(begin(tmp_path, "p")):
        assert " 0/2 0 %" in seen(tmp_path)[1]


def test_only_the_most_frequent_reasons_are_shown(tmp_path: Path) -> None:
    with closing(begin(tmp_path, "p")) as journal:
        reasons = [name for number, name in enumerate("abcdefg", 1) for _ in range(number)]
        for index, reason in enumerate(reasons):
            journal.append("p", Play(index, Action("qwen"), error=reason))
        assert seen(tmp_path)[-6:] == ["most frequent failures:", "7 g", "6 f", "5 e", "4 d", "3 c"]


def test_a_folder_without_a_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    for look in (status, print_status):
        with pytest.raises(ConfigError, match=rf"{tmp_path} has no journal\.sqlite"):
            look(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_journal_or_has_not_begun_is_an_error(tmp_path: Path) -> None:
    with (
        closing(Journal(tmp_path / "journal.sqlite", create=True)),
        pytest.raises(ConfigError, match="not started"),
    ):
        status(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "journal.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(JournalError, match="not a journal"):
        status(tmp_path / "other")


def test_without_watch_it_is_printed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(begin(tmp_path, "p")):
        print_status(tmp_path)
    out = capsys.readouterr().out
    assert out.count("budget 2, running") == 1
    assert "\x1b" not in out


@pytest.mark.parametrize("terminal", [False, True])
def test_watch_looks_again_until_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    journal = begin(tmp_path, "p")
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) <= 2:
            journal.append("p", play(len(slept), 1.0))
        else:
            journal.close()

    monkeypatch.setattr("toa_trl.sampling.status.time.sleep", sleep)
    console = Console(
        file=StringIO(), width=100, force_terminal=terminal, force_interactive=terminal
    )
    print_status(tmp_path, 3.5, console)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert slept == [3.5] * 3
    assert [out.count(f" {scored}/2 ") > 0 for scored in range(3)] == [True] * 3
    assert "budget 2, finished" in out
    assert ("\x1b" in out) is terminal


def test_ctrl_c_ends_the_watch_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("toa_trl.sampling.status.time.sleep", interrupt)
    with closing(begin(tmp_path, "p")):
        console = Console(file=StringIO())
        print_status(tmp_path, 1, console)
    assert "running" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("watch", [0, -1.0, float("nan")])
def test_a_watch_of_no_time_is_refused(tmp_path: Path, watch: float) -> None:
    with pytest.raises(ConfigError, match="--watch: must be"):
        print_status(tmp_path, watch)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TOASampler([EchoAgent("a")], TextReward(), budget=2, progress=False).sample(
        ["One?", "Two?"], tmp_path
    )
    main(["status", str(tmp_path)])
    assert "2 of 2 finished" in capsys.readouterr().out


def test_a_run_of_others_does_not_control_the_terminal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    journal.begin({**IDENTITY, "search": "\x1b[2Jtoa"}, [Prompt("p", "What?")])  # type: ignore[arg-type]
    journal.append("p", play(0, 1.0, agent="\x1b[31mred"))
    journal.append("p", Play(1, Action("llama"), error="\x1b]0;title\x07"))
    journal.close()
    text = "\n".join(seen(tmp_path))
    assert "\x1b" not in text
    assert "\x07" not in text
    for shown in (r"\x1b[2Jtoa", r"\x1b[31mred", r"\x1b]0;title\x07"):
        assert shown in text


def test_a_comparison_shows_its_runs(tmp_path: Path) -> None:
    with closing(begin(tmp_path / "toa-2", "pq")) as journal:
        fill_two(journal)
        lines = seen(tmp_path)
        with closing(begin(tmp_path / "toa-2-seed1", "pq")):
            assert seen(tmp_path)[0] == f"{tmp_path}: 2 runs, running"
    title, bar, header, run = lines
    assert title == f"{tmp_path}: 1 run, running"
    assert bar.startswith("plays ━")
    assert bar.endswith("3/4 75 %")
    assert header == "run prompts plays failed mean best reward"
    assert run == "toa-2 1/2 3/4 1 1"
    (tmp_path / "toa-2" / "student").mkdir()
    (tmp_path / "toa-2" / "student" / "training.json").write_text("{}")
    title, *_, students = seen(tmp_path)
    assert title == f"{tmp_path}: 2 runs, not running"
    assert students == "students trained: 1"


def test_status_of_a_comparison_is_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(begin(tmp_path / "moa-2", "p")) as journal:
        journal.append("p", play(0, 1.0, agent="llama"))
        journal.append("p", play(1, 3.0, agent="qwen"))
    main(["status", str(tmp_path)])
    assert f"{tmp_path}: 1 run, sampling finished" in capsys.readouterr().out


def fill_two(journal: Journal) -> None:
    """The first prompt is finished, the second begun."""
    journal.append("p", play(0, 1.0, agent="llama"))
    journal.append("p", play(1, 3.0, agent="qwen"))
    journal.append("q", play(0, -1.0, agent="llama"))
    journal.append("q", Play(1, Action("qwen"), error="no"))
