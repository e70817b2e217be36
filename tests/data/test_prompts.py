"""Reading prompts."""

from __future__ import annotations

import gzip
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.helpers import wait
from toa_trl.data.prompts import as_prompts, is_prompts_file, load_prompts, write_prompts
from toa_trl.errors import ConfigError
from toa_trl.rewards import make_reward
from toa_trl.sampling.identity import digest_of_prompts
from toa_trl.tasks import make_task
from toa_trl.types import Message, Prompt, as_dicts

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
        ("[3]", "line 3: must be an object with the key 'prompt'"),
        ("3", "line 3: must be an object with the key 'prompt'"),
        ({"text": "x"}, "line 3: the column 'prompt' is missing; columns: text"),
        ({}, "line 3: the column 'prompt' is missing; columns: none"),
        ({"prompt": ""}, "line 3: the prompt is empty"),
        ({"prompt": "  \n"}, "line 3: the prompt is empty"),
        ({"prompt": []}, "line 3: the prompt is empty"),
        ({"prompt": None}, "line 3: 'prompt' must be a text or a list of messages: .*, not None"),
        ({"prompt": 3}, "line 3: 'prompt' must be a text or a list of messages: .*, not 3"),
        ('{"prompt": "x", "a": ' + "[" * 20_000, "line 3: not JSON .it is nested too deeply"),
        ({"prompt": [{"role": "user"}]}, "line 3: 'prompt' must be a text or a list of messages"),
        (
            {"prompt": [{"role": "assistant", "content": "x"}]},
            "line 3: the last message must be the user's",
        ),
        ({"prompt": "x", "id": "two"}, "line 3: the id 'two' is already used at .*line 2"),
        ({"prompt": "x", "id": 0}, "line 3: the id '0' is already used at .*line 1"),
        (
            {"prompt": json.dumps([{"role": "user", "content": "x"}])},
            "line 3: the prompt is messages written as text",
        ),
        (
            {"prompt": str([{"content": "[x]", "role": "user"}])},
            "line 3: the prompt is messages written as text",
        ),
        (
            {"prompt": '{"from": "human", "value": "x"}'},
            "line 3: the prompt is messages written as text",
        ),
        (
            {"prompt": "x", "tools": [{"type": "function", "function": {"name": "f"}}]},
            "line 3: the column 'tools' offers tools",
        ),
        (
            {"prompt": "x", "tools": ' [{"type": "function"}]'},
            "line 3: the column 'tools' offers tools",
        ),
        (
            {"prompt": [{"role": "user", "content": "x", "tool_calls": [1]}]},
            "line 3: 'prompt' must be .*: a tool call needs a function",
        ),
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


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user"}] is what I got. Why does "content": null not appear?',
        '[{"id": 1}, {"id": 2}]',
        '{"a": 1}',
        "[x] {y}",
    ],
)
def test_a_question_about_json_is_a_question(text: str) -> None:
    rows = [("a", {"prompt": text, "tools": "a hammer"}), ("b", {"prompt": "x", "tools": []})]
    prompts = as_prompts(rows)
    assert [prompt.messages[-1].content for prompt in prompts] == [text, "x"]
    assert prompts[0].metadata["tools"] == "a hammer"


def test_tool_calls_reach_the_prompt_and_other_keys_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "3 + 4?", "weight": 1, "name": None, "thinking": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7", "name": "add", "tool_call_id": "c1"},
        {"role": "user", "content": "Twice?", "weight": 0},
    ]
    (prompt,) = load_prompts(jsonl(tmp_path / "p.jsonl", {"prompt": messages}))
    assert as_dicts(prompt.messages) == [
        {"role": "user", "content": "3 + 4?"},
        {**messages[1], "content": ""},
        messages[2],
        {"role": "user", "content": "Twice?"},
    ]
    (record,) = caplog.records
    assert record.message.endswith("p.jsonl, line 1: the key 'weight' of messages is not kept")


