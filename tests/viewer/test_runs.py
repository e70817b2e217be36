"""The list of runs, with a damaged one among them; the command's errors."""

from __future__ import annotations

import builtins
import shutil
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.sampling.test_read_only import read_only
from tests.viewer.conftest import AGENTS, client_of, sample
from toa_trl.cli.main import run as main
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.journal import locked
from toa_trl.viewer import figures as of_figures
from toa_trl.viewer.figures import Figures, Totals, measure


def test_runs_are_listed_and_a_damaged_one_with_its_fault(
    runs: Path, ask: Callable[..., Any]
) -> None:
    listed = ask("runs")
    assert listed["folder"] == str(runs)
    found = {run["run"]: run for run in listed["runs"]}
    assert list(found) == ["complete", "damaged", "open"]
    assert found["complete"]["state"] == found["open"]["state"] == "finished"
    assert found["complete"]["search"] == "toa"
    assert found["complete"]["budget"] == 12
    assert found["complete"]["num_prompts"] == 7
    assert found["complete"]["agents"] == AGENTS
    assert found["damaged"]["state"] == "damaged"
    assert "toa-trl recover" in found["damaged"]["fault"]
    assert "toa-trl recover" in ask("figures", 422, run="damaged")["error"]
    assert "toa-trl recover" in ask("plays", 422, run="damaged")["error"]


def test_figures_are_those_of_the_rollouts(runs: Path, ask: Callable[..., Any]) -> None:
    complete, not_complete = (ask("figures", run=name) for name in ("complete", "open"))
    for ours, theirs in zip(complete.pop("agents"), not_complete["agents"], strict=True):
        assert ours == pytest.approx(theirs)
    plays = [play for rollout in Rollouts.load(runs / "open") for play in rollout.plays]
    rewards = [play.reward for play in plays if play.reward is not None]
    best = [rollout.ranked[0].reward for rollout in Rollouts.load(runs / "open")]
    assert complete["share"] == 1.0
    assert complete == pytest.approx({key: not_complete[key] for key in complete})
    assert complete["scored"] == complete["total"] == len(rewards) == 7 * 12
    assert complete["failed"] == len(plays) - len(rewards) > 0
    assert complete["mean_reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert complete["mean_best"] == pytest.approx(sum(map(float, best)) / 7)  # type: ignore[arg-type]
    assert [agent["name"] for agent in not_complete["agents"]] == AGENTS
    assert sum(agent["scored"] for agent in not_complete["agents"]) == len(rewards)


def test_a_large_journal_is_read_in_parts(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "open", tmp_path / "run")
    whole = measure(tmp_path / "run", Totals())
    monkeypatch.setattr(of_figures, "CHUNK", 10)
    monkeypatch.setattr(of_figures, "READING_S", 0.0)
    figures, shares = Figures(), list[float]()
    while not shares or shares[-1] < 1:
        shares.append(figures.of(tmp_path / "run")["share"])
    assert len(shares) > 3
    assert shares == sorted(shares)
    found = figures.of(tmp_path / "run")
    for ours, theirs in zip(found.pop("agents"), whole.pop("agents"), strict=True):
        assert ours == pytest.approx(theirs)
    assert found == pytest.approx(whole)
    # further plays are added to what is known
    with closing(sqlite3.connect(tmp_path / "run/journal.sqlite")) as db, db:
        db.execute(
            "INSERT INTO plays SELECT prompt_id || 'x', play, seed, written_s, agent, kind, refs, "
            "parent, depth, reward, second_reward, reward_flops, finish_reason, prompt_tokens, "
            "completion_tokens, tokens_estimated, flops, error, response, reasoning FROM plays"
        )
    monkeypatch.undo()
    monkeypatch.setattr(of_figures, "PATIENCE", 0.0)
    again = figures.of(tmp_path / "run")
    assert again["scored"] == 2 * whole["scored"]
    assert again["mean_best"] == pytest.approx(whole["mean_best"])


def test_a_running_run_is_live(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "open", folder)
    journal = folder / "journal.sqlite"
    with closing(sqlite3.connect(journal)) as db, db:
        db.execute("DELETE FROM run WHERE key = 'completed'")
        db.execute("DELETE FROM plays WHERE play > 3")
        db.execute("UPDATE plays SET written_s = unixepoch()")
    with client_of(tmp_path) as client, locked(journal):
        (run,) = client.get("/api/runs").json()["runs"]
        assert (run["run"], run["state"]) == ("run", "running")
        before = client.get("/api/figures", params={"run": "run"}).json()
        assert before["total"] == 7 * 12 > before["scored"]
        assert before["rate"] > 0
        # the writer is not blocked by a reader
        with closing(sqlite3.connect(journal, timeout=0)) as db, db:
            db.execute("INSERT INTO plays SELECT * FROM plays WHERE 0")
            db.execute("UPDATE plays SET play = 4 WHERE play = 3")
            page = client.get("/api/plays", params={"run": "run", "sort": "written"})
            assert page.status_code == 200


def test_a_run_in_a_read_only_folder(tmp_path: Path) -> None:
    sample(tmp_path / "runs/run", num_prompts=1)
    before = sorted(path.name for path in (tmp_path / "runs/run").iterdir())
    with read_only(tmp_path / "runs/run"), client_of(tmp_path / "runs") as client:
        for path in ("figures", "plays", "count"):
            assert client.get(f"/api/{path}", params={"run": "run"}).status_code == 200
    assert sorted(path.name for path in (tmp_path / "runs/run").iterdir()) == before


@pytest.mark.parametrize("name", ["../runs/open", "nothing", "", "/etc", "notes"])
def test_no_path_leaves_the_folder(ask: Callable[..., Any], name: str) -> None:
    assert "there is no run" in ask("plays", 400, run=name)["error"]


def test_the_folder_of_one_run(runs: Path) -> None:
    with client_of(runs / "open") as client:
        assert [run["run"] for run in client.get("/api/runs").json()["runs"]] == ["."]
        assert client.get("/api/plays", params={"run": "."}).json()["plays"]


def test_errors_of_the_command(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no run in this folder or below it .* name a folder"):
        main(["view", str(tmp_path)])
    with pytest.raises(ConfigError, match="not a folder"):
        main(["view", str(tmp_path / "nothing")])
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port: {port} is in use.* choose another"):
            main(["view", str(runs), "--port", str(port)])
    with pytest.raises(ConfigError, match="--port: must be from 0 to 65535, not 70000"):
        main(["view", str(runs), "--port", "70000"])
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "toa_trl.viewer.server":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"view: fastapi is not installed; pip install 'toa_trl"):
        main(["view", str(runs)])
