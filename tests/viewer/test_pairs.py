"""Pairs page by page, and marks that are kept beside the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.viewer.conftest import TOKEN, client_of
from toa_trl.cli.main import run as main
from toa_trl.data.review import review_of

Ask = Callable[..., Any]
ORDERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "prompt": lambda row: 0,
    "margin": lambda row: row["chosen_reward"] - row["rejected_reward"],
    "length": lambda row: len(row["chosen"][0]["content"]),
    "longer": lambda row: len(row["chosen"][0]["content"]) - len(row["rejected"][0]["content"]),
}


@pytest.fixture(scope="module")
def rows(runs: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(runs / "open/dpo").to_pylist())


def key_of(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["prompt_id"], row["chosen_play"], row["rejected_play"]


def as_query(key: tuple[str, int, int]) -> dict[str, Any]:
    return dict(zip(("prompt", "chosen", "rejected"), key, strict=True))


def keys(pairs: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [(pair["prompt"], pair["chosen"]["play"], pair["rejected"]["play"]) for pair in pairs]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", ORDERS)
def test_pages_are_sorted_and_complete(
    ask: Ask, rows: list[dict[str, Any]], sort: str, descending: bool
) -> None:
    expected = sorted(rows, key=lambda row: (row["prompt_id"].encode(), *key_of(row)[1:]))
    expected.sort(key=ORDERS[sort], reverse=descending)
    found, after = list[tuple[str, int, int]](), None
    while True:
        page = ask("pairs", run="open", sort=sort, descending=descending, limit=3, after=after)
        found += keys(page["pairs"])
        after = page["next"]
        if after is None:
            break
    assert found == [key_of(row) for row in expected]
    assert page["total"] == len(rows) > 3
    (row,) = [row for row in rows if key_of(row) == found[-1]]
    assert page["pairs"][-1]["chosen"]["response"] == row["chosen"][0]["content"]


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> Iterator[tuple[Path, Ask, Ask]]:
    """A run of one's own, GET /api/pairs and PUT /api/mark."""
    folder = tmp_path / "run"
    shutil.copytree(runs / "complete", folder)
    with client_of(tmp_path) as client:

        def pairs(**query: Any) -> Any:
            response = client.get("/api/pairs", params={"run": "run", **query})
            assert response.status_code == 200, response.text
            return response.json()

        def mark(status: int = 200, token: str = TOKEN, **values: Any) -> Any:
            headers = {"x-toa-trl-token": token, "content-type": "application/json"}
            body = {"run": "run", **values}
            # a text with an unpaired surrogate is valid JSON
            response = client.put("/api/mark", headers=headers, content=json.dumps(body))
            assert response.status_code == status, response.text
            return response.json()

        yield folder, pairs, mark


def test_marks_are_kept_and_honoured(own: tuple[Path, Ask, Ask]) -> None:
    folder, pairs, mark = own
    before = sorted(key_of(row) for row in pq.read_table(folder / "dpo").to_pylist())
    one, other, third = map(as_query, before[:3])
    mark(**one, mark="reject")
    mark(**other, mark="edit", chosen_text="Edited <script>alert(1)</script>.")
    assert mark(**third, mark="accept") == {"marks": {"reject": 1, "edit": 1, "accept": 1}}
    assert review_of(folder).marks[before[1]].chosen == "Edited <script>alert(1)</script>."
    for name, key in (("reject", before[0]), ("edit", before[1]), ("accept", before[2])):
        page = pairs(mark=name)
        assert keys(page["pairs"]) == [key]
        assert page["pairs"][0]["mark"] == name
    assert pairs(mark="edit")["pairs"][0]["chosen"]["edited"].startswith("Edited")
    assert sorted(keys(pairs(mark="none")["pairs"])) == before[3:]
    assert sorted(keys(pairs()["pairs"])) == before

    main(["data", str(folder), "--rejected_rank", "2"])
    after = pq.read_table(folder / "dpo").to_pylist()
    assert sorted(map(key_of, after)) == before[1:]
    (edited,) = [row for row in after if key_of(row) == before[1]]
    assert edited["chosen"][0]["content"] == "Edited <script>alert(1)</script>."
    assert "1 rows rejected, and left out" in (folder / "README.md").read_text()
    # the rejected pair is still there to be accepted again
    assert keys(pairs(mark="reject")["pairs"]) == [before[0]]
    assert mark(**one) == {"marks": {"edit": 1, "accept": 1}}


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"mark": "perhaps"}, "mark"),
        ({"mark": "edit"}, "an edit needs a text"),
        ({"mark": "edit", "chosen_text": " "}, "not blank"),
        ({"mark": "edit", "chosen_text": "\ud800"}, "surrogate"),
        ({"mark": "accept", "chosen": 999}, "no such pair"),
        ({"mark": "accept", "prompt": "nothing"}, "no such pair"),
        ({"mark": "accept", "chosen": "1"}, "chosen"),
        ({"mark": "accept", "run": "../run"}, "there is no run"),
        ({"mark": "accept", "further": 1}, "further"),
    ],
)
def test_invalid_marks_are_refused(
    own: tuple[Path, Ask, Ask], values: dict[str, Any], error: str
) -> None:
    folder, pairs, mark = own
    (pair, *_) = keys(pairs()["pairs"])
    assert error in mark(400, **{**as_query(pair), **values})["error"]
    assert not (folder / "review.jsonl").exists()


def test_no_mark_without_the_token(own: tuple[Path, Ask, Ask]) -> None:
    folder, pairs, mark = own
    (pair, *_) = keys(pairs()["pairs"])
    refused = mark(403, token="another", **as_query(pair), mark="reject")
    assert "token" in refused["error"]
    assert not (folder / "review.jsonl").exists()


def test_a_run_without_pairs(own: tuple[Path, Ask, Ask]) -> None:
    folder, pairs, _ = own
    shutil.rmtree(folder / "dpo")
    assert pairs() == {"pairs": [], "next": None, "total": None, "marks": {}}
