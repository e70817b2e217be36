"""Responses of an evaluation's models, side by side."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.report.conftest import HOSTILE
from tests.viewer.conftest import client_of
from toa_trl.errors import ConfigError
from toa_trl.evaluation.accuracy import Scores
from toa_trl.evaluation.outputs import Output, Outputs
from toa_trl.evaluation.side_by_side import FILE, write_side_by_side
from toa_trl.tasks import make_task
from toa_trl.types import Message, Prompt


def write(folder: Path) -> None:
    """An evaluation of two models on five prompts; the second is right on the odd ones."""
    prompts = [Prompt(f"q{i}", (Message("user", f"Question {i}? {HOSTILE}"),)) for i in range(5)]
    outputs = {
        name: [Outputs(Output(f"{name} says {i} {HOSTILE}", "stop")) for i in range(5)]
        for name in ("base", "student")
    }
    scores = {
        "base": Scores([0.0] * 5, [float("nan"), 0.1, 0.2, 0.3, None]),
        "student": Scores([float(i % 2) for i in range(5)], [1.0] * 5),
    }
    write_side_by_side(folder, prompts, make_task("alignment"), outputs, scores, "base")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    write(tmp_path / "outputs")
    with client_of(tmp_path) as client:
        yield client


def test_prompts_page_by_page(client: TestClient) -> None:
    listed = client.get("/api/runs").json()
    assert (listed["runs"], listed["evaluations"]) == ([], ["outputs"])
    found, after = list[str](), 0
    while after is not None:
        query: dict[str, str | int] = {"evaluation": "outputs", "limit": 2, "after": after}
        page = client.get("/api/outputs", params=query).json()
        found += [row["id"] for row in page["prompts"]]
        after = page["next"]
    assert found == [f"q{i}" for i in range(5)]
    assert (page["models"], page["baseline"], page["total"]) == (["base", "student"], "base", 5)
    (last,) = page["prompts"]
    assert last["messages"] == [["user", f"Question 4? {HOSTILE}"]]
    assert last["responses"][1]["text"] == f"student says 4 {HOSTILE}"
    assert (last["responses"][1]["reward"], last["responses"][0]["reward"]) == (1.0, None)


def test_prompts_are_filtered(client: TestClient) -> None:
    def ids(**query: str) -> list[str]:
        answer = client.get("/api/outputs", params={"evaluation": "outputs", **query})
        return [row["id"] for row in answer.json()["prompts"]]

    assert ids(differ="true") == ["q1", "q3"]
    assert ids(words="STUDENT SAYS 2") == ["q2"]
    assert ids(words="question 3?", differ="true") == ["q3"]
    assert ids(words="nothing") == []


def test_what_is_not_an_evaluation(client: TestClient, tmp_path: Path) -> None:
    def error(name: str) -> str:
        answer = client.get("/api/outputs", params={"evaluation": name})
        assert answer.status_code == 400
        return str(answer.json()["error"])

    assert "there is no evaluation" in error("../outputs")
    (tmp_path / "outputs" / FILE).write_text("[]\n")
    assert "not responses of an evaluation" in error("outputs")
    shutil.copytree(tmp_path / "outputs", tmp_path / "again")
    (tmp_path / "again" / FILE).write_text('{"models": ["a"]}\n{"id": 1}\n')
    assert "line 2: not a prompt with its responses" in error("again")


def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{}\n")
    with pytest.raises(ConfigError, match="was not written by toa_trl"):
        write(tmp_path)
    assert (tmp_path / FILE).read_text() == "{}\n"
