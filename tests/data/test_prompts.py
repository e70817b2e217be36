"""Reading prompts."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from toa_trl.data.prompts import as_prompts, load_prompts
from toa_trl.errors import ConfigError
from toa_trl.types import Message

ROWS: list[dict[str, Any]] = [
    {"prompt": "One?", "answer": "1"},
    {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Two?"}],
        "id": "two",
        "answer": "2",
    },
]


def jsonl(path: Path, *lines: Any) -> str:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return str(path)


def test_jsonl(tmp_path: Path) -> None:
    one, two = load_prompts(jsonl(tmp_path / "p.jsonl", ROWS[0], "", ROWS[1]))
    assert (one.id, one.messages, dict(one.metadata)) == (
        "0",
        (Message("user", "One?"),),
        {"answer": "1"},
    )
    assert (two.id, two.messages[0], dict(two.metadata)) == (
        "two",
        Message("system", "s"),
        {"answer": "2"},
    )


def test_parquet_csv_and_folders(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "id": i, "answer": str(i)} for i in range(5)]
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    Dataset.from_list(rows).to_csv(tmp_path / "prompts.csv")
    by_format = [tmp_path / "data" / "train.parquet", tmp_path / "data", tmp_path / "prompts.csv"]
    for source in by_format:
        prompts = load_prompts(str(source))
        assert [p.id for p in prompts] == ["0", "1", "2", "3", "4"]
        assert [p.messages[0].content for p in prompts] == ["0?", "1?", "2?", "3?", "4?"]
        assert str(prompts[3].metadata["answer"]) == "3"
    assert len(load_prompts(str(tmp_path / "data"), limit=2)) == 2
    with pytest.raises(ConfigError, match=r"prompts.*test"):
        load_prompts(str(tmp_path / "data"), split="test")


def test_limit_takes_the_first_and_reads_no_further(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", *ROWS, "broken")
    assert [p.id for p in load_prompts(source, limit=2)] == ["0", "two"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{'prompt': 1}", "line 3: not JSON"),
        ('{"prompt": "x"', "line 3: not JSON"),
        ("3", "line 3: must be an object with the key 'prompt'"),
        ({"text": "x"}, "line 3: the column 'prompt' is missing; columns: text"),
        ({}, "line 3: the column 'prompt' is missing; columns: none"),
        ({"prompt": ""}, "line 3: the prompt is empty"),
        ({"prompt": "  \n"}, "line 3: the prompt is empty"),
        ({"prompt": []}, "line 3: the prompt is empty"),
        ({"prompt": None}, "line 3: 'prompt' must be a text or a list of messages"),
        ({"prompt": 3}, "line 3: 'prompt' must be a text or a list of messages"),
        ({"prompt": [{"role": "user"}]}, "line 3: 'prompt' must be a text or a list of messages"),
        (
            {"prompt": [{"role": "assistant", "content": "x"}]},
            "line 3: the last message must be the user's",
        ),
        ({"prompt": "x", "id": "two"}, "line 3: the id 'two' is already used at .*line 2"),
        ({"prompt": "x", "id": 0}, "line 3: the id '0' is already used at .*line 1"),
        ('{"prompt": "half an emoji: \\ud83e"}', "line 3: contains an unpaired surrogate"),
        (
            '{"prompt": "x", "answer": "half an emoji: \\ud83e"}',
            "line 3: contains an unpaired surrogate",
        ),
        ('{"prompt": "x", "id": "\\ud83e"}', "line 3: contains an unpaired surrogate"),
    ],
)
def test_a_row_that_is_no_prompt_is_refused_by_its_line(
    tmp_path: Path, line: Any, named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"p\.jsonl, {named}"):
        load_prompts(jsonl(tmp_path / "p.jsonl", *ROWS, line))


def test_a_line_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "x"}\n{"prompt": "\xff\xfe"}\n')
    with pytest.raises(ConfigError, match="line 2: not JSON"):
        load_prompts(str(tmp_path / "p.jsonl"))


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        load_prompts(jsonl(tmp_path / "p.jsonl"))
    with pytest.raises(ConfigError, match="is empty"):
        load_prompts(jsonl(tmp_path / "p.jsonl", "", ""))
    for source in ("nowhere.jsonl", "nowhere.parquet"):
        with pytest.raises(ConfigError, match=r"nowhere.* does not exist"):
            load_prompts(str(tmp_path / source))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*empty"):
        load_prompts(str(tmp_path / "empty"))
    (tmp_path / "p.parquet").write_bytes(b"not parquet")
    with pytest.raises(ConfigError, match=r"cannot read .*p\.parquet"):
        load_prompts(str(tmp_path / "p.parquet"))
    with pytest.raises(ConfigError, match="cannot read"):
        load_prompts("nobody/nothing-at-all")


def test_columns_of_every_type_are_metadata(tmp_path: Path) -> None:
    when = datetime(2026, 1, 2)
    Dataset.from_list([{"prompt": "x", "when": when, "n": 1}]).to_parquet(tmp_path / "p.parquet")
    (prompt,) = load_prompts(str(tmp_path / "p.parquet"))
    assert dict(prompt.metadata) == {"when": when, "n": 1}


def test_rows_in_memory() -> None:
    assert [p.id for p in as_prompts([("a", "x"), ("b", {"prompt": "y", "id": None})])] == [
        "0",
        "1",
    ]