def written(folder: Path, name: str) -> str:
    """A file with the prompts 0? and 1? in the format that its name says."""
    path, kind = folder / name, name.lower().removesuffix(".gz").rpartition(".")[2]
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(2)]
    texts = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "json": json.dumps(rows, indent=1),
        "csv": "prompt,answer\n0?,0\n1?,1\n",
        "txt": "\ufeff0?\n\n1?\n",
    }
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        data = texts[kind].encode()
        path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    return str(path)


@pytest.mark.parametrize(
    "name",
    [
        *("p.jsonl.gz", "P.JSONL", "p.JSONL.GZ", "p.json", "P.JSON", "p.json.gz"),
        *("p.CSV", "p.csv.gz", "p.PARQUET", "p.txt", "P.TXT", "p.txt.gz"),
    ],
)
def test_files_by_their_extension(tmp_path: Path, name: str) -> None:
    prompts = load_prompts(written(tmp_path, name))
    assert [prompt.messages[0].content for prompt in prompts] == ["0?", "1?"]
    if ".txt" not in name.lower():
        assert [str(prompt.metadata["answer"]) for prompt in prompts] == ["0", "1"]


def test_json_in_lines_and_text_for_a_task_with_another_column(tmp_path: Path) -> None:
    lines = jsonl(tmp_path / "p.json", {"prompt": "a"}, {"prompt": "b"})
    assert [prompt.messages[0].content for prompt in load_prompts(lines)] == ["a", "b"]
    (tmp_path / "p.txt").write_text("Guten Tag\n")
    task = make_task({"name": "translation", "source_language": "German", "target_language": "en"})
    (prompt,) = load_prompts(str(tmp_path / "p.txt"), read=task.read, asked=task.asked)
    assert prompt.metadata["source"] == "Guten Tag"


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("p.xlsx", b"x", r"p\.xlsx is none of \.jsonl"),
        ("p.jsonl.gz", b"not gzip", "cannot decompress it: Not a gzipped"),
        ("p.jsonl.gz", gzip.compress(b"{}\n" * 999, mtime=0)[:-20], "cannot decompress"),
        ("p.json", b'[{"prompt": "x"},', r"p\.json: not JSON"),
        ("p.json", b'[{"prompt": "x"}, 3]', "item 2: must be an object"),
        ("p.jsonl", b'[{"prompt": "x"}]\n', "line 1: must be an object"),
        ("p.txt", b"one\n\xff\xfe\n", "line 2: not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, named: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=named):
        load_prompts(str(tmp_path / name))


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    jsonl(tmp_path / "p.jsonl", {"prompt": "x"})
    assert len(load_prompts("~/p.jsonl")) == 1


def test_ids_come_from_id_or_prompt_id() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "x", "prompt_id": "a"},
        {"prompt": "x", "prompt_id": "b", "id": None},
        {"prompt": "x", "prompt_id": "c", "id": "d"},
        {"prompt": "x", "prompt_id": None},
    ]
    prompts = as_prompts(enumerate_rows(rows))
    assert [prompt.id for prompt in prompts] == ["a", "b", "d", "3"]
    assert [dict(prompt.metadata) for prompt in prompts] == [{}, {}, {"prompt_id": "c"}, {}]


def enumerate_rows(rows: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(f"row {number}", row) for number, row in enumerate(rows)]


