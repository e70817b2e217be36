"""Change the package in one small place at a time, and list the changes that no unit test notices.

    python scripts/mutate.py search sampling --sample 60

For each package, mutants of toa_trl/<package> are drawn at random and tests/<package> (or, where
there is none, the folder above it) runs against each, in a copy of the checkout. A mutant that
survives is a behaviour without a test, or a change that makes no difference: a person decides.
"""

from __future__ import annotations

import argparse
import ast
import copy
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPPOSITES: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}
NOT_CALLED = {"print", "log", "debug", "info", "warning", "append_log"}  # logging may go unnoticed


@dataclass(frozen=True)
class Mutant:
    """A file with one change."""

    path: Path  # relative to the checkout
    line: int
    change: str
    source: str


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for index, node in enumerate(ast.walk(tree)):
        for change in changes_of(node):
            mutated = copy.deepcopy(tree)
            target = next(item for i, item in enumerate(ast.walk(mutated)) if i == index)
            before = ast.unparse(target)
            change(target)
            after = ast.unparse(target)
            text = f"{_short(before)}  ->  {_short(after)}"
            yield Mutant(path, getattr(node, "lineno", 0), text, ast.unparse(mutated))


def changes_of(node: ast.AST) -> Iterator[Callable[[ast.AST], None]]:
    """Yield functions that change a node in place, each in one way."""
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in OPPOSITES:
            yield _set("ops", [OPPOSITES[type(operator)]()])
        case ast.BoolOp(op=operator) | ast.BinOp(op=operator) if type(operator) in OPPOSITES:
            yield _set("op", OPPOSITES[type(operator)]())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield _become(operand)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield _set("test", ast.UnaryOp(ast.Not(), copy.deepcopy(test)))
        case ast.Constant(value=bool(value)):
            yield _set("value", not value)
        case ast.Constant(value=int(value) | float(value)):
            yield _set("value", value + 1)
        case ast.Return(value=ast.Constant(value=None)):
            pass
        case ast.Return(value=ast.expr()):
            yield _set("value", ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Await()) if not _logs(node):
            yield _set("value", ast.Constant(None))
        case ast.AugAssign() | ast.Continue() | ast.Break() | ast.Raise():
            yield _become(ast.Pass())


def _logs(node: ast.Expr) -> bool:
    call = node.value
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name | ast.Attribute)
        and ast.unparse(call.func).rpartition(".")[2] in NOT_CALLED
    )


def _set(name: str, value: object) -> Callable[[ast.AST], None]:
    return lambda node: setattr(node, name, value)


def _become(other: ast.AST) -> Callable[[ast.AST], None]:
    def change(node: ast.AST) -> None:
        node.__class__ = other.__class__
        node.__dict__.clear()
        node.__dict__.update(copy.deepcopy(other).__dict__, lineno=0, col_offset=0)

    return change


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else f"{text[:67]}..."


def folder_of_tests(package: str) -> Path:
    """Return the folder with the tests of a package: its own, or that of the package around it."""
    folder = Path("tests") / package
    while not (ROOT / folder).is_dir():
        folder = folder.parent
    return folder


def run_tests(checkout: Path, tests: list[str], timeout_s: float) -> bool:
    """Return whether the tests pass, in a fork: libraries are imported once for all mutants."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            os.chdir(checkout)
            sys.path.insert(0, str(checkout))
            import pytest

            options = ["-x", "-q", "--assert=plain", "-p", "no:xdist", "-m", "not heavy"]
            options += ["--timeout", str(int(timeout_s))]
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                code = int(pytest.main([*options, *tests]))
        finally:
            os._exit(min(code, 1))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def import_libraries() -> None:
    """Import what the tests need and what no mutant changes."""
    import asyncio  # noqa: F401

    import aiohttp  # noqa: F401
    import hypothesis  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="List changes that no unit test notices.")
    parser.add_argument("packages", nargs="+", help="such as search, or models/endpoints")
    parser.add_argument("--sample", type=int, default=50, help="mutants per package (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT]
    sys.dont_write_bytecode = True
    import_libraries()
    num_mutants = num_survivors = 0
    with tempfile.TemporaryDirectory() as name:
        checkout = Path(name) / "checkout"
        ignored = shutil.ignore_patterns(".venv*", ".git", "runs", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, checkout, symlinks=True, ignore=ignored)
        for package in options.packages:
            tests = [str(folder_of_tests(package))]
            begin = time.monotonic()
            if not run_tests(checkout, tests, 1200):
                raise SystemExit(f"error: {tests[0]} fails without any change")
            timeout_s = 10 + 5 * (time.monotonic() - begin)
            paths = sorted((ROOT / "toa_trl" / package).rglob("*.py"))
            every = [mutant for path in paths for mutant in mutants_of(path.relative_to(ROOT))]
            drawn = random.Random(options.seed).sample(every, min(options.sample, len(every)))
            print(f"{package}: {len(drawn)} of {len(every)} mutants", flush=True)
            for mutant in sorted(drawn, key=lambda mutant: (mutant.path, mutant.line)):
                target = checkout / mutant.path
                original = target.read_text(encoding="utf-8")
                target.write_text(mutant.source, encoding="utf-8")
                survived = run_tests(checkout, tests, timeout_s)
                target.write_text(original, encoding="utf-8")
                num_mutants += 1
                num_survivors += survived
                if survived:
                    print(f"  survived: {mutant.path}:{mutant.line}: {mutant.change}", flush=True)
    print(f"{num_mutants - num_survivors} of {num_mutants} mutants killed")


if __name__ == "__main__":
    main()
