"""The command toa-trl: its list of commands, and how one is chosen and launched."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import toa_trl
from toa_trl.cli import launch
from toa_trl.cli.arguments import find_config, installed
from toa_trl.cli.launch import OF_TRAINERS, split_launcher_options
from toa_trl.cli.main import COMMANDS, main, run
from toa_trl.errors import ConfigError
from toa_trl.utils.registry import load_object

ROOT = Path(__file__).parents[2]


def test_help_lists_the_commands_in_the_order_of_the_pipeline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    listed = [
        line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] != "toa-trl"
    ]
    assert listed == list(COMMANDS)
    assert max(map(len, lines)) <= 100


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"toa-trl {toa_trl.__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["synthesise"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "unknown command 'synthesise' (did you mean 'synthesize'?)" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists(name: str) -> None:
    assert callable(load_object(name, COMMANDS[name][0]))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("[a-z]*.py")), ids=lambda path: path.stem
)
def test_help_names_a_command_and_a_configuration_of_the_installation(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert installed(description) == description  # of a script of a clone
    monkeypatch.setattr(sys, "argv", [f"toa-trl {path.stem}"])
    text = installed(description)
    command = re.search(rf"^toa-trl {path.stem} --config (\S+)", text, re.MULTILINE)
    assert command
    assert find_config(command[1]).is_file()
    assert "recipes/" not in text


def test_help_is_that_of_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["synthesize", "--help"])
    output = capsys.readouterr().out
    assert "\ntoa-trl synthesize --config demo/synthesize\n" in output
    assert "recipes/" not in output


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from toa_trl.cli.main import main; main(['--help']); main(['--version']); "
        "print([m for m in ('torch', 'trl', 'transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status"], "required: run"),
        (["data", "runs/x", "--policy", "best"], "invalid choice: 'best'"),
        (["data", "runs/x", "--top_kk", "2"], "unknown option '--top_kk' .did you mean '--top_k'"),
        (["schema", "sft"], "invalid choice: 'sft'"),
        (["sft", "--accelerate_config", "zero33"], "--accelerate_config: .*did you mean 'zero3'"),
        (["sft", "--num_processes"], "--num_processes: a value is missing"),
    ],
)
def test_a_mistake_on_the_command_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        run(arguments)
    assert "\n" not in str(raised.value)


def test_options_of_the_launcher_are_split_from_those_of_the_training() -> None:
    arguments = [
        "--accelerate_config",
        "zero3",
        "--num-processes=2",
        "--config",
        "x.yaml",
        "--debug",
        "y",
    ]
    launcher, rest = split_launcher_options(arguments)
    config = str(ROOT / "toa_trl/accelerate_configs/zero3.yaml")
    assert launcher == ["--config_file", config, "--num_processes", "2"]
    assert rest == ["--config", "x.yaml", "--debug", "y"]


def test_a_training_runs_in_this_process_without_options_of_the_launcher() -> None:
    ran: list[Sequence[str]] = []
    launch.run_training("sft", ["--config", "x.yaml"], ran.append)
    assert ran == [["--config", "x.yaml"]]


def test_a_launched_training_gets_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def fake_run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", fake_run)
    with pytest.raises(SystemExit) as stopped:
        launch.run_training("sft", ["--num_processes", "2", "--max_steps", "1"], lambda rest: None)
    assert stopped.value.code == 3
    assert commands[0][3:] == [
        "--quiet",
        "--num_processes",
        "2",
        "-m",
        "toa_trl",
        "sft",
        "--max_steps",
        "1",
    ]


def test_options_that_accelerate_and_trl_share_go_to_trl() -> None:
    from dataclasses import fields

    from trl import DPOConfig, KTOConfig, ModelConfig, RewardConfig, ScriptArguments, SFTConfig

    kinds = (SFTConfig, DPOConfig, RewardConfig, KTOConfig, ModelConfig, ScriptArguments)
    names = {f"--{field.name}" for kind in kinds for field in fields(kind)}
    assert names & launch._accelerate_options().keys() == set()
    assert names >= OF_TRAINERS - {"--help"}