def test_a_configuration_a_column_and_an_order(tmp_path: Path) -> None:
    configs = []
    for name in ("main", "other"):
        jsonl(tmp_path / f"{name}.jsonl", *({"question": f"{name} {i}?"} for i in range(9)))
        configs.append(f"- config_name: {name}\n  data_files: {name}.jsonl\n")
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    source = str(tmp_path)

    def asked(**options: Any) -> list[str]:
        prompts = load_prompts(source, column="question", **options)
        return [prompt.messages[-1].content for prompt in prompts]

    with pytest.raises(ConfigError, match=r"prompts_config.*main.*other"):
        asked()
    with pytest.raises(ConfigError, match="wrong"):
        asked(config="wrong")
    assert asked(config="main") == [f"main {i}?" for i in range(9)]
    shuffled = asked(config="other", shuffle_seed=1)
    assert sorted(shuffled) == [f"other {i}?" for i in range(9)] != shuffled
    assert asked(config="other", shuffle_seed=1, limit=4) == shuffled[:4]
    assert asked(config="other", shuffle_seed=2) != shuffled
    for prompt in load_prompts(source, column="question", config="main", shuffle_seed=1):
        assert prompt.messages[-1].content == f"main {prompt.id}?"  # as without a shuffle
    with pytest.raises(ConfigError, match=r"prompts_config: .*main\.jsonl is a file"):
        load_prompts(str(tmp_path / "main.jsonl"), config="main")


def test_a_column_must_exist_and_replaces_none(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", {"question": "x", "prompt": None}, {"prompt": "y"})
    assert load_prompts(source, limit=1, column="question")[0].messages[-1].content == "x"
    with pytest.raises(ConfigError, match="line 2: prompt_column: 'question' is missing"):
        load_prompts(source, column="question")
    source = jsonl(tmp_path / "p.jsonl", {"question": "x", "prompt": "y"})
    with pytest.raises(ConfigError, match="line 1: prompt_column: the row has a column 'prompt'"):
        load_prompts(source, column="question")
    assert load_prompts(source, column="prompt")[0].metadata == {"question": "x"}


# the layouts of the public sets: columns, task and what is asked
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any], str, dict[str, Any]]] = {
    "tatsu-lab/alpaca_eval": (
        {"instruction": "Why?", "output": "So.", "generator": "g", "dataset": "koala"},
        {"column": "instruction"},
        "Why?",
        {"dataset": "koala", "output": "So."},
    ),
    "lmarena-ai/arena-hard-auto-v0.1": (
        {"question_id": "q7", "category": "c", "cluster": "k", "turns": [{"content": "How?"}]},
        {"column": "turns"},
        "How?",
        {"question_id": "q7"},
    ),
    "haoranxu/WMT22-Test": (
        {"cs-en": {"cs": "Ahoj.", "en": "Hello."}},
        {"task": "translation"},
        "Ahoj.",
        {"reference": "Hello.", "source_language": "Czech", "target_language": "English"},
    ),
    "HuggingFaceH4/MATH-500": (
        {
            "problem": "2 + 2",
            "solution": "4.",
            "answer": "4",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        },
        {"column": "problem", "task": "math"},
        "2 + 2",
        {"answer": "4"},
    ),
    "openai/gsm8k": (
        {"question": "3 + 3?", "answer": "3 + 3 = <<3+3=6>>6\n#### 6"},
        {"column": "question", "task": "math"},
        "3 + 3?",
        {"answer": "3 + 3 = <<3+3=6>>6\n#### 6"},
    ),
    "princeton-nlp/llama3-ultrafeedback-armorm": (
        {
            "prompt_id": "u1",
            "prompt": "Tell me.",
            "all_generated_responses": ["a", "b"],
            "all_rm_scores": [0.1, 0.2],
            "chosen": [{"role": "user", "content": "Tell me."}],
        },
        {},
        "Tell me.",
        {},
    ),
}


async def solved(prompt: Prompt, response: str) -> list[float]:
    verifier = make_reward({"kind": "math"})
    try:
        return await verifier.score(prompt, [response])
    finally:
        await verifier.aclose()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_public_sets_are_read_by_their_columns(tmp_path: Path, name: str) -> None:
    row, options, asked, metadata = LAYOUTS[name]
    file = tmp_path / "test.parquet"
    Dataset.from_list([row]).to_parquet(file)
    task = make_task(options.get("task", "alignment"))
    (prompt,) = load_prompts(
        str(file), read=task.read, column=options.get("column"), asked=task.asked
    )
    assert task.question(prompt) == asked
    assert {key: prompt.metadata[key] for key in metadata} == metadata
    if task.name == "math":
        assert wait(solved(prompt, f"\\boxed{{{metadata['answer'][-1]}}}")) == [1.0]


