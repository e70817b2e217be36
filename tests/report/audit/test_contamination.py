"""Overlaps are found where words stand in both, and nowhere else; on real text as well."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.helpers import play
from tests.report.audit.conftest import real, rollouts_of, written
from toa_trl.data.prompts import as_prompts
from toa_trl.errors import ConfigError
from toa_trl.report.audit import Contamination, Index, find_contamination
from toa_trl.report.audit.evaluation_sets import COMMON, REPEATS
from toa_trl.report.audit.text import hashes, joined, windows, words_of
from toa_trl.tasks import make_task
from toa_trl.types import Message, Prompt, Rollout

Save = Callable[..., Path]
LETTERS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma "
    "tau"
)
GREEK = LETTERS.split()


def asked(id: str, prompt: Any, *responses: str, **columns: Any) -> Rollout:
    """A prompt, and its responses, the best first."""
    plays = tuple(play(i, -float(i), text) for i, text in enumerate(responses or ("yes", "no")))
    return Rollout(Prompt(id, prompt, columns), plays)


def found(folder: Path, *files: str) -> set[tuple[str, str, str]]:
    overlaps = find_contamination(folder, Index(files)).overlaps
    return {(each.prompt_id, each.side, each.problem_id) for each in overlaps}


def longest(index: Index, text: str, prompt: bool = False) -> int:
    return max((len(match.words) for match in index.search(text, prompt=prompt)), default=0)


@pytest.mark.parametrize(("shared", "num"), [(12, 0), (13, 13), (15, 15)])
def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_none(
    shared: int, num: int, tmp_path: Path
) -> None:
    index = Index([written(tmp_path / "e.jsonl", [{"prompt": " ".join(GREEK)}])])
    for start in (0, 2, len(GREEK) - shared):
        text = ["before", *GREEK[start : start + shared], "after", *GREEK[:5]]
        assert longest(index, " ".join(text)) == num
        assert (
            longest(index, ", ".join(text).title() + "?!\n") == num
        )  # letters count, not how they are written


@pytest.mark.parametrize(
    ("length", "contained", "whole"), [(7, 0, 7), (8, 8, 8), (12, 12, 12), (1, 0, 1)]
)
def test_a_short_question_counts_as_a_whole(
    length: int, contained: int, whole: int, tmp_path: Path
) -> None:
    text = " ".join(GREEK[:length])
    index = Index([written(tmp_path / "e.jsonl", [{"prompt": text}])])
    assert longest(index, f"please say {text} again") == contained
    assert longest(index, text.upper() + ".", prompt=True) == whole
    assert longest(index, text) == contained  # a response may well be one word
    assert longest(index, " ".join([*GREEK[: length - 1], "other"]), prompt=True) == 0


def test_only_long_answers_count_and_only_the_columns_that_are_named(tmp_path: Path) -> None:
    greek = " ".join(GREEK[:13])
    for column in ("answer", "solution", "reference"):
        file = written(
            tmp_path / "e.jsonl", [{"id": 1, "source": "what", column: greek, "outputs": "x " * 20}]
        )
        assert longest(Index([file]), greek) == 13
        assert longest(Index([file]), "x " * 20) == 0
        file = written(
            tmp_path / "e.jsonl", [{"id": 1, "source": "what", column: " ".join(GREEK[:12])}]
        )
        assert longest(Index([file]), greek) == 0


def test_messages_are_a_question_but_for_the_systems(tmp_path: Path) -> None:
    system, user = " ".join(GREEK[:15]), " ".join(GREEK[4:18])
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    index = Index([written(tmp_path / "e.jsonl", [{"prompt": messages}])])
    assert (longest(index, system), longest(index, user)) == (0, 14)


def test_a_character_is_a_word_where_words_have_no_spaces(tmp_path: Path) -> None:
    assert words_of("是否有途径, ＡＢＣ処罰!") == [*"是否有途径", "abc", *"処罰"]
    assert joined(words_of("我们 use Python 3.11 吗")) == "我们 use python 311 吗"
    text = "以免再次发生这样的事情所以我们必须努力"
    index = Index([written(tmp_path / "e.jsonl", [{"source": text}])])
    assert longest(index, f"他说：“{text[2:15]}”。") == 13
    assert longest(index, f"他说：“{text[2:14]}”。") == 0


def test_words_of_many_problems_are_their_instructions(tmp_path: Path) -> None:
    instructions = (
        "Solve the following problem and put your final answer, and nothing else, in a box."
    )
    rows = [{"prompt": f"{instructions} Problem {i}"} for i in range(COMMON + 1)]
    index = Index([written(tmp_path / "e.jsonl", rows)])
    assert longest(index, instructions) == 0
    assert index.sets[0].num_common > 0
    assert longest(Index([written(tmp_path / "e.jsonl", rows[:COMMON])]), instructions) == 15
    # a passage that some per mille of a large set share is a passage
    rows += [{"prompt": f"question {i}"} for i in range(100 * (COMMON + 1))]
    assert longest(Index([written(tmp_path / "e.jsonl", rows)]), instructions) == 15


def test_planted_problems_are_found_and_left_out(tmp_path: Path, save: Save) -> None:
    gsm8k, math = real("math/gsm8k_test.jsonl"), real("math/math500.jsonl")
    evaluation = written(tmp_path / "gsm8k.jsonl", gsm8k), written(tmp_path / "math.jsonl", math)
    rollouts, planted = [], set()
    for number, row in enumerate(real("alpaca_eval/outputs.jsonl")[:100]):
        responses = list(row["outputs"].values())
        id, prompt = f"alpaca {number}", row["prompt"]
        if number % 10 == 3:
            problem = gsm8k[number]
            prompt = f"{prompt}\n\nBy the way: {problem['prompt'].upper()}"
            planted.add((id, "prompt", problem["id"]))
        if number % 10 == 5:
            problem = gsm8k[number]
            responses[0] = f"{responses[0]} And {problem['solution']}"
            planted.add((id, "response", problem["id"]))
        if number % 10 == 7:
            responses[1] += gsm8k[number]["solution"]  # of a response that no student learns from
        rollouts.append(asked(id, prompt, *responses))
    folder = save(rollouts)
    contamination = find_contamination(folder, Index(evaluation))
    hits = {(each.prompt_id, each.side, each.problem_id) for each in contamination.overlaps}
    assert planted <= hits
    # problems of GSM8K share sentences, so that a prompt may overlap with several of them
    assert {hit[:2] for hit in hits} == {hit[:2] for hit in planted}
    assert {each.file for each in contamination.overlaps} == {evaluation[0]}
    assert (contamination.num_prompts, contamination.num_responses, contamination.num_kept) == (
        100,
        100,
        20,
    )
    assert all(
        each.num_words >= 13 and each.words == each.words.lower() for each in contamination.overlaps
    )

    dropped = rollouts_of(rollouts).save(
        folder, preference={"policy": "worst"}, decontaminate=evaluation
    )
    reason = "overlaps with an evaluation set"
    assert dropped == {"sft": {reason: 20}, "dpo": {reason: 20}}
    left = {id for id, _, _ in planted}
    for name in ("sft", "dpo"):
        ids = pq.read_table(folder / name)["prompt_id"].to_pylist()
        assert len(ids) == 80
        assert not left & set(ids)
    assert len(set(pq.read_table(folder / "rollouts")["prompt_id"].to_pylist())) == 100
    audit = json.loads((folder / "audit.json").read_text())
    assert audit["contamination"]["num_kept"] == 0
    assert audit["reward"]["pairs"]["num_pairs"] == 80
    assert {each["prompt_id"] for each in audit["contamination"]["overlaps"]} == left
    again = find_contamination(folder, Index(evaluation))
    assert (again.num_kept, {each.side for each in again.overlaps}) == (0, {"prompt"})
    assert (
        load_dataset(str(folder / "sft"), split="train", cache_dir=str(tmp_path / "cache")).num_rows
        == 80
    )


def test_real_sets_that_have_nothing_in_common_have_no_overlap(tmp_path: Path, save: Save) -> None:
    rows = real("alpaca_eval/outputs.jsonl")[::3]
    folder = save(asked(row["id"], row["prompt"], *row["outputs"].values()) for row in rows)
    others = [written(tmp_path / "gsm8k.jsonl", real("math/gsm8k_test.jsonl"))]
    others += [
        written(tmp_path / f"{pair}.jsonl", real(f"wmt22/{pair}.jsonl"))
        for pair in ("cs-en", "zh-en")
    ]
    others += [written(tmp_path / "math.jsonl", real("math/math500.jsonl"))]
    contamination = find_contamination(folder, Index(others))
    assert contamination.overlaps == ()
    assert [each.num_problems for each in contamination.sets] == [1319, 500, 500, 500]
    own = written(tmp_path / "alpaca.jsonl", real("alpaca_eval/prompts.jsonl"))
    same = {(id, problem) for id, side, problem in found(folder, own) if side == "prompt"}
    assert {
        (row["id"], row["id"]) for row in rows
    } <= same  # every prompt is found in its own set, however short


def test_of_a_translation_the_source_is_the_prompt(tmp_path: Path, save: Save) -> None:
    rows = real("wmt22/zh-en.jsonl")[:50]
    folder = save(
        asked(
            row["id"],
            f"Translate: {row['source']}",
            source=row["source"],
            target_language="English",
        )
        for row in rows
    )
    assert {(row["id"], "prompt", row["id"]) for row in rows} <= found(
        folder, written(tmp_path / "e.jsonl", rows)
    )
    others = written(tmp_path / "e.jsonl", real("wmt22/zh-en.jsonl")[300:])
    assert found(folder, others) == set()


def test_of_a_problem_the_words_around_it_are_not_its_own(tmp_path: Path, save: Save) -> None:
    rows = [
        ("here", {"id": "p", "prompt": "What is 2 + 2?"}),
        ("there", {"id": "q", "prompt": "What is 3 + 3?"}),
    ]
    plays = play(0, 1.0, "four"), play(1, 0.0, "five")
    folder = save(
        Rollout(prompt, plays) for prompt in as_prompts(rows, read=make_task("math").read)
    )
    assert (
        found(folder, written(tmp_path / "e.jsonl", [{"id": "b", "problem": "what is 2+2"}]))
        == set()
    )
    assert found(
        folder, written(tmp_path / "e.jsonl", [{"id": "b", "problem": "What is 2 + 2"}])
    ) == {("p", "prompt", "b")}


def test_a_column_problem_does_not_stand_for_the_rest_of_the_prompt(
    tmp_path: Path, save: Save
) -> None:
    folder = save([asked("p", " ".join(GREEK), problem=GREEK[0])])
    assert found(
        folder, written(tmp_path / "e.jsonl", [{"id": "b", "prompt": " ".join(GREEK)}])
    ) == {("p", "prompt", "b")}


def test_where_a_prompt_is_from_is_no_prompt(tmp_path: Path, save: Save) -> None:
    folder = save([asked("p", " ".join(GREEK), source="gsm8k")])
    file = written(
        tmp_path / "e.jsonl",
        [{"id": "q", "prompt": " ".join(GREEK), "source": "gsm8k"}, {"prompt": "gsm8k"}],
    )
    assert found(folder, file) == {("p", "prompt", "q")}


def test_parquet_is_read_like_lines(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "question": " ".join(GREEK), "answer": None},
        {"id": 8, "question": "what", "answer": "x"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    index = Index([str(tmp_path / "e.parquet")])
    assert [match.source.id for match in index.search(" ".join(GREEK), prompt=True)] == ["7"]
    assert index.sets[0].num_problems == 2


def test_an_array_is_read_like_lines(tmp_path: Path) -> None:
    rows = [{"instruction": " ".join(GREEK), "output": "x"}, {"instruction": "what"}]
    for start in ("", "\n ", "\ufeff"):
        (tmp_path / "e.json").write_text(start + json.dumps(rows, indent=1), encoding="utf-8")
        assert Index([tmp_path / "e.json"]).sets[0].num_problems == 2
        assert longest(Index([tmp_path / "e.json"]), " ".join(GREEK)) == len(GREEK)
    for text, named in {
        "[1]": "item 1: must be an object with",
        "[{": "not JSON",
        "[]": "is empty",
    }.items():
        (tmp_path / "e.json").write_text(text)
        with pytest.raises(ConfigError, match=named):
            Index([tmp_path / "e.json"])


def test_what_repeats_itself_is_looked_at_in_some_places(tmp_path: Path) -> None:
    index = Index([written(tmp_path / "e.jsonl", [{"prompt": "ha " * 500}])])
    (table,) = index._tables.values()
    one = " ".join(["ha"] * 500)
    assert longest(index, one) >= 13
    assert (
        len(list(table.find(windows(hashes(words_of(one)), 13)))) == REPEATS**2
    )  # and not 488 ** 2


@given(
    text=st.lists(st.sampled_from("abc"), max_size=40),
    other=st.lists(st.sampled_from("abc"), min_size=13, max_size=40),
)
def test_what_is_found_is_the_longest_row_in_common(
    text: list[str], other: list[str], tmp_path_factory: Any
) -> None:
    def row(length: int) -> set[tuple[str, ...]]:
        return {tuple(other[i : i + length]) for i in range(len(other) - length + 1)}

    in_common = [
        n
        for n in range(13, 41)
        if row(n) & {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    ]
    file = tmp_path_factory.getbasetemp() / "given.jsonl"
    assert longest(Index([written(file, [{"prompt": " ".join(other)}])]), " ".join(text)) == max(
        in_common, default=0
    )


def test_what_is_written_is_read_again(tmp_path: Path, save: Save) -> None:
    folder = save([asked("p", [Message("system", "Be kind."), Message("user", " ".join(GREEK))])])
    contamination = find_contamination(
        folder, Index([written(tmp_path / "e.jsonl", [{"prompt": " ".join(GREEK)}])])
    )
    assert contamination.prompt_ids == ("p",)
    dumped = json.dumps(asdict(contamination))
    assert TypeAdapter(Contamination).validate_json(dumped) == contamination


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([], "is empty"),
        ([3], r"line 1: must be an object with a question, not 3"),
        (
            [{"text": "x", "label": 1}],
            r"line 1: needs one of the columns prompt, .*; columns: text, label",
        ),
        ([{"prompt": "x"}, {"prompt": ""}], "line 2: needs one of the columns"),
        ([{"prompt": [1]}], "line 1: the question must be a text or a list of messages"),
        ([{"prompt": 5}], "line 1: the question must be a text or a list of messages"),
    ],
)
def test_mistakes_are_named(rows: Iterable[Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        Index([written(tmp_path / "e.jsonl", rows)])


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    for wrong in ("bench.jsonl", [3], {"bench.jsonl": 1}):
        with pytest.raises(ConfigError, match="must be a list of files"):
            Index(wrong)  # type: ignore[arg-type]
    assert Index([]).sets == ()
    (tmp_path / "no.parquet").write_text("no")
    (tmp_path / "no.jsonl").write_text("{")
    for name, named in {
        "no.parquet": "is not parquet",
        "no.jsonl": "line 1: not JSON",
        "gone.jsonl": "is no",
        ".": "for a folder or a data set on the Hub, name the file",
    }.items():
        with pytest.raises(ConfigError, match=named):
            Index([str(tmp_path / name)])
