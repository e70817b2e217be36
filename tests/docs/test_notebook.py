"""The notebook runs from its first cell to its last, and its student improves."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.conftest import ENVIRONMENT

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.ipynb"


def accuracy(notebook: nbformat.NotebookNode, model: str) -> float:
    """Return the accuracy of a model in the table that the notebook prints."""
    texts = [each.get("text", "") for cell in notebook.cells for each in cell.get("outputs", [])]
    (found,) = re.findall(rf"\| {model} +\| (0\.\d+) \[", "".join(texts))
    return float(found)


def test_what_is_stored_shows_a_student_that_improved() -> None:
    notebook = nbformat.read(TUTORIAL, 4)
    assert accuracy(notebook, "after") > accuracy(notebook, "before") + 0.2
    assert "/home" not in TUTORIAL.read_text(encoding="utf-8")


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(TUTORIAL, 4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    assert accuracy(notebook, "after") > accuracy(notebook, "before") + 0.2
