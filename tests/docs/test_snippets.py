"""What README and docs/ show can be typed as it stands: every command, configuration and example.

Commands are checked against the options of their command, configurations against their model; the
parts in own_parts.md run in tests/test_own_parts.py. Commands that sample, or read a run, are
executed with scripted agents; the README's way from a prompts file to an evaluated student with the
bundled models in the place of those of the Hub.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from scripts.reference_pages import help_of
from tests.helpers import EchoAgent
from tests.integration.conftest import ENVIRONMENT
from toa_trl import TOASampler
from toa_trl.cli.main import COMMANDS, TRAININGS
from toa_trl.cli.main import run as toa_trl
from toa_trl.cli.schema import CONFIGURATIONS
from toa_trl.demo.world import DATA
from toa_trl.utils.config import Config, validate
from toa_trl.utils.registry import load_object

ROOT = Path(__file__).parents[2]
GENERATED = {ROOT / f"docs/reference/{n}.md" for n in ("commands", "columns", "configuration")}
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - GENERATED)]
WEIGHTS = DATA.parent / "weights"
BUNDLED = {
    "Qwen/Qwen2.5-0.5B-Instruct": str(WEIGHTS / "student"),
    "Qwen/Qwen2.5-1.5B-Instruct": str(WEIGHTS / "add"),
    "HuggingFaceTB/SmolLM2-360M-Instruct": str(WEIGHTS / "generalist"),
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": str(WEIGHTS / "reward_hackable"),
    "device: cuda, dtype: bfloat16": "device: cpu",
}
"""Names in the README -> what stands for them here."""
REQUIRED: dict[str, dict[str, Any]] = {
    "synthesize": {
        "prompts": "prompts.jsonl",
        "output_dir": "runs/x",
        "agents": [{"name": "a", "engine": "scripted"}],
        "reward": {"kind": "length"},
    },
    "evaluate": {
        "prompts": "prompts.jsonl",
        "results": "x.json",
        "models": [{"name": "a", "engine": "scripted"}],
    },
    "run": {"output_dir": "runs/x", "stages": []},
    "fleet": {"endpoints": "e.yaml", "servers": []},
}
"""What an excerpt of a configuration lacks."""
EXECUTED = {"synthesize", "pilot", "data", "show", "status", "calibrate"}
ELSEWHERE = {"--push_to_hub", "--runner", "demo/synthesize", "runs/few", "runs/one-gpu"}
"""Parts of commands that need a hub, Ray or models, and are executed by other tests."""
OPTIONS_OF_TRL = {"datasets", "eval_strategy", "report_to", "use_peft", "resume_from_checkpoint"}


class Block(NamedTuple):
    """A block of code."""

    language: str
    text: str
    place: str  # page:line


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^ *```(\w+)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        line = text[: match.start()].count("\n") + 1
        yield Block(match[1], match[2], f"{page.relative_to(ROOT)}:{line}")


def of(language: str, pages: list[Path] = PAGES) -> list[Block]:
    """Return the blocks in a language."""
    return [block for page in pages for block in blocks(page) if block.language == language]


def at(block: Block) -> str:
    """Return the name of a test."""
    return block.place


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of toa-trl."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for number, word in enumerate(words):
            if word.rpartition("/")[2] == "toa-trl":
                yield words[number + 1 :]


@cache
def options_of(command: str) -> set[str]:
    """Return the options in the help of a command."""
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", help_of(command).replace("-", "-")))


@pytest.mark.parametrize("block", of("bash"), ids=at)
def test_a_command_exists_with_its_options(block: Block) -> None:
    for command, *arguments in commands(block.text):
        assert command in COMMANDS or command == "--help", f"toa-trl {command}"
        if command in TRAININGS or command == "estimate":
            continue  # options of TRL: tests/training/test_trl_compatibility.py
        given = {
            argument.partition("=")[0].partition(".")[0]
            for argument in arguments
            if argument.startswith("--")
        }
        known = options_of(command)
        assert {option for option in given if option not in known} == set(), command


def executed(block: Block) -> list[list[str]]:
    """Return the commands of a block that can be executed with scripted agents."""
    return [
        words for words in commands(block.text) if words[0] in EXECUTED and not ELSEWHERE & {*words}
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts.jsonl, run.yaml and a finished run, runs/my-run."""
    folder = tmp_path_factory.mktemp("docs")
    rows = [
        {"id": f"apples-{number}", "prompt": f"How many are {number} apples?", "reference": "Some."}
        for number in range(1, 21)
    ]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    agents = [{"name": name, "engine": "scripted"} for name in "ab"]
    reward = {"kind": "function", "function": "toa_trl.rewards.function:length_reward"}
    config = {"prompts": str(folder / "prompts.jsonl"), "budget": 17, "agents": agents}
    config |= {"reward": reward, "output_dir": "runs/first"}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    output = str(folder / "runs/my-run")
    toa_trl(["synthesize", "--config", str(folder / "run.yaml"), "--output_dir", output])
    return folder


