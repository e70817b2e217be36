"""Recorded responses: only to what was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait
from toa_trl.agents import make_agent
from toa_trl.errors import AgentError, ConfigError
from toa_trl.types import Message, Sampling


def agent(path: Path, *rows: Any) -> Any:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return make_agent({"name": "r", "engine": "recorded", "path": str(path)})


def ask(agent: Any, *messages: Message, seed: int = 0) -> str:
    return wait(agent.generate(messages, sampling=Sampling(), seed=seed)).text


def test_a_response_belongs_to_the_whole_conversation(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    recorded = agent(
        tmp_path / "r.jsonl",
        {"prompt": "u", "response": "plain"},
        {"prompt": turns, "response": "with a system prompt"},
        {"prompt": "u", "response": ["second", "third"]},
    )
    assert ask(recorded, Message("user", "u")) == "plain"
    assert (
        ask(recorded, Message("system", "s"), Message("user", "u"), seed=7)
        == "with a system prompt"
    )
    assert [ask(recorded, Message("user", "u"), seed=seed) for seed in range(4)] == [
        "plain",
        "second",
        "third",
        "plain",
    ]
    with pytest.raises(AgentError, match=r"'r'.*no response to 'v' is recorded"):
        ask(recorded, Message("user", "v"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "u"}, "line 1.*'response'"),
        ({"prompt": "u", "response": []}, "line 1.*'response'"),
        ({"prompt": "u", "response": [1]}, "line 1.*'response'"),
        ({"response": "x"}, "line 1.*'prompt'"),
        ({"prompt": [{"role": 1}], "response": "x"}, "line 1.*'prompt'"),
        ("x", "line 1.*'response'"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent(tmp_path / "r.jsonl", row)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl does not exist"):
        make_agent({"name": "r", "engine": "recorded", "path": str(tmp_path / "none.jsonl")})


def test_the_columns_and_the_format_may_be_others(tmp_path: Path) -> None:
    file = tmp_path / "gpt4_baseline.json"  # as alpaca_eval publishes the outputs of its baseline
    file.write_text(json.dumps([{"instruction": "u", "output": "theirs", "generator": "g"}]))
    columns = {"prompt_column": "instruction", "response_column": "output"}
    recorded = make_agent({"name": "g", "engine": "recorded", "path": str(file), **columns})
    assert ask(recorded, Message("user", "u")) == "theirs"
    with pytest.raises(ConfigError, match="the column 'response'"):
        make_agent({"name": "g", "engine": "recorded", "path": str(file)})


def test_columns_of_a_csv_file_are_texts_by_whatever_name(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("question,reply\n007,1.50\n08,NA\n")
    columns = {"prompt_column": "question", "response_column": "reply"}
    recorded = make_agent({"name": "r", "engine": "recorded", "path": str(path), **columns})
    assert [ask(recorded, Message("user", text)) for text in ("007", "08")] == ["1.50", "NA"]
    path.write_text("question,reply\n7,150\n8,2\n")
    recorded = make_agent({"name": "r", "engine": "recorded", "path": str(path), **columns})
    assert [ask(recorded, Message("user", text)) for text in ("7", "8")] == ["150", "2"]
