"""What README and docs/ show can be typed as it stands: options, configurations and links.

Commands are executed in test_commands.py, examples in test_examples.py.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.reference_pages import help_of
from tests.docs.snippets import PAGES, ROOT, Block, at, blocks, commands, of, sentences
from toa_trl.cli.main import COMMANDS, TRAININGS
from toa_trl.cli.schema import CONFIGURATIONS
from toa_trl.utils.config import Config, validate
from toa_trl.utils.registry import load_object

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
LINKING = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "RELEASING.md", "SECURITY.md"))]
IGNORED = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
OF_ALL = {"--help", "--version"}
OPTIONS_OF_TRL = {"datasets", "eval_strategy", "report_to", "use_peft", "resume_from_checkpoint"}


@cache
def options_of(command: str) -> set[str]:
    """Return the options in the help of a command."""
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", help_of(command).replace("-", "-")))


def printed_commands(page: Path) -> str:
    """Return the commands of a page, those in its sentences and its output among them."""
    text = page.read_text(encoding="utf-8")
    in_output = re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    in_blocks = [block.text for block in blocks(page) if block.language == "bash"]
    return "\n".join([*in_blocks, *in_output, *sentences(page)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist_with_their_options(page: Path) -> None:
    for command, *arguments in commands(printed_commands(page)):
        assert command in COMMANDS or command in OF_ALL, f"toa-trl {command}"
        if command in TRAININGS or command == "estimate":
            continue  # options of TRL: tests/training/test_trl_compatibility.py
        given = {
            argument.partition("=")[0].partition(".")[0].partition("[")[0]
            for argument in arguments
            if argument.startswith("--")
        }
        known = options_of(command)
        assert {option for option in given if option not in known} == set(), command


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


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_a_clone_has(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link}
    made_later = {ROOT / line for line in IGNORED if line.endswith(".md")}
    targets = {link: (page.parent / link).resolve() for link in links}
    dead = {link for link, path in targets.items() if not path.exists() or path in made_later}
    assert dead == set()


def test_the_readme_is_one_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
