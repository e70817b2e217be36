"""The command `toa-trl pilot`, from prompts to pilot.json."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import play, rollout
from toa_trl.cli.main import run as command
from toa_trl.cli.pilot import is_anytime
from toa_trl.errors import ConfigError, ToaError
from toa_trl.evaluation.costs import Costs
from toa_trl.evaluation.pilot import measure_pilot
from toa_trl.evaluation.pilot.allocation import Adaptive
from toa_trl.evaluation.pilot.demand import FullRun
from toa_trl.evaluation.pilot.text import describe
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.sampling.timing import read_calls
from toa_trl.search import make_search
from toa_trl.types import Rollout

LONG = "meta-llama/Llama-3.1-8B-Instruct-with-a-long-name"
AGENTS = [
    {"name": "a", "engine": "scripted", "price": {"completion": 2.0}},
    {"name": LONG, "engine": "scripted", "price": {"completion": 4.0}},
]
SETTINGS: dict[str, Any] = {
    "agents": AGENTS,
    "reward": {"kind": "length", "unit": "characters"},
    "budget": 6,
    "search": "toa",
    "search_params": {"tau": 100.0},
}


def pilot(folder: Path, num_prompts: int = 6, **changes: Any) -> dict[str, Any]:
    """Run the command, and return pilot.json."""
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"What is {'very ' * number}large?"} for number in range(num_prompts)]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"prompts": str(prompts), "output_dir": f"{folder}/run", **SETTINGS, **changes}
    given = {"pilot_prompts": 4, **given}
    command(["pilot", *(f"--{key}={_text(value)}" for key, value in given.items())])
    path = Path(given.get("pilot_dir") or f"{folder}/run-pilot") / "pilot.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plays(folder: Path) -> list[Any]:
    with closing(sqlite3.connect(folder / "journal.sqlite")) as journal:
        sql = "SELECT prompt_id, play, agent, response, reward FROM plays ORDER BY 1, 2"
        return journal.execute(sql).fetchall()


def test_a_pilot_from_prompts_to_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = pilot(tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert "4 of 6 prompts x 6 plays by 2 agents" in said[0]
    assert max(map(len, said[1:-1])) <= 100  # the first and the last name a folder
    for part in ("hours", "bottleneck", "tokens", "price", "Budget", "Tau: keep 100", "Agents"):
        assert any(line.strip().startswith(part) for line in said), part
    recorded = plays(tmp_path / "run-pilot")
    assert len(recorded) == 24
    assert len({prompt_id for prompt_id, *_ in recorded}) == 4
    assert len(read_calls(tmp_path / "run-pilot/timings.jsonl")) == 48
    assert found["full_run"]["num_prompts"] == 6
    assert not found["anytime"]
    assert found["demand"]["cost"]["value"] > 0
    assert [place["agent"] for place in found["agents"]] == ["a", LONG]
    low, high = found["demand"]["tokens"]["interval"]
    assert low <= found["demand"]["tokens"]["value"] <= high


def test_a_pilot_leaves_no_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOASampler, "sample", TOASampler.sample.__wrapped__)  # type: ignore[attr-defined]
    pilot(tmp_path)
    left = {path.name for path in (tmp_path / "run-pilot").iterdir()}
    assert left & {"rollouts", "sft", "dpo", "README.md", "report.html"} == set()


def test_an_interrupted_pilot_resumes_with_the_same_plays(tmp_path: Path) -> None:
    whole = pilot(tmp_path, pilot_dir=f"{tmp_path}/whole")
    resumed = tmp_path / "run-pilot"
    stopped = pilot(tmp_path, limits={"max_tokens": 200})
    assert 0 < len(plays(resumed)) < 24
    assert stopped["num_unfinished"] > 0
    again = pilot(tmp_path)
    assert plays(resumed) == plays(tmp_path / "whole")
    assert {call.session for call in read_calls(resumed / "timings.jsonl")} == {0, 1}
    for part in ("budget", "tau", "agents", "num_prompts", "num_unfinished"):
        assert again[part] == whole[part]
    once_more = pilot(tmp_path)  # nothing is left to sample
    assert once_more["demand"] == again["demand"]


def test_the_pilot_of_an_adaptive_run_is_uniform(tmp_path: Path) -> None:
    allocation = {"kind": "adaptive", "min_plays": 2, "wave": 1, "stop_reward": 1000.0}
    found = pilot(tmp_path, allocation=allocation)
    numbers = Counter(prompt_id for prompt_id, *_ in plays(tmp_path / "run-pilot"))
    assert set(numbers.values()) == {6}
    assert found["anytime"]  # the search is that of the adaptive run
    assert found["allocation"]["mean_plays"] == 3
    assert Rollouts.load(tmp_path / "run-pilot").configuration["allocation"] == {"kind": "uniform"}
    grown = pilot(tmp_path, allocation=allocation, budget=7, extend=True)
    assert (grown["full_run"]["budget"], grown["num_unfinished"]) == (7, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_prompts": 1}, "prompts: a pilot needs at least 2 prompts, not 1"),
        ({"pilot_prompts": 1}, "pilot_prompts: .*2"),
        ({"gain_share": 0}, "gain_share"),
        ({"agents": [{**AGENTS[0], "failure_rate": 1.0}]}, "every agent failed"),
    ],
)
def test_a_mistake_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ToaError), match=message) as raised:
        pilot(tmp_path, **changes)
    assert "\n" not in str(raised.value)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    pilot(tmp_path)
    folder = tmp_path / "run-pilot"
    before = plays(folder)
    with pytest.raises(ConfigError, match="created with a different configuration"):
        pilot(tmp_path, seed=1)
    (folder / "pilot.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"pilot\.json: was not written by toa_trl"):
        pilot(tmp_path)
    text = (folder / "run.yaml").read_text()
    (folder / "run.yaml").write_text(text.replace("pilot_prompts", "other"))
    with pytest.raises(ConfigError, match="holds a run that is not a pilot") as raised:
        pilot(tmp_path)
    assert "\n" not in str(raised.value)
    assert plays(folder) == before


def measured(*rollouts: Rollout) -> str:
    run = FullRun(num_prompts=9, budget=4, plays_in_flight=9, pilot_in_flight=3)
    names = ["a", "b"]
    shared: dict[str, Any] = {"costs": Costs({}), "tau": None, "anytime": True, "gain_share": 0.05}
    shared["adaptive"] = Adaptive()
    return describe(measure_pilot(rollouts, [], run, agents=names, **shared), {})


def test_prompts_without_scored_plays_are_left_out() -> None:
    failed = rollout(play(0, None), id="failed")
    with pytest.raises(ConfigError, match=r"at least 2 prompts with scored plays .* not 1 of 2"):
        measured(rollout(play(0, 1.0), id="one"), failed)
    said = measured(rollout(play(0, 1.0), id="one"), rollout(play(0, 3.0), id="two"), failed)
    assert "From 2 prompts" in said
    assert "1 prompt has no scored play" in said
    assert "hours       unknown" in said
    assert "b: was never asked" in said


@pytest.mark.parametrize(
    ("search", "params", "expected"),
    [("toa", {}, False), ("toa", {"width": "anytime"}, True), ("moa", {}, True)],
)
def test_whether_a_search_is_anytime(search: str, params: dict[str, Any], expected: bool) -> None:
    assert is_anytime(lambda n: make_search(search, ["a", "b"], n, **params), 24) is expected
