"""Imports point one way (CONTRIBUTING.md), and heavy libraries live where they must."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "toa_trl"

BASE = {"types", "errors", "utils"}
MODELS = BASE | {"models", "tasks", "agents", "rewards"}
RUN = MODELS | {"search", "data", "sampling", "report", "hub", "rollouts"}
# package -> what it may import beside itself; the order is that of the pipeline
ARROWS: dict[str, set[str]] = {
    "types": set(),
    "errors": {"types"},
    "utils": {"types", "errors"},
    "search": BASE,
    "tasks": BASE,
    "models": BASE,
    "data": BASE,
    "agents": BASE | {"models"},
    "rewards": BASE
    | {"models", "tasks", "agents"},  # a judge is an agent that is asked for a score
    "sampling": MODELS | {"search"},
    "evaluation": MODELS,
    "hub": BASE,
    "report": BASE | {"hub"},
    "rollouts": BASE | {"data", "sampling", "report", "hub"},
    "sampler": RUN,
    "distributed": RUN | {"sampler"},
    "serving": BASE,
    "cli": RUN | {"sampler", "serving"},
    "training": RUN | {"sampler", "cli", "evaluation"},
    "demo": MODELS,
    "__init__": BASE | {"sampler", "rollouts"},
    "__main__": {"cli"},
}
MAY_IMPORT_TORCH = {
    "agents/transformers.py",
    "rewards/classifier.py",
    "rewards/likelihood.py",
    "rewards/process.py",
    "models/loading.py",  # inside its functions only
}


@cache
def imports(path: Path) -> frozenset[tuple[str, bool]]:
    """(module, at the top) of every import of a file, also those in functions and under TYPE_CHECKING."""

    def found(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((name.name, top) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: a relative import"
                assert child.module is not None
                yield child.module, top
                # `from toa_trl import runner` imports a part, too
                yield from (
                    (f"{child.module}.{name.name}", top)
                    for name in child.names
                    if child.module == "toa_trl"
                )
            yield from found(
                child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            )

    return frozenset(found(ast.parse(path.read_text(encoding="utf-8")), top=True))


def libraries(path: Path, at_the_top: bool = False) -> set[str]:
    return {module.partition(".")[0] for module, top in imports(path) if top or not at_the_top}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(p for p in PACKAGE.rglob("*.py"))
by_name = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def test_every_part_has_its_arrows() -> None:
    assert {part(path) for path in FILES} == ARROWS.keys()


@by_name
def test_imports_point_one_way(path: Path) -> None:
    known = {p.stem for p in PACKAGE.glob("*.py")} | {
        p.name for p in PACKAGE.iterdir() if p.is_dir()
    }
    own = {
        module.split(".")[1] for module, _ in imports(path) if module.startswith("toa_trl.")
    } & known
    assert own - {part(path)} <= ARROWS[part(path)]


def test_the_arrows_make_no_circle() -> None:
    left = {name: set(targets) for name, targets in ARROWS.items()}
    while left:
        free = [name for name, targets in left.items() if not targets & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


@by_name
def test_torch_lives_where_models_do(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    if part(path) not in ("demo", "training") and name not in MAY_IMPORT_TORCH:
        assert "torch" not in libraries(path)
        assert "transformers" not in libraries(path, at_the_top=True)
    if name == "models/loading.py":
        assert not {"torch", "transformers"} & libraries(path, at_the_top=True)
    # TRL, with accelerate and peft, only in the recipes and in training; nothing heavy at the top
    if part(path) != "training":
        assert not {"trl", "accelerate", "peft"} & libraries(path)
    elif part(path) == "training":
        assert not {"torch", "transformers", "trl", "accelerate", "peft"} & libraries(
            path, at_the_top=True
        )


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "search").glob("*.py")), ids=lambda path: path.name
)
def test_searches_are_pure(path: Path) -> None:
    used = libraries(path)
    assert used <= {*sys.stdlib_module_names, "toa_trl"}
    assert (
        not {"asyncio", "time", "datetime", "os", "pathlib", "io", "logging", "threading", "sys"}
        & used
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name
)
def test_recipes_import_trl_when_they_run_and_are_short(path: Path) -> None:
    assert not {"torch", "trl", "transformers"} & libraries(path, at_the_top=True)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 100


@by_name
def test_no_file_hides_two(path: Path) -> None:
    assert (
        len(path.read_text(encoding="utf-8").splitlines()) <= 360
    )  # "past about 300 lines asks for a new name"


def loaded_by(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {module.partition(".")[0] for module in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not {
        "torch",
        "trl",
        "transformers",
        "accelerate",
        "peft",
        "datasets",
        "matplotlib",
    } & loaded_by("toa_trl")


def test_a_run_over_servers_needs_no_torch() -> None:
    used = loaded_by(
        "toa_trl.agents.openai",
        "toa_trl.rewards.function",
        "toa_trl.data.prompts",
        "toa_trl.evaluation.comparison",
    )
    assert not {"torch", "trl", "transformers"} & used
