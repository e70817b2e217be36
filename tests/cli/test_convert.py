"""Selected responses of a run in the formats of alpaca_eval and Arena-Hard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import play, rollout
from toa_trl import TOASampler
from toa_trl.cli.convert import select
from toa_trl.cli.main import run
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts

ROWS: list[dict[str, Any]] = [
    {"prompt": "Why?", "dataset": "koala", "question_id": "q1"},
    {"prompt": "How?", "dataset": "vicuna", "question_id": "q2"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which longer responses are better, and the first is the shortest."""
    folder = tmp_path_factory.mktemp("runs") / "toa"
    agents = [
        {"name": "a", "engine": "scripted", "responses": ["one"]},
        {"name": "b", "engine": "scripted", "responses": ["one two"]},
    ]
    sampler = TOASampler(agents, {"kind": "length"}, "sequential", 2, seed=0, progress=False)
    sampler.sample(ROWS, output_dir=folder)
    return folder


def convert(folder: Path, output: Path, *options: str) -> str:
    run(["convert", str(folder), "--output", str(output), *options])
    return output.read_text()


def test_model_outputs_of_alpaca_eval(folder: Path, tmp_path: Path) -> None:
    rows = json.loads(convert(folder, tmp_path / "out/model_outputs.json", "--to", "alpaca_eval"))
    assert [{key: row[key] for key in row if key != "toa_trl"} for row in rows] == [
        {"instruction": "Why?", "output": "one two", "generator": "toa", "dataset": "koala"},
        {"instruction": "How?", "output": "one two", "generator": "toa", "dataset": "vicuna"},
    ]


def test_model_answers_of_arena_hard(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "toa-70b.jsonl"
    lines = convert(folder, file, "--to", "arena_hard", "--name", "toa-70b").splitlines()
    first, second = map(json.loads, lines)
    assert (first["question_id"], second["question_id"]) == ("q1", "q2")
    assert first["model_id"] == "toa-70b"
    assert first["choices"] == [{"index": 0, "turns": [{"content": "one two", "token_len": 2}]}]
    assert first["answer_id"] != second["answer_id"]


def test_the_first_plays_are_a_smaller_budget(folder: Path, tmp_path: Path) -> None:
    options = ("--to", "alpaca_eval", "--num_plays", "1")
    rows = json.loads(convert(folder, tmp_path / "f.json", *options))
    firsts = [done.scored[0].completion for done in Rollouts.load(folder)]
    assert [row["output"] for row in rows] == [first.text for first in firsts if first]
    assert "one" in [row["output"] for row in rows]


def test_what_it_wrote_is_replaced_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    for form in ("alpaca_eval", "arena_hard"):
        file = tmp_path / form
        assert convert(folder, file, "--to", form) == convert(folder, file, "--to", form)
    mine = tmp_path / "mine.json"
    mine.write_text('[{"instruction": "Why?"}]')
    with pytest.raises(ConfigError, match=r"was not written by toa_trl"):
        convert(folder, mine, "--to", "alpaca_eval")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "mt_bench"], "invalid choice: 'mt_bench'"),
        (["--to", "alpaca_eval", "--num_plays", "0"], "--num_plays: must be >= 1"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(folder, tmp_path / "f", *options)
    with pytest.raises(ConfigError, match=r"has no journal\.sqlite"):
        convert(tmp_path, tmp_path / "f", "--to", "alpaca_eval")


def test_a_prompt_without_a_response_is_named() -> None:
    with pytest.raises(ConfigError, match=r"1 prompts have no scored play, as 'x'"):
        select([rollout(play(0, 0.5)), rollout(play(0, None), id="x")], None)
