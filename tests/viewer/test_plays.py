"""Pages of plays: filters and orders agree with the plays, from the journal and from rollouts/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.viewer.conftest import AGENTS
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.journal import Journal
from toa_trl.viewer import plays as of_plays

KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "prompt": lambda row: row["prompt"].encode(),
    "agent": lambda row: row["agent"].encode(),
    "kind": lambda row: row["kind"],
    "depth": lambda row: row["depth"],
    "reward": lambda row: row["reward"],
    "tokens": lambda row: row["tokens"],
    "finish": lambda row: row["finish"],
}


@pytest.fixture(scope="module")
def rows(runs: Path) -> list[dict[str, Any]]:
    """What the table shows, from the rollouts."""
    return [
        {
            "prompt": rollout.prompt.id,
            "play": play.index,
            "agent": play.action.agent,
            "kind": play.action.kind,
            "depth": play.action.depth,
            "reward": play.reward,
            "tokens": play.completion.completion_tokens if play.completion else None,
            "finish": play.completion.finish_reason if play.completion else None,
            "error": play.error,
        }
        for rollout in Rollouts.load(runs / "open")
        for play in rollout.plays
    ]


def read_all(ask: Callable[..., Any], **query: Any) -> list[tuple[str, int]]:
    """Return the keys of all pages, which are as long as they say."""
    keys, after = list[tuple[str, int]](), None
    while True:
        page = ask("plays", after=after, limit=60, **query)
        keys += [(play["prompt_id"], play["play"]) for play in page["plays"]]
        after = page["next"]
        if after is None:
            return keys
        assert len(page["plays"]) == 60


@pytest.mark.parametrize("run", ["complete", "open"])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", KEYS)
def test_pages_are_sorted_and_complete(
    ask: Callable[..., Any], rows: list[dict[str, Any]], run: str, sort: str, descending: bool
) -> None:
    key = KEYS[sort]
    known = [row for row in rows if key(row) is not None]
    expected = sorted(known, key=lambda row: (row["prompt"].encode(), row["play"]))
    expected.sort(key=key, reverse=descending)
    missing = [row for row in rows if key(row) is None]
    expected += sorted(missing, key=lambda row: (row["prompt"].encode(), row["play"]))
    found = read_all(ask, run=run, sort=sort, descending=descending)
    assert found == [(row["prompt"], row["play"]) for row in expected]


@pytest.mark.parametrize("run", ["complete", "open"])
@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ({"agent": AGENTS[2]}, lambda row: row["agent"] == AGENTS[2]),
        ({"kind": "refine"}, lambda row: row["kind"] == "refine"),
        ({"depth": 1}, lambda row: row["depth"] == 1),
        ({"state": "failed"}, lambda row: row["reward"] is None),
        ({"state": "scored"}, lambda row: row["reward"] is not None),
        ({"error": "http 503 </SCRIPT>"}, lambda row: row["error"] is not None),
        ({"finish": "stop"}, lambda row: row["finish"] == "stop"),
        ({"min_reward": -1.0}, lambda row: (row["reward"] or -9) >= -1),
        ({"max_reward": -1.0}, lambda row: row["reward"] is not None and row["reward"] <= -1),
        ({"min_tokens": 8}, lambda row: (row["tokens"] or 0) >= 8),
        ({"max_tokens": 7}, lambda row: row["tokens"] is not None and row["tokens"] <= 7),
        ({"prompt": "p2"}, lambda row: row["prompt"] == "p2"),
        ({"prompt": "QUESTION 3? </script>"}, lambda row: row["prompt"].startswith("p3")),
        ({"prompt": "question", "kind": "refine"}, lambda row: row["kind"] == "refine"),
        ({"agent": "' OR 1 = 1 --"}, lambda row: False),
    ],
)
def test_filters(
    ask: Callable[..., Any],
    rows: list[dict[str, Any]],
    run: str,
    filters: dict[str, Any],
    matches: Callable[[dict[str, Any]], bool],
) -> None:
    expected = {(row["prompt"], row["play"]) for row in rows if matches(row)}
    assert expected or "OR 1" in str(filters) or "error" in filters
    for sort in ("prompt", "reward"):
        found = read_all(ask, run=run, sort=sort, **filters)
        assert set(found) == expected
        assert len(found) == len(expected)
    assert ask("count", run=run, **filters) == {"count": len(expected)}


def test_large_prompt_filters_use_the_files(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_index = read_all(ask, run="complete", prompt="question", sort="reward")
    monkeypatch.setattr(of_plays, "SMALL", 1)
    assert read_all(ask, run="complete", prompt="question", sort="reward") == by_index
    assert ask("count", run="complete", prompt="question")["count"] == len(by_index)


def test_newest_first(ask: Callable[..., Any]) -> None:
    for run in ("complete", "open"):
        page = ask("plays", run=run, sort="written", descending=True)
        times = [play["written_s"] for play in page["plays"]]
        assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"sort": "response"}, "sort"),
        ({"after": "x"}, "after: not the key of a row"),
        ({"after": "[1]"}, "after: not the key of a row"),
        ({"limit": 100_000}, "limit"),
        ({"depth": "x"}, "depth"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_invalid_queries_name_the_parameter(
    ask: Callable[..., Any], query: dict[str, Any], error: str
) -> None:
    assert error in ask("plays", 400, run="open", **query)["error"]


def test_a_slow_query_ends(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(runs / "open/journal.sqlite", lock=False)
    endless = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i FROM n) SELECT * FROM n"
    plays = of_plays.Plays(journal, runs / "nowhere")
    with monkeypatch.context() as patch:
        patch.setattr(of_plays, "LIMIT_S", 0.05)
        with pytest.raises(ConfigError, match=r"takes longer than 0 s.*filter by prompt"):
            plays.select(f"{endless} LIMIT 100000000")
    assert plays.select("SELECT 1") == [(1,)]  # the limit is that of one statement
    journal.close()
