"""Rounds of a pipeline: where a round starts, what it learns again, and when it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait
from tests.pipeline.conftest import plan_of, with_stage
from tests.pipeline.test_pipeline import killed_at, option
from toa_trl.errors import ConfigError, ToaError
from toa_trl.pipeline import Plan
from toa_trl.pipeline.config import GateConfig
from toa_trl.pipeline.gate import decide
from toa_trl.pipeline.run import run_plan

Seen = Callable[[], list[dict[str, Any]]]


@pytest.fixture(name="rounds")
def _rounds(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Three rounds of sampling, one training and an evaluation with a verifier."""
    synthesis, _, sft, _, evaluation, _ = pipeline["stages"]
    options = {"verifier": {"kind": "length"}}
    stages = [
        synthesis,
        {**sft, "options": {"use_peft": False}},
        {**evaluation, "options": options},
    ]
    return {**pipeline, "stages": stages, "rounds": 3}


def started(seen: Seen) -> list[str]:
    """The models that the trainings started from, with the last folders of their names."""
    models = [
        option(one["argv"], "model_name_or_path") for one in seen() if one["argv"][0] == "sft"
    ]
    return ["/".join(Path(model).parts[-2:]) for model in models]


def run_rounds(content: dict[str, Any]) -> tuple[Plan, list[str]]:
    lines: list[str] = []
    plan = plan_of(content)
    wait(run_plan(plan, lines.append))
    return plan, lines


@pytest.mark.parametrize(
    ("keys", "models"),
    [
        ({}, ["untrained", "round-1/sft"]),
        ({"start_from": "base"}, ["untrained", "untrained"]),
    ],
)
def test_a_round_starts_from_the_previous_student_or_from_the_base(
    keys: dict[str, Any], models: list[str], rounds: dict[str, Any], stub: Seen
) -> None:
    plan, _ = run_rounds({**rounds, **keys, "rounds": 2})
    assert started(stub) == models
    # either way the student of the round before is among the agents
    agents = [one["config"]["agents"][-1] for one in stub() if one["argv"][0] == "synthesize"]
    assert ["/".join(Path(agent["model"]).parts[-2:]) for agent in agents] == [
        *("untrained", "round-1/sft")
    ]
    assert plan.model(2) == str(plan.output / "round-2/sft")


