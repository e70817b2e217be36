"""The pure parts of iterating.

What a plan refuses, what every round is given, and what its rows say.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait
from toa_trl.cli.main import run as command
from toa_trl.errors import ConfigError
from toa_trl.models.sources import last_checkpoint
from toa_trl.pipeline import Plan, run_plan, stages
from toa_trl.pipeline.identity import identity_of
from toa_trl.pipeline.iteration import IterationConfig, iteration_plan
from toa_trl.pipeline.results import round_rows
from toa_trl.pipeline.steps import Runner, Step
from toa_trl.utils.config import validate


@pytest.fixture(name="parts")
def _parts(prompt_files: None, tmp_path: Path) -> dict[str, Any]:
    """What a plan is made of: six prompts, two held out."""
    (tmp_path / "sft.yaml").write_text("learning_rate: 0.1\n")
    stages = [
        {"name": name, "data": name, "command": f"python {name}.py"} for name in ("sft", "dpo")
    ]
    stages[0]["command"] += f" --config {tmp_path / 'sft.yaml'}"
    return {
        "student": {
            "name": "student",
            "engine": "transformers",
            "model": "untrained",
            "max_batch_size": 7,
        },
        "synthesize": {
            "prompts": str(tmp_path / "prompts.jsonl"),
            "agents": [{"name": "a", "engine": "scripted"}],
            "reward": {"kind": "length"},
        },
        "train": stages,
        "evaluate": {"prompts": str(tmp_path / "heldout.jsonl")},
        "output_dir": str(tmp_path / "out"),
    }


def plan_of(parts: dict[str, Any], **keys: Any) -> Plan:
    """The plan of an iteration of one round, if nothing else is said."""
    return iteration_plan(validate(IterationConfig, {"rounds": 1, **parts, **keys}))


def synthesis(plan: Plan, number: int) -> dict[str, Any]:
    return plan.content(plan.stages[0], number)


def evaluation(plan: Plan, number: int) -> dict[str, Any]:
    return plan.content(plan.stages[-1], number)


def with_key(parts: dict[str, Any], part: str, **keys: Any) -> dict[str, Any]:
    return {**parts, part: {**parts[part], **keys}}


def test_every_round_has_its_own_seed_prompts_and_student(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(parts, seed=5, prompts_per_round=2)
    first, third = synthesis(plan, 1), synthesis(plan, 3)
    assert [agent["name"] for agent in first["agents"]] == ["a", "student"]
    assert first["agents"][1] == parts["student"]
    assert third["agents"][1]["model"] == str(tmp_path / "out/round-2/dpo")
    assert [
        (config["seed"], config["num_prompts"], config["skip_prompts"]) for config in (first, third)
    ] == [
        (5, 2, 0),
        (7, 2, 4),
    ]
    models = evaluation(plan, 2)["models"]
    assert [(model["name"], Path(model["model"]).parts[-2:]) for model in models] == [
        ("base", ("untrained",)),
        ("round-1", ("round-1", "dpo")),
        ("round-2", ("round-2", "dpo")),
    ]
    assert evaluation(plan, 2)["baseline"] == "base"


def test_the_untrained_student_need_not_be_an_agent(parts: dict[str, Any]) -> None:
    plan = plan_of(parts, student_from_round=2)
    assert [
        [agent["name"] for agent in synthesis(plan, number)["agents"]] for number in (1, 2)
    ] == [
        ["a"],
        ["a", "student"],
    ]
    assert "num_prompts" not in synthesis(plan, 2)


def test_the_student_of_a_round_is_whole(parts: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(parts)
    folder = tmp_path / "out/round-1/dpo"
    assert plan.model(1) == str(folder)
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    assert plan.model(1) == f"{folder}-merged"


@pytest.mark.parametrize(
    ("part", "keys", "message"),
    [
        (
            "synthesize",
            {"serach": "toa"},
            "synthesize: unknown key 'serach'.*did you mean 'search'",
        ),
        ("synthesize", {"seed": 3}, r"synthesize\.seed: is set by the round"),
        ("synthesize", {"num_prompts": 3}, r"synthesize\.num_prompts: is set by the round"),
        ("synthesize", {"agents": "a"}, r"synthesize\.agents: must be a list"),
        (
            "synthesize",
            {"agents": [{"name": "student", "engine": "scripted"}]},
            "different from each other and from the student's",
        ),
        ("synthesize", {"agents": [{"engine": "scripted"}]}, "names must be different"),
        ("evaluate", {"models": []}, r"evaluate\.models: is set by the round"),
        (
            "evaluate",
            {"num_sampels": 2},
            "evaluate: unknown key 'num_sampels'.*did you mean 'num_samples'",
        ),
        (
            "student",
            {"engine": "openai"},
            r"student\.engine: must be transformers or vllm, not 'openai'",
        ),
    ],
)
def test_mistakes_in_a_part_are_named(
    parts: dict[str, Any], part: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(with_key(parts, part, **keys), prompts_per_round=2)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"name": "../sft"}, "cannot be the name of a folder"),
        ({"name": "synthesis"}, "cannot be the name of a folder"),
        ({"name": "dpo-merged"}, "cannot be the name of a folder"),
        ({"data": "rollouts"}, r"train\[0\]\.data: must be one of 'sft' or 'dpo', not 'rollouts'"),
        ({"command": "no-such-launcher sft.py"}, r"train\[0\]\.command: .* cannot be started"),
        ({"command": "python 'sft.py"}, "No closing quotation"),
        ({"command": "python sft.py --config none.yaml"}, "the file none.yaml does not exist"),
        ({"comand": "python"}, r"train\[0\]: unknown key 'comand'.*did you mean 'command'"),
        ({"name": "dpo"}, "train: 2 entries have the name 'dpo'"),
    ],
)
def test_mistakes_in_a_stage_are_named(
    parts: dict[str, Any], stage: dict[str, Any], message: str
) -> None:
    first, *others = parts["train"]
    with pytest.raises(ConfigError, match=message):
        plan_of({**parts, "train": [{**first, **stage}, *others]})


@pytest.mark.parametrize("part", ["student", "synthesize", "train", "evaluate"])
def test_a_part_of_another_kind_is_refused(parts: dict[str, Any], part: str) -> None:
    wrong: list[Any] = ["text", None, []]
    for value in wrong:
        with pytest.raises(ConfigError, match=part):
            plan_of({**parts, part: value})


def test_prompts_must_suffice_and_held_out_ones_be_new(parts: dict[str, Any]) -> None:
    assert identity_of(plan_of(parts, prompts_per_round=3, rounds=2))
    with pytest.raises(
        ConfigError, match="prompts_per_round: 3 rounds need 9 prompts; there are 6"
    ):
        identity_of(plan_of(parts, prompts_per_round=3, rounds=3))
    same = with_key(parts, "evaluate", prompts=parts["synthesize"]["prompts"])
    with pytest.raises(
        ConfigError, match="evaluate: 6 of its prompts are among those of synthesize, such as 'p0'"
    ):
        identity_of(plan_of(same, rounds=1))


def test_what_decides_the_rounds_is_told_from_what_does_not(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    identity = identity_of(plan_of(parts, rounds=1))
    json.dumps(identity)
    assert identity_of(plan_of(parts, rounds=5)) == identity
    assert identity_of(plan_of(with_key(parts, "student", max_batch_size=9), rounds=1)) == identity
    assert (
        identity_of(plan_of(with_key(parts, "synthesize", prompts_in_flight=9), rounds=1))
        == identity
    )
    assert identity_of(plan_of(parts, seed=1, rounds=1)) != identity
    assert identity_of(plan_of(with_key(parts, "synthesize", budget=9), rounds=1)) != identity
    (tmp_path / "sft.yaml").write_text("learning_rate: 0.2\n")
    assert identity_of(plan_of(parts, rounds=1))["train"]["sft"]["configurations"] == {
        str(tmp_path / "sft.yaml"): {"learning_rate": 0.2}
    }


def test_another_configuration_is_refused_and_the_difference_shown(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/iteration.json").write_text(json.dumps(identity_of(plan_of(parts, rounds=1))))
    (tmp_path / "sft.yaml").write_text("learning_rate: 0.2\n")
    with pytest.raises(
        ConfigError, match=r"train\.sft\.configurations\..*learning_rate: 0\.1 -> 0\.2"
    ):
        wait(run_plan(plan_of(parts)))


def test_rows_are_of_rounds_and_against_the_first() -> None:
    student = {
        name: {"accuracy": share, "interval": [0.1, 0.9], "k": 4}
        for name, share in (("base", 0.3), ("round-1", 0.5), ("round-2", 0.4))
    }
    rates = [
        {"model": name, "by": by, "win_rate": rate, "interval": [rate, 1.0], "baseline": "base"}
        for name, by, rate in (
            ("round-1", "verifier", 0.6),
            ("round-1", "reward", 0.7),
            ("round-2", "verifier", 0.8),
        )
    ]
    first, second, third = round_rows({"student": student, "win_rates": rates})
    assert first == {"round": 0, "accuracy": 0.3, "interval": [0.1, 0.9]}
    assert (second["win_rate"], second["win_rate_by"]) == (0.7, "reward")
    assert (third["win_rate"], third["win_rate_interval"], third["win_rate_by"]) == (
        0.8,
        [0.8, 1.0],
        "verifier",
    )


def test_a_checkpoint_that_a_kill_has_cut_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nothing") is None
    for step, state in (
        (9, '{"global_step": 9}'),
        (10, '{"global_step": 10}'),
        (11, '{"global_'),
        (12, None),
    ):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_an_unfinished_stage_says_how_it_ended(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [sys.executable, "-c", "print('one')\nraise SystemExit('two')"]
    monkeypatch.setattr(stages, "TOA_TRL", argv)
    with pytest.raises(
        Exception,
        match=r"round 0, evaluation: ended with code 1; .*evaluation.log ends:\n  one\n  two",
    ):
        wait(run_plan(plan_of(parts), lambda line: None))


@pytest.mark.parametrize("name", ["report.html", "results.json", "iteration.json", "round-1"])
def test_rounds_refuse_a_folder_with_files_of_others(
    name: str, parts: dict[str, Any], tmp_path: Path
) -> None:
    output = plan_of(parts).output
    output.mkdir(parents=True, exist_ok=True)
    (output / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name}: was not written by toa_trl"):
        wait(run_plan(plan_of(parts), lambda line: None))
    assert {path.name for path in output.iterdir()} == {name}
    assert (output / name).read_text() == "mine"


def test_a_stage_that_restarts_deletes_nothing_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "round-1" / "sft"
    runner = Runner(lambda line: None, 0)
    make = f"import pathlib; pathlib.Path({str(folder)!r}).mkdir(parents=True); "
    argv = [sys.executable, "-c", f"{make}pathlib.Path({str(folder / 'done')!r}).touch()"]
    for left, aside in (("lineage.json", 0), ("mine.txt", 1), ("mine.txt", 2)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / left).write_text('{"base_model": null, "data": []}')
        wait(runner.run(Step("sft", folder, argv, "done", restart=True)))
        assert (folder / "done").exists()
        assert len(list(folder.parent.glob("sft.interrupted-*/mine.txt"))) == aside


def test_the_status_of_rounds_names_the_stages_that_have_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a folder of an earlier version, which has no list of its stages."""
    (tmp_path / "iteration.json").write_text("{}")
    for number, (name, facts) in enumerate(
        [("round-0/evaluation", '{"seconds": 90.0}'), ("round-1/synthesis", None)]
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        folder.with_suffix(".log").write_text("log")
        os.utime(folder.with_suffix(".log"), (number, number))
        if facts:
            (folder / "complete.json").write_text(facts)
    command(["status", str(tmp_path)])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path}: not running"
    assert lines[0].split() == ["round-0/evaluation", "complete,", "00:01:30"]
    assert lines[1].split()[:2] == ["round-1/synthesis", "interrupted"]
