"""Imports point one way (CONTRIBUTING.md); heavy libraries are imported only where needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "toa_trl"
LINKS = {"recipes", "accelerate_configs"}  # links to the folders beside the package

BASE = {"types", "errors", "utils"}
MODELS = BASE | {"models", "tasks", "agents", "rewards"}
RUN = MODELS | {"search", "data", "sampling", "report", "hub", "rollouts"}
# part -> the parts that it may import; in the order of the pipeline
ARROWS: dict[str, set[str]] = {
    "types": set(),
    "errors": {"types"},
    "utils": {"types", "errors"},
    "search": BASE,
    "tasks": BASE,
    "models": BASE,
    "data": BASE,
    "serving": BASE,
    "agents": BASE | {"models", "data"},  # recorded responses are read as prompts are
    "rewards": BASE
    | {"models", "tasks", "agents"},  # a judge is an agent that is asked for a score
    "sampling": MODELS | {"search", "data"},  # a merged run keeps its prompts
    "evaluation": MODELS | {"sampling"},
    "hub": BASE | {"sampling"},  # a run is known by its fingerprint
    "report": BASE | {"hub", "sampling"},  # the decisions of an adaptive run are in its journal
    "rollouts": BASE | {"data", "tasks", "sampling", "report", "hub"},
    "viewer": BASE | {"data", "sampling", "report"},  # colours are those of the report
    "sampler": RUN,
    "systems": RUN | {"sampler", "evaluation"},
    "distributed": RUN | {"sampler"},
    "cli": RUN | {"sampler", "serving", "evaluation", "systems", "viewer"},
    "training": RUN | {"sampler", "cli", "evaluation"},
    "pipeline": RUN | {"sampler", "cli", "evaluation", "serving", "training"},
    "demo": MODELS,
    "__init__": BASE | {"sampler", "rollouts"},
    "__main__": {"cli"},
}
# What a part starts or imports by a name or a path instead of an import statement. "recipes" are
# the scripts of that folder, "command" is `toa-trl` in a process of its own: the public interface,
# which these parts may use as users do.
HIDDEN: dict[str, set[str]] = {
    "cli": {
        "agents",
        "command",
        "data",
        "evaluation",
        "pipeline",
        "recipes",
        "rewards",
        "sampling",
        "serving",
        "systems",
        "training",
    },
    "pipeline": {"command"},
}
MAY_START_COMMANDS = {"cli", "pipeline", "evaluation"}
MAY_IMPORT_TORCH = {
    "agents/generation.py",  # the others in their functions only: entries are checked without it
    "rewards/likelihood.py",
    "rewards/process.py",
    "models/batching.py",
    "models/devices.py",
    "models/loading.py",
    "models/sources.py",
    "utils/compat.py",
}
MAY_IMPORT_TRL = {"utils/compat.py", "cli/launch.py"}
MODULE_NAME = re.compile(r"toa_trl((\.\w+)+)(:\w+)?")
SCRIPT_PATH = re.compile(r"(?:\S*/)?(recipes|toa_trl)/([\w/]+)\.py")
RECIPES = {path.name for path in (ROOT / "recipes").glob("[a-z]*.py")}


@cache
def imports(path: Path) -> frozenset[tuple[str, bool]]:
    """Return (module, at the top) of every import of a file, also of those inside functions."""

    def modules_of(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: a relative import"
                assert child.module is not None
                yield child.module, top
                if child.module == "toa_trl":  # `from toa_trl import sampler` imports a part
                    yield from ((f"toa_trl.{alias.name}", top) for alias in child.names)
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            )
            yield from modules_of(child, top and not later)

    return frozenset(modules_of(ast.parse(path.read_text(encoding="utf-8")), top=True))


def libraries(path: Path, at_the_top: bool = False) -> set[str]:
    return {module.partition(".")[0] for module, top in imports(path) if top or not at_the_top}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def hidden_arrows(path: Path) -> set[str]:
    """Return what a file starts by name or path: parts of the package, "recipes", "command"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {module.rpartition(".")[2]: module for module, _ in imports(path)}
    prefixes = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    targets = set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr="__file__"):
                module = f"{prefixes[name]}.{name}" if name in prefixes else modules.get(name, "")
                targets |= targets_of(module)
            case ast.Constant(value=str(text)):
                targets |= targets_of(text)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                values = [e.value for e in elements if isinstance(e, ast.Constant)]
                if "toa-trl" in values or ("-m" in values and "toa_trl" in values):
                    targets.add("command")
    return targets


def targets_of(text: str) -> set[str]:
    """Return the part that a string names as a module, an object or a script's path."""
    if matched := MODULE_NAME.fullmatch(text):
        name = matched[1].split(".")[1]
        return {name} if name in ARROWS or name in LINKS else set()
    if matched := SCRIPT_PATH.fullmatch(text):
        return {"recipes" if matched[1] == "recipes" else matched[2].split("/")[0]}
    return {"recipes"} if text in RECIPES else set()


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if part(path) not in LINKS]
by_name = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def test_every_part_has_its_arrows() -> None:
    assert {part(path) for path in FILES} == ARROWS.keys()


@by_name
def test_imports_point_one_way(path: Path) -> None:
    modules = {module for module, _ in imports(path) if module.startswith("toa_trl.")}
    targets = {module.split(".")[1] for module in modules} & (ARROWS.keys() | LINKS)
    assert targets - {part(path)} <= ARROWS[part(path)]