def test_one_file_of_the_hub_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*given: Any, **options: Any) -> list[dict[str, str]]:
        asked.append((given, options))
        return [{"instruction": "Why?"}]

    monkeypatch.setattr("datasets.load_dataset", load)
    source = "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json"
    (prompt,) = load_prompts(source, "eval", column="instruction")
    assert prompt.messages[-1].content == "Why?"
    assert asked == [(("json", None), {"split": "train", "data_files": source})]
    with pytest.raises(ConfigError, match="which has no configurations"):
        load_prompts(source, config="x")
    with pytest.raises(ConfigError, match=r"is none of \.jsonl"):
        load_prompts("hf://datasets/a/b/file.arrow")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What?", "n": 3.0, "list": [1, None]},
        {"prompt": "What?", "answer": "4", "task": "math"},
        {"prompt": "What?", "problem": "else", "answer": "4", "task": "math"},
        {"source": "Hi", "source_language": "en", "target_language": "fr", "task": "translation"},
    ],
)
def test_prompts_that_a_run_has_read_are_written_and_read_as_they_are(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    file, task = tmp_path / "prompts.jsonl", make_task(row.get("task", "alignment"))
    prompts = as_prompts([("here", {"id": 7, **row}), ("there", row)], read=task.read)
    write_prompts(file, prompts)
    assert is_prompts_file(file)
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    assert not is_prompts_file(file)
    *kept, new = load_prompts(str(file), read=task.read, column=task.asked, asked=task.asked)
    assert kept == prompts
    assert digest_of_prompts(kept) == digest_of_prompts(prompts)
    assert (new.id, new.messages) == ("2", prompts[1].messages)


@pytest.mark.parametrize(("place", "source"), [("p.csv", "p.csv"), ("set/train.csv", "set")])
def test_values_of_a_csv_file_stay_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, source: str
) -> None:
    path = tmp_path / place  # a file of its own, or a data set, as the Hub has them
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "id,prompt,answer,gold,level,share,hard,day,empty\n"
        '007,"1,5 or\n1.5?",1e5,1e5,3,0.5,True,2024-01-02,\n'
        "08,NaN,NaN,007,12,1.25,False,2024-01-03,\n"
        "null,2024-01-02,,NA,,-3.0,True,1,\n",
        encoding="utf-8-sig",
    )
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    one, two, three = load_prompts(str(tmp_path / source))
    assert [p.id for p in (one, two, three)] == ["007", "08", "null"]
    assert [p.messages[0].content for p in (one, two, three)] == [
        "1,5 or\n1.5?",
        "NaN",
        "2024-01-02",
    ]
    assert dict(one.metadata) == {
        "answer": "1e5",
        "gold": "1e5",
        "level": 3,
        "share": 0.5,
        "hard": True,
        "day": "2024-01-02",
        "empty": None,
    }
    assert (two.metadata["answer"], two.metadata["gold"]) == ("NaN", "007")
    assert (three.metadata["answer"], three.metadata["gold"]) == (None, "NA")
    assert (three.metadata["level"], three.metadata["share"]) == (None, -3.0)


def test_the_question_in_another_column_of_a_csv_file_is_text(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("question,prompt_id\n01,01\n2,\n")
    prompts = load_prompts(str(tmp_path / "p.csv"), column="question")
    assert [(p.id, p.messages[0].content) for p in prompts] == [("01", "01"), ("1", "2")]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"prompt,answer\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        (b"prompt,answer\n1,2,3\n4,5,6\n", "more values than the header has columns"),
        (b"prompt\n\xff\xfe\n", "prompts: cannot read .*p.csv"),
        (b"", "prompts: cannot read .*p.csv"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, content: bytes, named: str
) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=named) as error:
        load_prompts(str(tmp_path / "p.csv"))
    assert "\n" not in str(error.value)
