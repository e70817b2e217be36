"""scripts/mutate.py: the changes that it makes, and that it can run the tests at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.mutate import ROOT, changes_of, folder_of_tests, mutants_of


@pytest.mark.parametrize(
    ("code", "mutants"),
    [
        ("a < b", {"a <= b"}),
        ("a and b", {"a or b"}),
        ("not a", {"a"}),
        ("x = a if b else 2", {"x = a if not b else 2", "x = a if b else 3"}),
        ("del x\nx += 1", {"del x\npass", "del x\nx += 2"}),
        ("logger.warning(x)", set()),
        ("save(x)", {"None"}),
    ],
)
def test_a_mutant_is_one_small_change(code: str, mutants: set[str]) -> None:
    found = set()
    for number, node in enumerate(ast.walk(ast.parse(code))):
        for change in changes_of(node):
            tree = ast.parse(code)
            change(list(ast.walk(tree))[number])
            found.add(ast.unparse(tree))
    assert found == mutants


def test_every_mutant_of_a_file_differs_from_it() -> None:
    path = Path("toa_trl/search/greedy.py")
    unchanged = ast.unparse(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    mutants = list(mutants_of(path))
    assert len(mutants) > 10
    assert unchanged not in {mutant.source for mutant in mutants}


def test_the_tests_of_a_package_within_another_are_found() -> None:
    assert folder_of_tests("search") == Path("tests/search")
    assert folder_of_tests("models/endpoints") == Path("tests/models")


def test_the_tests_can_be_collected_without_xdist() -> None:
    """As the script runs them: in its own process, which forks."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "--collect-only", "-q"]
    done = subprocess.run(
        [*command, "tests/search/test_greedy.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
