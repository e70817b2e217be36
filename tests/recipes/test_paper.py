"""The paper's experiments: full-scale configurations are valid, and every one runs when tiny."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.recipes.test_configs import trained
from toa_trl.cli import comparison, reproduce
from toa_trl.cli.main import run as toa_trl
from toa_trl.cli.options import read_config
from toa_trl.cli.reproduce import Experiment, experiments, run_tiny, steps_of
from toa_trl.cli.schema import CONFIGURATIONS
from toa_trl.errors import ConfigError, ToaError
from toa_trl.search import make_search
from toa_trl.serving.fleet import load_fleet
from toa_trl.tasks import make_task
from toa_trl.utils.registry import load_object

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes/configs/paper"
EXPERIMENTS = experiments()
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.stem != "experiment")
each = pytest.mark.parametrize("name", EXPERIMENTS)


def commands(experiment: Experiment) -> list[list[str]]:
    """Every command of an experiment, those of its servers too, without toa-trl."""
    servers = [shlex.split(command) for command in experiment.servers]
    return [argv[1:] for argv in servers if argv[0] == "toa-trl"] + [
        step.argv for step in steps_of(experiment)
    ]


def test_every_experiment_of_the_paper_is_there() -> None:
    assert EXPERIMENTS.keys() == {
        *("alpaca_eval", "arena_hard", "wmt22", "math", "scaling", "ultrafeedback", "students")
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_first_line_is_its_command_and_an_experiment_uses_it(path: Path) -> None:
    name = f"paper/{path.parent.name}/{path.stem}"
    first = path.read_text().partition("\n")[0]
    assert first.startswith("# ")
    assert f"toa-trl {'' if 'fleet' not in path.stem else 'serve-agents '}" in first
    assert f"--config {name}" in first
    used = [
        argv[argv.index("--config") + 1]
        for argv in commands(EXPERIMENTS[path.parent.name])
        if "--config" in argv
    ]
    assert name in used


@each
def test_every_full_scale_command_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command, *options in commands(EXPERIMENTS[name]):
        if command == "serve-agents":
            load_fleet(FOLDER / f"{options[1].removeprefix('paper/')}.yaml")
        elif command in CONFIGURATIONS:
            config: Any = read_config(load_object("schema", CONFIGURATIONS[command][0]), options)
            make_task(config.task)
            agents = [agent["name"] for agent in getattr(config, "agents", [])]
            if command == "compare":
                for budget, entry in ((b, e) for b in config.budgets for e in config.searches):
                    make_search(entry.name, agents, budget, **entry.params)
            elif command == "synthesize":
                make_search(config.search, agents, config.budget, **config.search_params)
        elif command in ("sft", "dpo"):
            given = dict(zip(options[::2], options[1::2], strict=True))
            file = FOLDER / f"{given['--config'].removeprefix('paper/')}.yaml"
            found = trained(command, file, monkeypatch)
            for key, value in yaml.safe_load(file.read_text()).items():
                expected = [value] if key == "report_to" else value  # one tracker is read as a list
                assert found[key] == expected, key
        else:
            assert command == "convert"


@each
def test_the_readme_lists_every_command(name: str) -> None:
    text = (FOLDER / name / "README.md").read_text()
    experiment = EXPERIMENTS[name]
    for command in [*experiment.servers, *experiment.commands]:
        assert command in text, command
    assert "How this was estimated" in text.replace("\n", " ")


@each
def test_its_page_includes_the_readme_and_names_the_differences(name: str) -> None:
    page = (ROOT / "docs/paper" / f"{name}.md").read_text()
    assert f"recipes/configs/paper/{name}/README.md" in page
    assert "## What will differ" in page
    assert f"[{name}]({name}.md)" in (ROOT / "docs/paper/index.md").read_text()


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("results.json"))]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without figures and reports, which have their own tests."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(comparison, "save_figures", lambda *_: None)
    monkeypatch.setattr("toa_trl.report.page.write_report", lambda *_: None)


def run_all(name: str, folder: Path) -> None:
    toa_trl(["reproduce", name, "--scale", "tiny", "--output", str(folder)])


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.heavy] if name == "wmt22" else [])
        for name in EXPERIMENTS
        if name != "students"
    ],
)
def test_it_runs_at_tiny_scale_and_resumes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(name, tmp_path)
    full = [argv for argv in commands(EXPERIMENTS[name]) if argv[0] == "compare"]
    rows = [row for part in results(tmp_path) for row in part.get("searches", [])]
    if full:
        config: Any = read_config(load_object("s", CONFIGURATIONS["compare"][0]), full[0][1:])
        assert {row["name"] for row in rows} == set(config.compared)
        assert all(row["num_problems"] == 2 for row in rows)
    else:
        datasets = {path.parent.parent.name for path in tmp_path.rglob("dpo/*.parquet")}
        assert {"toa", "rand_qwen", "prs_llama", "parallel", "sequential", "moa"} <= datasets
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run_all(name, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(EXPERIMENTS[name].commands)
    assert all(line.endswith("# done before") for line in said)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.heavy
def test_students_are_trained_and_evaluated_at_tiny_scale(tmp_path: Path) -> None:
    run_all("students", tmp_path)
    (found,) = results(tmp_path / "students")
    assert {"base", "sft_toa", "sft_moa", "dpo_toa", "gpt4_1106_preview"} <= found["student"].keys()
    assert found["win_rates"]


def test_a_step_that_failed_is_repeated_and_a_changed_configuration_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("a: 1")
    experiment = Experiment(
        title="t",
        source="s",
        measured="m",
        commands=[f"toa-trl compare --config {config}", "toa-trl convert x"],
    )
    ran: list[str] = []

    def step(step: reproduce.Step) -> None:
        ran.append(step.argv[0])
        if len(ran) == 2:
            raise ToaError("stopped")

    with pytest.raises(ToaError):
        reproduce.run_steps(experiment, tmp_path, step)
    reproduce.run_steps(experiment, tmp_path, step)
    assert ran == ["compare", "convert", "convert"]
    config.write_text("a: 2")
    reproduce.run_steps(experiment, tmp_path, step)
    assert ran[3:] == ["compare"]


def test_a_full_step_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToaError, match="toa-trl convert ended with code 2"):
        reproduce.run_full(reproduce.Step(["convert", "--nothing"]))


def test_the_list_and_one_experiment_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    toa_trl(["reproduce"])
    said = capsys.readouterr().out
    assert all(name in said for name in EXPERIMENTS)
    assert max(map(len, said.splitlines())) <= 100
    toa_trl(["reproduce", "students", "--show"])
    said = capsys.readouterr().out
    assert "toa-trl reproduce ultrafeedback  # first" in said
    assert "toa-trl dpo --accelerate_config zero3" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["alpaca"], "unknown experiment 'alpaca' (did you mean 'alpaca_eval'?)"),
        (["math", "--output", "x"], "--output: needs --scale tiny"),
    ],
)
def test_mistakes_of_reproduce(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        toa_trl(["reproduce", *argv])


def test_a_data_set_without_bundled_rows_is_named(tmp_path: Path) -> None:
    argv = steps_of(EXPERIMENTS["math"])[0].argv
    with pytest.raises(ConfigError, match="'other/set' has no bundled rows"):
        run_tiny(reproduce.Step([*argv, "--prompts", "other/set"]), tmp_path)
