"""Marks of a human review: kept beside the run, and honoured by its data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.test_rollouts import rollouts
from toa_trl.cli.main import run as main
from toa_trl.data.review import FILE, Mark, Review, review_of, set_mark
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two prompts, each with a pair: play 2 is chosen, play 1 rejected."""
    folder = tmp_path / "run"
    folder.mkdir()
    it = rollouts(2, 1.0, 2.0, 3.0, path=folder / "journal.sqlite")
    it.save(folder, preference={"rejected_rank": 2})
    it._journal.close()
    return folder


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / name).to_pylist())


def key_of(folder: Path) -> tuple[str, int, int]:
    (pair,) = rows_of(folder, "dpo")[:1]
    return pair["prompt_id"], pair["chosen_play"], pair["rejected_play"]


def derive(folder: Path) -> None:
    main(["data", str(folder), "--rejected_rank", "2"])


def test_a_rejected_pair_is_left_out_until_the_mark_is_removed(run: Path) -> None:
    key, before = key_of(run), len(rows_of(run, "dpo"))
    sft = rows_of(run, "sft")
    set_mark(run, key, Mark("reject"))
    derive(run)
    assert len(rows_of(run, "dpo")) == before - 1
    assert rows_of(run, "sft") == sft
    card = (run / "README.md").read_text()
    assert "## Human review" in card
    assert "- `dpo`: 1 rows rejected, and left out" in card
    set_mark(run, key, None)
    derive(run)
    assert key_of(run) == key
    assert "Human review" not in (run / "README.md").read_text()


def test_edited_responses_are_used(run: Path) -> None:
    key = key_of(run)
    set_mark(run, key, Mark("edit", chosen="Better <b>words</b>.\n"))
    derive(run)
    pair, sft = rows_of(run, "dpo")[0], rows_of(run, "sft")[0]
    assert pair["chosen"] == [{"role": "assistant", "content": "Better <b>words</b>.\n"}]
    assert sft["play"] == key[1]
    assert sft["completion"] == pair["chosen"]
    card = (run / "README.md").read_text()
    assert "- `dpo`: 1 rows edited" in card
    assert "- `sft`: 1 rows edited" in card
    # in Python, too
    loaded = Rollouts.load(run)
    assert loaded.to_preference(rejected_rank=2)[0]["chosen"] == pair["chosen"]
    assert loaded.to_sft()[0]["completion"] == pair["chosen"]
    made = loaded.to_datasets([{"builder": "top_bottom"}, {"builder": "groups"}])
    own = [row for row in made["dpo"] if (row["prompt_id"], row["chosen_play"]) == key[:2]]
    chosen = [row["chosen"] for row in own]
    assert chosen
    assert all(response == pair["chosen"] for response in chosen)
    loaded._journal.close()


def test_an_accepted_pair_is_counted(run: Path) -> None:
    set_mark(run, key_of(run), Mark("accept"))
    before = rows_of(run, "dpo")
    derive(run)
    assert rows_of(run, "dpo") == before
    assert "- `dpo`: 1 rows accepted" in (run / "README.md").read_text()


def test_a_pair_edited_to_two_equal_texts_is_left_out() -> None:
    one, other = ("p", 1, 2), ("p", 1, 3)
    review = Review({one: Mark("edit", chosen="Same."), other: Mark("edit", rejected=" Same. ")})
    row = {"prompt_id": "p", "chosen_play": 1, "rejected_play": 3, "chosen": [], "rejected": []}
    assert review.apply(row) == (None, "edited to two equal responses, and left out")


def test_marks_survive_and_replace_each_other(run: Path) -> None:
    set_mark(run, ("a", 1, 2), Mark("edit", "chosen \u2028 ⟦数学⟧", "rejected\n{}"))
    set_mark(run, ("b", 3, 4), Mark("accept"))
    set_mark(run, ("b", 3, 4), Mark("reject"))
    marks = review_of(run).marks
    assert marks["a", 1, 2].chosen == "chosen \u2028 ⟦数学⟧"
    assert marks["a", 1, 2].rejected == "rejected\n{}"
    assert marks["b", 3, 4].mark == "reject"
    assert marks["b", 3, 4].time_s > 1e9
    assert len(marks) == 2


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"mark": "maybe"}, "mark: must be accept, reject, edit, not 'maybe'"),
        ({"mark": "edit"}, "an edit needs a text"),
        ({"mark": "accept", "chosen": "x"}, "no other mark has one"),
        ({"mark": "edit", "chosen": " \n"}, "not blank"),
        ({"mark": "edit", "chosen": "x", "rejected": "x "}, "must differ"),
        ({"mark": "edit", "chosen": "\ud800"}, "unpaired surrogate"),
        ({"mark": "edit", "chosen": 3}, "must be a text"),
    ],
)
def test_marks_are_checked(values: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Mark(**values)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"prompt_id": "p"}',
        '{"prompt_id": "p", "chosen_play": "x", "rejected_play": 1, "mark": "accept"}',
        '{"prompt_id": "p", "chosen_play": 0, "rejected_play": 1, "mark": "perhaps"}',
    ],
)
def test_a_damaged_review_is_an_error_in_one_line(run: Path, line: str) -> None:
    set_mark(run, key_of(run), Mark("accept"))
    with (run / FILE).open("a") as file:
        file.write(f"{line}\n")
    before = (run / FILE).read_text()
    with pytest.raises(ConfigError, match=r"review.jsonl, line 3: not"):
        derive(run)
    with pytest.raises(ConfigError, match=r"review.jsonl, line 3: not"):
        set_mark(run, key_of(run), Mark("reject"))
    assert (run / FILE).read_text() == before


def test_a_file_of_somebody_else_is_not_replaced(run: Path) -> None:
    content = json.dumps({"stars": 5}) + "\n"
    (run / FILE).write_text(content)
    with pytest.raises(ConfigError, match="was not written by toa_trl"):
        set_mark(run, key_of(run), Mark("accept"))
    assert (run / FILE).read_text() == content