@pytest.mark.parametrize("block", [block for block in of("bash") if executed(block)], ids=at)
def test_a_command_that_samples_or_reads_a_run_can_be_executed(
    block: Block, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(runs, tmp_path / "own"))
    for given in executed(block):
        toa_trl(given)
        output = [new for option, new in pairwise(given) if option in ("--output", "--output_dir")]
        for folder in map(Path, output):
            assert (folder / "README.md").is_file(), folder


def models() -> dict[str, type[Config]]:
    """Return the models of the configuration files."""
    return {name: load_object("test", target) for name, (target, _) in CONFIGURATIONS.items()}


@pytest.mark.parametrize(
    "block", [block for block in of("yaml") if "own_parts" not in block.place], ids=at
)
def test_a_configuration_is_valid(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    served = {"model": "m", "base_url": ["http://localhost:8001/v1"]}
    fleet = {"agents": {"llama": served, "qwen": served}, "reward": served}
    (tmp_path / "endpoints.yaml").write_text(yaml.safe_dump(fleet))
    for shown in yaml.safe_load_all(block.text):
        entries = shown if isinstance(shown, list) else [shown]
        for entry in entries:
            if "run" in entry:
                entry = {"stages": [entry]}
            keys = set(entry)
            if keys & OPTIONS_OF_TRL:
                continue
            fitting = {n: model for n, model in models().items() if keys <= {*model.model_fields}}
            assert fitting, f"no configuration has the keys {sorted(keys)}"
            name = next((name for name in REQUIRED if name in fitting), next(iter(fitting)))
            validate(fitting[name], {**REQUIRED.get(name, {}), **entry}, block.place)


@pytest.mark.parametrize("block", of("python"), ids=at)
def test_an_example_is_valid_python(block: Block) -> None:
    compile(block.text, block.place, "exec")


def test_the_example_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = of("python", [ROOT / "README.md"])

    class Bundled(TOASampler):
        def __init__(self, agents: list[dict[str, Any]], *args: Any, **kwargs: Any) -> None:
            super().__init__([EchoAgent(agent["name"]) for agent in agents], *args, **kwargs)

    monkeypatch.setattr("toa_trl.TOASampler", Bundled, raising=False)
    found: dict[str, Any] = {}
    exec(compile(example.text, example.place, "exec"), found)
    assert len(found["rollouts"]) == 2
    assert len(found["rollouts"].to_sft()) == 2


def test_the_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    assert {link for link in links if not (ROOT / link).exists()} == set()
    assert len(text.splitlines()) <= 130


@pytest.mark.heavy
def test_the_way_of_the_readme_from_prompts_to_an_evaluated_student(
    tmp_path: Path,
) -> None:
    (prompts,) = of("json", [ROOT / "README.md"])
    (tmp_path / "prompts.jsonl").write_text(prompts.text)
    (config,) = of("yaml", [ROOT / "README.md"])
    (tmp_path / "run.yaml").write_text(bundled(config.text))
    done = []
    for block in of("bash", [ROOT / "README.md"]):
        for name, *arguments in commands(bundled(block.text)):
            if name in ("view", "push", "pilot"):  # tests of their own
                continue
            extra = ["--use_cpu", "--bf16", "false"] if name == "sft" else []
            typed = [sys.executable, "-m", "toa_trl", name, *arguments, *extra]
            ended = subprocess.run(typed, cwd=tmp_path, env=ENVIRONMENT, capture_output=True)
            assert ended.returncode == 0, f"toa-trl {name}: {ended.stderr.decode()}"
            done.append(name)
    assert done == ["synthesize", "synthesize", "sft", "evaluate"]
    assert (tmp_path / "runs/first/report.html").is_file()
    assert (tmp_path / "runs/results.json").is_file()


def bundled(text: str) -> str:
    """Return a text with bundled models in the place of those of the Hub."""
    for name, here in BUNDLED.items():
        text = text.replace(name, here)
    return text
