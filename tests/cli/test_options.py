"""Options made from a configuration model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from toa_trl.cli.comparison_config import ComparisonConfig
from toa_trl.cli.config import SynthesisConfig
from toa_trl.cli.evaluation_config import EvaluationConfig
from toa_trl.cli.options import new_parser, read_config
from toa_trl.errors import ConfigError
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.iteration import IterationConfig
from toa_trl.serving.fleet import ServerConfig
from toa_trl.training.estimate.command import read_options
from toa_trl.utils.config import Config, validate
from toa_trl.utils.files import load_yaml

RUN = """
prompts: p.jsonl
agents: [{name: a, engine: scripted}, {name: b, engine: scripted}]
reward: {kind: length}
output_dir: runs/x
"""


def read(tmp_path: Path, *options: str, text: str = RUN) -> SynthesisConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return read_config(SynthesisConfig, ["--config", str(path), *options])


@pytest.mark.parametrize(
    "model", [SynthesisConfig, EvaluationConfig, ComparisonConfig, IterationConfig]
)
def test_help_has_every_key_at_100_columns(model: type[Config]) -> None:
    text = new_parser(model).format_help()
    assert [key for key in model.model_fields if f"--{key}" not in text] == []
    assert max(map(len, text.splitlines())) <= 100
    assert "docs/reference/configuration.md" in text


def test_help_names_types_and_defaults() -> None:
    text = " ".join(new_parser(SynthesisConfig).format_help().split())
    assert "[integer >= 1; default: 160]" in text
    assert "[list of mappings; required]" in text
    assert '[one of local, ray; default: "local"]' in text


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--budget", "40"], "budget", 40),
        (["--budget=40"], "budget", 40),
        (["--plays-in-flight", "3"], "plays_in_flight", 3),
        (["--patience_s", "1e3"], "patience_s", 1000.0),
        (
            ["--agents", "[{name: c, engine: scripted}]"],
            "agents",
            [{"name": "c", "engine": "scripted"}],
        ),
        (["--sampling.temperature", "0.3"], "sampling", {"temperature": 0.3}),
        (
            ["--sampling.stop=[x]", "--sampling.max_tokens", "5"],
            "sampling",
            {"stop": ["x"], "max_tokens": 5},
        ),
        (["--hub_private_repo"], "hub_private_repo", True),
        (["--hub_private_repo", "false"], "hub_private_repo", False),
        (["--task", "{name: math}"], "task", {"name": "math"}),
        (["--task", "math"], "task", "math"),
        (["--prompts", "7"], "prompts", "7"),
    ],
)
def test_options_override_the_file(
    tmp_path: Path, options: list[str], key: str, value: Any
) -> None:
    assert getattr(read(tmp_path, *options), key) == value


def test_a_key_of_one_agent(tmp_path: Path) -> None:
    config = read(tmp_path, "--agents[1].latency_s", "2")
    assert config.agents[0] == {"name": "a", "engine": "scripted"}
    assert config.agents[1] == {"name": "b", "engine": "scripted", "latency_s": 2}


def test_the_home_folder_in_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    text = """
    prompts: ~/p.jsonl
    task: {name: alignment, templates: ~/templates}
    agents: [{name: a, engine: recorded, path: ~/a.jsonl}]
    reward: {kind: process, model: ~/model}
    decontaminate: [~/test.jsonl]
    output_dir: ~/runs
    env: {OWN_CACHE: ~/cache}
    """
    monkeypatch.setattr("toa_trl.cli.config.Index", lambda files: None)
    monkeypatch.delenv("OWN_CACHE", raising=False)
    options = ["--output_dir=~/other", "--agents[0].path=~/b.jsonl", "--endpoints", ""]
    config = read(tmp_path, *options, text=text)
    assert (config.prompts, config.output_dir) == ("/home/ada/p.jsonl", "/home/ada/other")
    assert config.task == {"name": "alignment", "templates": "/home/ada/templates"}
    assert config.agents[0]["path"] == "/home/ada/b.jsonl"
    assert config.reward["model"] == "/home/ada/model"
    assert config.decontaminate == ["/home/ada/test.jsonl"]
    assert os.environ.pop("OWN_CACHE") == "/home/ada/cache"


def test_env_sets_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOA_TRL_TEST", "before")
    read(tmp_path, text=RUN + "env: {TOA_TRL_TEST: 3}")
    assert os.environ["TOA_TRL_TEST"] == "3"


@pytest.mark.parametrize("env", ['{"": 1}', '{"A=B": 1}', '{"A\\0": 1}', '{"A": "\\0"}', "{1: 2}"])
def test_what_cannot_be_an_environment_variable_is_named(env: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^env\W"):
        read(tmp_path, text=f"{RUN}env: {env}")
    path = tmp_path / "sft.yaml"
    path.write_text(f"output_dir: out\nenv: {env}")
    with pytest.raises(ConfigError, match=r"^env\W"):
        read_options(["--recipe", "sft", "--config", str(path)])
    server = {"name": "n", "model": "m", "port": 8001}
    for kind, keys in ((StageConfig, {"run": "sft"}), (ServerConfig, server)):
        with pytest.raises(ConfigError, match=r"^env\W"):
            validate(kind, {**keys, "env": load_yaml(env)})
    assert not {"", "A=B", "A"} & {*os.environ}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budgett", "3"], "unknown option '--budgett' .did you mean '--budget'"),
        (["--agents", "[{"], "--agents: neither YAML nor JSON"),
        (["--budget", "many"], "budget: must be an integer, not 'many'"),
        (["--agents[5].name", "x"], r"there is no entry '5'; there are \d, counted from 0"),
        (["--agents[-1].name", "x"], r"--agents\[-1\]\.name: there is no entry '-1'; there are"),
        (["--agents[0].name.first", "x"], r"--agents\[0\].*: name is '.*', which has no keys"),
        (["--prompts.column", "x"], "--prompts.column: prompts is '.*', which has no keys"),
        (["--sampling.temprature", "1"], "did you mean 'temperature'"),
        (["--samplin.temperature", "1"], "unknown key 'samplin'.*did you mean 'sampling'"),
        (["--sampling.temperature"], "a value is missing"),
        (["--budget"], "expected one argument"),
        (["extra"], "unrecognized arguments: extra"),
    ],
)
def test_a_mistake_is_named_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        read(tmp_path, *options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("option", "headers"),
    [
        ("--agents[0].extra-body.x-key", {"x-key": 2, "y_key": 1}),
        ("--agents[0].extra_body.y-key", {"x-key": 1, "y_key": 2}),
        ("--agents[0].extra_body.z-key", {"x-key": 1, "y_key": 1, "z_key": 2}),
    ],
)
def test_hyphens_of_nested_keys_stay_where_the_file_has_them(
    tmp_path: Path, option: str, headers: dict[str, int]
) -> None:
    agents = "agents: [{name: a, engine: openai, model: m, extra_body: {x-key: 1, y_key: 1}}]"
    text = "\n".join(agents if line.startswith("agents:") else line for line in RUN.splitlines())
    config = read(tmp_path, option, "2", text=text)
    assert config.agents[0]["extra_body"] == headers


def test_an_unknown_key_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown key 'budegt'.*'budget'"):
        read(tmp_path, text=RUN + "budegt: 3")
