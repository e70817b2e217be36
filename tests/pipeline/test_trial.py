"""Servers of later stages are tried before the first stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait
from tests.pipeline.conftest import plan_of
from tests.pipeline.test_servers import alive, ends_without_a_stage, needs_linux, rounds_of, starts
from toa_trl.errors import ToaError
from toa_trl.pipeline.dry_run import plan_lines
from toa_trl.pipeline.run import run_plan
from toa_trl.pipeline.trial import trials_of

Seen = Callable[[], list[dict[str, Any]]]


@pytest.fixture(name="later")
def _later(served: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A pipeline that needs a server first in its evaluation, two stages after the first."""
    pool = served["servers"]["servers"]
    judge = {"name": "judge", "model": "my/judge", "port": pool[0]["port"] + 2, "gpus": [0]}
    pool.append({**judge, "env": {"FAKE_STARTS": str(tmp_path / "starts")}})
    synthesis, sft = served["stages"]
    prompts = synthesis["config"]["prompts"].replace("prompts", "heldout")
    evaluation = {"run": "evaluate", "config": {"prompts": prompts}, "servers": ["judge"]}
    served["stages"] = [synthesis, sft, {**evaluation, "gpus": [1]}]
    return served


def models(folder: Path) -> list[str]:
    return sorted(start["model"] for start in starts(folder))


@needs_linux
def test_a_server_of_a_later_stage_that_never_becomes_healthy_is_found_before_the_first(
    later: dict[str, Any], stub: Seen, tmp_path: Path
) -> None:
    log = r"out/logs/trial-evaluate/judge\.log"
    message = rf"servers of evaluate: .* judge was not healthy within 1\.5 s; see .*{log}; no stage"
    ends_without_a_stage(later, 1, message, tmp_path)
    assert models(tmp_path) == ["my/judge"]  # those of the first stage start with it


@needs_linux
def test_a_server_that_was_healthy_is_not_tried_again(
    later: dict[str, Any], stub: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = later["stages"]
    later["stages"] = [*stages, {**stages[-1], "name": "again"}]  # with the same server
    lines: list[str] = []
    monkeypatch.setenv("STUB_FAILS", "sft")
    with pytest.raises(ToaError, match="sft: ended with code 1"):
        wait(run_plan(plan_of(later), lines.append))
    assert "trial 1 of 1, servers of evaluate: starting judge" in lines[0]
    assert "healthy after" in lines[1]
    assert "synthesize: starting llama-0, llama-1" in lines[2]
    assert models(tmp_path) == ["meta/llama", "meta/llama", "my/judge"]
    assert not list(tmp_path.glob("out/logs/*.endpoints.yaml"))
    assert alive(tmp_path) == []

    digests = json.loads(Path(later["output_dir"], "servers.json").read_text())["healthy"]
    assert len(digests) == 3
    assert trials_of(plan_of(later)) == []  # resumed
    later["servers"]["servers"][1]["env"]["TOKEN"] = "changed"
    assert [trial.stage.folder for trial in trials_of(plan_of(later))] == ["evaluate"]


@pytest.mark.parametrize("content", ["", "[]", '{"healthy": null}', '{"healthy": [[]]}', "{}"])
def test_a_record_that_says_nothing_of_servers_counts_as_none(
    later: dict[str, Any], content: str
) -> None:
    expected = trials_of(plan_of(later))
    Path(later["output_dir"]).mkdir(parents=True, exist_ok=True)
    Path(later["output_dir"], "servers.json").write_text(content)
    assert trials_of(plan_of(later)) == expected != []


def test_a_dry_run_names_what_is_tried_and_starts_nothing(
    later: dict[str, Any], stub: Seen, tmp_path: Path
) -> None:
    del later["stages"][1]  # an estimate of a training takes seconds
    note = "- evaluate, judge: tried once before the first stage (servers.try_first)"
    assert note in list(plan_lines(plan_of(later)))
    assert starts(tmp_path) == []
    later["servers"]["try_first"] = False
    assert trials_of(plan_of(later)) == []


def test_a_server_of_what_the_pipeline_makes_is_not_tried(
    served: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(rounds_of(deepcopy(served)))
    found = [(t.number, t.stage.folder, t.fleet.servers) for t in trials_of(plan)]
    # the untrained student is served first, in the evaluation of round 0; later ones do not exist
    assert [(*place, [server.name for server in servers]) for *place, servers in found] == [
        (1, "synthesize", ["llama"])
    ]
    for keys in ({"model": f"{plan.output}/sft"}, {"args": {"lora-modules": [f"a={plan.output}"]}}):
        served["servers"]["servers"][0] |= keys
        assert trials_of(plan_of(rounds_of(deepcopy(served)))) == []


def test_nothing_is_tried_once_the_gate_has_ended_the_rounds(served: dict[str, Any]) -> None:
    content = rounds_of(served, gate={"metric": "win_rate", "if_worse": "stop"})
    content["stages"][-1]["config"]["reward"] = {"kind": "length"}
    plan = plan_of(content)
    assert trials_of(plan)
    (plan.output / "round-1").mkdir(parents=True)
    (plan.output / "round-1/gate.json").write_text('{"accepted": false}')
    assert trials_of(plan) == []