def test_the_arrows_have_no_cycle() -> None:
    remaining = {name: set(targets) for name, targets in ARROWS.items()}
    while remaining:
        free = [name for name, targets in remaining.items() if not targets & remaining.keys()]
        assert free, f"a cycle among {sorted(remaining)}"
        for name in free:
            del remaining[name]


def test_what_is_started_by_name_or_path_is_listed_and_allowed() -> None:
    started: dict[str, set[str]] = {}
    for path in FILES:
        if targets := hidden_arrows(path) - {part(path)}:
            started.setdefault(part(path), set()).update(targets)
    assert started == HIDDEN
    for name, targets in HIDDEN.items():
        commands = {"recipes", "command"} if name in MAY_START_COMMANDS else set[str]()
        if name == "cli":
            commands |= {"pipeline", "training"}  # which the table of commands names
        assert targets <= ARROWS[name] | commands, name


@pytest.mark.parametrize(
    ("code", "targets"),
    [
        ("from toa_trl.utils import guard\nrun([python, guard.__file__])", {"utils"}),
        ("import toa_trl.serving.fleet as fleet\nrun('toa_trl/serving/fleet.py')", {"serving"}),
        ("load('toa_trl.search.toa:TOA')", {"search"}),
        ("import_module('toa_trl.recipes.sft')", {"recipes"}),
        ("run([python, root / 'recipes/sft.py'])", {"recipes"}),
        ("run([python, recipes / 'sft.py'])", {"recipes"}),
        ("run([python, '-m', 'toa_trl', 'sft'])", {"command"}),
        ("run(['toa-trl', 'sft'])", {"command"}),
        ("raise ConfigError('run recipes/sft.py, or python -m toa_trl sft')", set()),
        ("here = __file__", set()),
    ],
)
def test_hidden_arrows_are_found(code: str, targets: set[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(code, encoding="utf-8")
    assert hidden_arrows(path) == targets


@by_name
def test_torch_is_imported_only_where_models_are(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    if part(path) not in ("demo", "training") and name not in MAY_IMPORT_TORCH:
        assert "torch" not in libraries(path)
        assert "transformers" not in libraries(path, at_the_top=True)
    if name in MAY_IMPORT_TORCH - {"agents/generation.py"}:
        assert not {"torch", "transformers"} & libraries(path, at_the_top=True)


@by_name
def test_trl_is_imported_only_by_training_and_recipes(path: Path) -> None:
    trl, heavy = {"trl", "accelerate", "peft"}, {"torch", "transformers"}
    if part(path) == "training" or str(path.relative_to(PACKAGE)) in MAY_IMPORT_TRL:
        assert not (trl | heavy) & libraries(path, at_the_top=True)
    else:
        assert not trl & libraries(path)


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "search").glob("*.py")), ids=lambda path: path.name
)
def test_searches_are_pure(path: Path) -> None:
    impure = {"asyncio", "time", "datetime", "os", "pathlib", "io", "logging", "threading", "sys"}
    assert libraries(path) <= {*sys.stdlib_module_names, "toa_trl", "pydantic"} - impure


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name
)
def test_recipes_import_trl_when_they_run_and_are_short(path: Path) -> None:
    assert not {"torch", "trl", "transformers"} & libraries(path, at_the_top=True)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 105  # about 100


def test_what_is_printed_is_escaped_in_one_place() -> None:
    """`toa_trl.utils.escape.say`: a print would send a terminal what a server or file says."""
    names = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in (PACKAGE, ROOT / "recipes")
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    assert not names


@by_name
def test_no_file_hides_two(path: Path) -> None:
    # "past about 300 lines asks for a new name"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 360


def test_every_imported_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    declared = [*project["dependencies"], *optional["eval"], *optional["ray"], *optional["vllm"]]
    declared += [*optional["deepspeed"], *optional["serve"], *optional["view"]]
    names = {re.split(r"[\[<>=!;]", line)[0].replace("-", "_").lower() for line in declared}
    brought = {  # what a declared package brings along as a part of its own interface
        "latex2sympy2_extended": "math_verify",
        "markupsafe": "jinja2",
        "packaging": "transformers",
        "pydantic_core": "pydantic",
        "safetensors": "transformers",
        "starlette": "fastapi",
        "sympy": "math_verify",
        "tokenizers": "transformers",
        "tqdm": "transformers",
        "yarl": "aiohttp",
    }
    elsewhere = {"alpaca_eval", "comet"}  # installed in an environment of their own
    distributions = metadata.packages_distributions()
    undeclared = set[str]()
    for path in [*FILES, *(ROOT / "recipes").glob("*.py")]:
        for library in libraries(path) - sys.stdlib_module_names - elsewhere - {"toa_trl"}:
            own = {name.replace("-", "_").lower() for name in distributions.get(library, [library])}
            if not own & names and brought.get(library) not in names:
                undeclared.add(f"{path.relative_to(ROOT)}: {library}")
    assert not undeclared


def loaded_by(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return {module.partition(".")[0] for module in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "trl", "transformers", "accelerate", "peft", "datasets", "matplotlib"}
    heavy |= {"scipy", "pandas", "numpy", "pyarrow"}
    assert not heavy & loaded_by("toa_trl", "toa_trl.rewards.math")  # starts worker processes


def test_a_run_over_servers_needs_no_torch() -> None:
    modules = loaded_by(
        "toa_trl.agents.openai",
        "toa_trl.rewards.function",
        "toa_trl.data.prompts",
        "toa_trl.evaluation.comparison",
        "toa_trl.training",
        "toa_trl.pipeline.command",  # stays for days, and makes figures at the end
    )
    assert not {"torch", "trl", "transformers", "matplotlib"} & modules