def test_a_worse_student_is_refused_and_the_best_one_goes_on(
    rounds: dict[str, Any], stub: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SCORES", "0.3 0.6 0.5 0.7")
    replay = {"rounds": 1, "share": 0.25}
    plan, lines = run_rounds({**rounds, "gate": {"metric": "accuracy"}, "replay": replay})
    assert started(stub) == ["untrained", "round-1/sft", "round-1/sft"]
    said = [line for line in lines if line.startswith("gate:")]
    assert said == [
        "gate: the student of round 1 is accepted: accuracy 0.6, that of round 0 0.3",
        "gate: the student of round 2 is refused: accuracy 0.5, that of round 1 0.6",
        "gate: the student of round 3 is accepted: accuracy 0.7, that of round 1 0.6",
    ]
    assert plan.model(2) == str(plan.output / "round-1/sft")
    decision = json.loads((plan.output / "round-2/gate.json").read_text())
    assert (decision["accepted"], decision["best"], decision["value"]) == (False, 1, 0.5)
    rows = json.loads((plan.output / "results.json").read_text())["rounds"]
    assert [row.get("accepted") for row in rows] == [None, True, False, True]
    lineage = json.loads((plan.output / "rounds.json").read_text())
    assert [
        (one["round"], one["start"], one["accepted"], [data["round"] for data in one["data"]])
        for one in lineage["rounds"]
    ] == [(1, 0, True, [1]), (2, 1, False, [2, 1]), (3, 1, True, [3, 2])]
    assert lineage["student"] == {"round": 3, "model": "round-3/sft"}
    assert lineage["base_model"] == "untrained"


def test_a_gate_can_end_the_rounds_and_the_best_student_is_the_result(
    rounds: dict[str, Any], stub: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SCORES", "0.3 0.6 0.5 0.7")
    evaluation = rounds["stages"][2]["config"] | {"models": [], "verifier": {"kind": "length"}}
    file = Path(rounds["output_dir"]).with_name("evaluate.yaml")
    file.write_text(json.dumps(evaluation))  # models of a file are replaced
    content = with_stage(rounds, 2, config=str(file), options=None)
    content["gate"] = {"if_worse": "stop"}
    plan, _ = run_rounds(content)
    assert started(stub) == ["untrained", "round-1/sft"]
    assert plan.model(3) == str(plan.output / "round-1/sft")
    run_rounds(content)
    assert len(started(stub)) == 2  # nothing runs again


def test_a_refused_round_stays_refused_after_a_kill(
    rounds: dict[str, Any], stub: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SCORES", "0.3 0.2 0.5")
    content = {**rounds, "gate": {}, "rounds": 2}
    whole = {**content, "output_dir": f"{content['output_dir']}-whole"}
    run_rounds(whole)
    killed_at("round-2/sft", content)
    plan, _ = run_rounds(content)
    assert started(stub) == [
        *("untrained", "untrained"),  # of the whole one
        *("untrained", "untrained", "untrained"),  # the last one twice
    ]
    for number in (1, 2):
        name = f"round-{number}/sft/model.safetensors"
        assert (plan.output / name).read_text() == Path(whole["output_dir"], name).read_text()


@pytest.mark.parametrize(
    ("metric", "options", "is_measured"),
    [
        ("accuracy", {"task": "math"}, True),
        ("accuracy", {"task": "alignment"}, False),
        ("accuracy", {"verifier": {"kind": "length"}}, True),
        ("win_rate", {"task": "math"}, True),
        ("win_rate", {"reward": {"kind": "length"}}, True),
        ("win_rate", {}, False),
        ("mean_reward", {"task": "math"}, False),
    ],
)
def test_a_gate_needs_what_its_figure_is_measured_with(
    metric: str, options: dict[str, Any], is_measured: bool, rounds: dict[str, Any]
) -> None:
    content = {**with_stage(rounds, 2, options=options), "gate": {"metric": metric}}
    if is_measured:
        plan_of(content)
        return
    with pytest.raises(ConfigError, match=f"gate.metric: .* measures no {metric}; give it a "):
        plan_of(content)


def test_a_student_may_be_a_little_worse() -> None:
    rows: list[dict[str, Any]] = [
        {"round": n, "accuracy": value} for n, value in enumerate((0.5, 0.48))
    ]
    assert not decide(GateConfig(), rows, 0)["accepted"]
    assert decide(GateConfig(tolerance=0.02), rows, 0)["accepted"]
    rates: list[dict[str, Any]] = [{"round": 0}, {"round": 1, "win_rate": 0.49}]
    assert not decide(GateConfig(metric="win_rate"), rates, 0)["accepted"]
    with pytest.raises(ToaError, match="the evaluation of round 1 has no mean_reward"):
        decide(GateConfig(metric="mean_reward"), rows, 0)


def test_trainings_learn_from_earlier_rounds_again(rounds: dict[str, Any], stub: Seen) -> None:
    plan, _ = run_rounds({**rounds, "replay": {"rounds": 2, "share": 0.4}})
    first, second, third = (one for one in stub() if one["argv"][0] == "sft")
    out = plan.output
    assert option(first["argv"], "dataset_name") == f"{out}/round-1/synthesize"
    assert "--dataset_name" not in second["argv"] + third["argv"]
    assert second["config"]["datasets"] == [
        {"path": f"{out}/round-2/synthesize", "fraction": 0.6},
        {"path": f"{out}/round-1/synthesize", "fraction": 0.4},
    ]
    assert [
        (Path(part["path"]).parts[-2], part["fraction"]) for part in third["config"]["datasets"]
    ] == [("round-3", 0.6), ("round-2", 0.2), ("round-1", 0.2)]
    assert third["config"]["learning_rate"] == 0.1


@pytest.mark.parametrize("own", ["--dataset_name x", "--dataset-name x", "--dataset-name=x"])
def test_a_training_as_typed_in_a_shell_learns_from_earlier_rounds_too(
    own: str, rounds: dict[str, Any], stub: Seen, tmp_path: Path
) -> None:
    stub_file = Path(__file__).with_name("stub.py")
    text = f"python {stub_file} sft --config {tmp_path / 'sft.yaml'} {own}"
    content = with_stage(rounds, 1, run=None, config=None, options=None, name="sft", command=text)
    content = with_stage(content, 1, data="synthesize/sft")
    plan, _ = run_rounds({**content, "rounds": 2, "replay": {"rounds": 1}})
    second = [one for one in stub() if one["argv"][0] == "sft"][-1]
    assert [part["path"] for part in second["config"]["datasets"]] == [
        str(plan.output / f"round-{number}/synthesize/sft") for number in (2, 1)
    ]
    assert not any("--dataset" in word or word == "x" for word in second["argv"])
