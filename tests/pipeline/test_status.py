"""`toa-trl status` of a pipeline, from the files that its stages leave."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from toa_trl.cli.main import run as command
from toa_trl.errors import ConfigError
from toa_trl.pipeline.status import FILE
from toa_trl.pipeline.steps import COMPLETE

NAMES = ("sft", "dpo", "evaluate")


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """A pipeline whose first stage is complete, and whose second one has begun."""
    (tmp_path / "pipeline.json").write_text("{}")
    stages = [{"name": name, "folder": name, "run": name} for name in NAMES]
    (tmp_path / FILE).write_text(json.dumps({"stages": stages}))
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / COMPLETE).write_text('{"seconds": 61}')
    (tmp_path / "dpo.log").write_text("step 1")
    return tmp_path


def test_a_stage_is_complete_interrupted_or_waiting(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(["status", str(folder)])
    head, sft, dpo, evaluate = capsys.readouterr().out.splitlines()
    assert head == f"{folder}: not running"
    assert sft.split(maxsplit=1) == ["sft", "complete, 00:01:01"]
    assert dpo.split(maxsplit=1) == ["dpo", f"interrupted (log: {folder / 'dpo.log'})"]
    assert evaluate.split() == ["evaluate", "waiting"]


def test_a_pipeline_that_runs_is_watched_until_it_ends(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock says whether it runs."""
    paused: list[float] = []
    with (folder / "pipeline.lock").open("w") as lock:

        def end(seconds: float) -> None:
            paused.append(seconds)
            fcntl.flock(lock, fcntl.LOCK_UN)

        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr("time.sleep", end)
        command(["status", str(folder), "--watch", "5"])
    output = capsys.readouterr().out
    assert paused == [5.0]
    assert output.count("dpo       running (log: ") == 1
    assert output.count("dpo       interrupted (log: ") == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_watch_of_no_time_is_refused(folder: Path, seconds: str) -> None:
    with pytest.raises(ConfigError, match="--watch: must be"):
        command(["status", str(folder), f"--watch={seconds}"])
