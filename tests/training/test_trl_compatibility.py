"""Every name, argument and option of TRL that this repository uses exists.

`bash scripts/test_trl` runs this with the lowest and with the newest TRL that pyproject.toml
allows.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_type_hints
from unittest import mock

import pytest
import trl
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LIBRARIES = ("trl", "transformers", "datasets", "accelerate", "peft")
COMMAND = re.compile(
    r"recipes/(\w+)\.py\b((?:\\\n|[^\n`\"])*)"
)  # with what follows it, on lines that are continued as well
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "recipes/**/*.py",
        "recipes/**/*.yaml",
        "scripts/*",
        "accelerate_configs/*",
    )
    for path in ROOT.glob(pattern)
    if path.is_file() and COMMAND.search(path.read_text(encoding="utf-8"))
)
PYTHON = sorted(
    path
    for folder in ("recipes", "scripts", "toa_trl", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def imported(path: Path) -> dict[str, tuple[str, str]]:
    """Map every name that a file imports from TRL to its module and its name there.

    An import that the file can do without, under `try` with `except ImportError`, is none.
    """
    text = path.read_text(encoding="utf-8")
    if "from trl" not in text:
        return {}
    tree = ast.parse(text)
    optional = {
        node
        for tried in ast.walk(tree)
        if isinstance(tried, ast.Try)
        and any("ImportError" in ast.unparse(each).split(":")[0] for each in tried.handlers)
        for node in tried.body
    }
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module.partition(".")[0] == "trl"
        if node not in optional
        for alias in node.names
    }


USERS = [path for path in PYTHON if imported(path)]
RECIPES = {
    path.stem: path
    for path in USERS
    if path.parent == ROOT / "recipes" and any("Trainer" in n for n in imported(path))
}
by_user = pytest.mark.parametrize("path", USERS, ids=name_of)


class Stopped(Exception):
    """A recipe, when it is about to read its options; with its parser."""


@cache
def parser_of(recipe: str, method: str) -> Any:
    def stop(parser: Any, *_: Any) -> None:
        raise Stopped(parser)

    arguments = [f"recipes/{recipe}.py", *(["--method", method] if method else [])]
    with (
        mock.patch.object(trl.TrlParser, "parse_args_and_config", stop),
        mock.patch.object(sys, "argv", arguments),
        pytest.raises(Stopped) as stopped,
    ):
        runpy.run_path(str(RECIPES[recipe]), run_name="__main__")
    return stopped.value.args[0]


def parsers(recipe: str, given: str = "") -> list[Any]:
    """The parsers of a recipe: of one with methods, that of the given one, or of all."""
    methods = runpy.run_path(str(RECIPES[recipe])).get("METHODS", [""])
    return [parser_of(recipe, method) for method in ([given] if given else methods)]


def is_option(parser: Any, key: str) -> bool:
    options = [option for action in parser._actions for option in action.option_strings]
    return f"--{key}" in options or f"--{key}" in ("--config", "--env")


def gone(place: str, recipe: str, keys: list[str], method: str = "") -> Iterator[str]:
    """One line for each key that is no option of the recipe's."""
    for key in dict.fromkeys(keys):
        if not all(is_option(parser, key) for parser in parsers(recipe, method)):
            yield f"{place}: {key} is no option of recipes/{recipe}.py with trl {version('trl')}"


def gone_from_commands(place: str, text: str) -> Iterator[str]:
    for recipe, arguments in COMMAND.findall(text):
        if recipe in RECIPES:
            method = re.search(r"--method[ =](\w+)", arguments)
            yield from gone(
                place, recipe, re.findall(r"--([a-z]\w*)", arguments), method[1] if method else ""
            )


def gone_from_config(place: str, text: str) -> Iterator[str]:
    started = COMMAND.search(text.partition("\n")[0])
    if not started or started[1] not in RECIPES:
        return
    recipe, config = started[1], yaml.safe_load(text)
    yield from gone(place, recipe, list(config), config.get("method", ""))
    for part in config.get("datasets", []):
        yield from (
            f"{place}: datasets: {key} is gone" for key in part if key not in part_of_a_mixture()
        )


def part_of_a_mixture() -> dict[str, Any]:
    (part,) = get_args(get_type_hints(trl.DatasetMixtureConfig)["datasets"])
    return get_type_hints(part)


@by_user
def test_names(path: Path) -> None:
    missing = [
        f"{name_of(path)}: {name} is no longer in {module}"
        for module, name in imported(path).values()
        if not hasattr(importlib.import_module(module), name)
    ]
    assert missing == []


@by_user
def test_arguments(path: Path) -> None:
    names = {
        name: getattr(importlib.import_module(module), there)
        for name, (module, there) in imported(path).items()
    }
    missing = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            keywords = {keyword.arg for keyword in node.keywords if keyword.arg}
            if node.func.id in names:
                missing += not_taken(path, node.lineno, names[node.func.id], keywords)
    assert missing == []


def not_taken(path: Path, line: int, callee: Any, keywords: set[str]) -> list[str]:
    """Return a line for each keyword that a callable no longer takes."""
    parameters = inspect.signature(callee).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return [
        f"{name_of(path)}:{line}: {callee.__name__} no longer takes {keyword}"
        for keyword in sorted(keywords - parameters.keys())
    ]


def test_every_trainer_takes_the_arguments_of_run_training() -> None:
    path = ROOT / "toa_trl/training/run.py"
    (call,) = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and any(keyword.arg == "train_dataset" for keyword in node.keywords)
    ]
    keywords = {keyword.arg for keyword in call.keywords if keyword.arg} | {"peft_config"}
    assert {"model", "args", "eval_dataset"} <= keywords
    missing = []
    for recipe in RECIPES.values():
        for module, name in imported(recipe).values():
            if name.endswith("Trainer"):
                trainer = getattr(importlib.import_module(module), name)
                quantized = set() if "experimental" in module else {"quantization_config"}
                missing += not_taken(path, call.lineno, trainer, keywords | quantized)
    assert missing == []


def test_the_fields_of_trls_configurations_exist() -> None:
    fields = {
        field
        for recipe in RECIPES
        for parser in parsers(recipe)
        for part in parser.dataclass_types
        for field in get_type_hints(part)
    }
    methods = {name for name in dir(trl.SFTConfig) if not name.startswith("_")}
    configurations = ("script", "training", "model", "mixture")
    used: dict[str, str] = {}
    for path in [*RECIPES.values(), *(ROOT / "toa_trl/training").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in configurations:
                used[node.attr] = name_of(path)
    other = {"config", "named_buffers", "merge_and_unload", "save_pretrained", "dtype"}
    other |= {"generation_config", "get_input_embeddings", "resize_token_embeddings", "check"}
    gone_fields = used.keys() - fields - methods - other
    assert {f"{used[key]}: {key} is gone" for key in gone_fields} == set()
    assert {"dataset_name", "seed", "use_peft", "datasets"} <= used.keys()


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_options(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = [*gone_from_commands(name_of(path), text)]
    if path.is_relative_to(ROOT / "recipes/configs"):
        missing += gone_from_config(name_of(path), text)
    assert missing == []


def test_mixtures_have_fractions() -> None:
    assert {"path", "fraction"} <= part_of_a_mixture().keys()


@pytest.mark.parametrize("place", ["pyproject.toml", "constraints.txt", "here"])
def test_versions_are_in_the_stated_range(place: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}
    pinned = dict(
        re.findall(
            r"^([\w-]+)==(\S+)",
            (ROOT / "constraints.txt").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    for name in LIBRARIES:
        lowest = next(each.version for each in ranges[name] if each.operator == ">=")
        chosen = {"pyproject.toml": lowest, "constraints.txt": pinned[name], "here": version(name)}[
            place
        ]
        assert chosen in ranges[name], f"{name} {chosen} is not {ranges[name]}"
        assert lowest.count(".") == 2, (
            f"{name}: a release by its full name, since scripts/trl_environment installs it"
        )


def test_what_is_gone_is_named_with_its_file() -> None:
    def said(text: str, *wanted: str) -> None:
        lines = [*gone_from_commands("x", text)]
        if text.startswith("# "):
            lines += gone_from_config("x", text)
        assert len(lines) == len(wanted), lines
        for line, option in zip(lines, wanted, strict=True):
            assert line.startswith("x: ")
            assert option in line

    config = (ROOT / "recipes/configs/demo/dpo.yaml").read_text(encoding="utf-8")
    said(config)
    said(
        config.replace("max_length", "max_prompt_length"), "max_prompt_length"
    )  # as DPOConfig had it before TRL 1
    said(config + "datasets: [{path: a, weight: 1}]", "weight")
    said(
        "accelerate launch recipes/sft.py --packing --max_seq_length 9 \\\n    --overwrite",
        "max_seq_length",
        "overwrite",
    )
    said("`recipes/preference.py --method simpo --simpo_gamma 1`, and `--nothing`")
    said("recipes/preference.py --method kto --simpo_gamma 1", "simpo_gamma")
    said("recipes/preference.py --simpo_gamma 1", "simpo_gamma")
