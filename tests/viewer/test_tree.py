"""The tree of any prompt, and differences between drafts and responses."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toa_trl.rollouts import Rollouts
from toa_trl.viewer.tree import difference


def test_every_prompt_has_its_tree(runs: Path, ask: Callable[..., Any]) -> None:
    rollouts = list(Rollouts.load(runs / "open"))
    ids = [rollout.prompt.id for rollout in rollouts]
    for position, rollout in enumerate(rollouts):
        tree = ask("tree", run="open", prompt=rollout.prompt.id)
        assert tree["messages"] == [["user", rollout.prompt.messages[0].content]]
        assert tree["before"] == (ids[position - 1] if position else None)
        assert tree["after"] == (ids[position + 1] if position + 1 < len(ids) else None)
        ranks = {play.index: rank for rank, play in enumerate(rollout.ranked, 1)}
        for shown, play in zip(tree["plays"], rollout.plays, strict=True):
            assert shown["play"] == play.index
            assert shown["parent"] == play.action.parent
            assert shown["reward"] == play.reward
            assert shown["rank"] == ranks.get(play.index)
    plays = {play.index: play for play in rollouts[0].plays}
    (refined, *_) = [p for p in plays.values() if p.action.refs and p.completion]
    found = ask("play", run="open", prompt=ids[0], play=refined.index)
    assert refined.completion is not None
    assert found["response"] == refined.completion.text
    (draft,) = found["drafts"]
    assert draft["play"] == refined.action.refs[0]
    assert "".join(text for sign, text in draft["diff"] if sign != "+") == draft["response"]
    assert "".join(text for sign, text in draft["diff"] if sign != "-") == found["response"]


@pytest.mark.parametrize(
    ("path", "query", "error"),
    [
        ("tree", {"prompt": "p99"}, "there is no prompt 'p99'"),
        ("play", {"prompt": "p0", "play": 99}, "has no play 99"),
        ("play", {"prompt": "p99", "play": 0}, "there is no prompt 'p99'"),
        ("prompts", {"limit": 0}, "limit"),
    ],
)
def test_what_is_not_there(
    ask: Callable[..., Any], path: str, query: dict[str, Any], error: str
) -> None:
    assert error in ask(path, 400, run="open", **query)["error"]


def test_prompts_are_found_page_by_page(ask: Callable[..., Any]) -> None:
    found, after = list[str](), None
    while True:
        page = ask("prompts", run="open", limit=3, after=after)
        found += [prompt["id"] for prompt in page["prompts"]]
        assert all(prompt["plays"] >= 12 and prompt["best"] <= 0 for prompt in page["prompts"])
        after = page["next"]
        if after is None:
            break
    assert [prompt_id.split()[0] for prompt_id in found] == [f"p{i}" for i in range(7)]
    (one,) = ask("prompts", run="open", words="question 5?")["prompts"]
    assert one["id"] == "p5"
    assert ask("prompts", run="open", words='no "such" words') == {"prompts": [], "next": None}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("a b c", "a b c", [("=", "a b c")]),
        ("a b c", "a x c", [("=", "a "), ("-", "b"), ("+", "x"), ("=", " c")]),
        # the space between two changes is a part of them
        ("a b c d", "a x y d", [("=", "a "), ("-", "b c"), ("+", "x y"), ("=", " d")]),
        ("", "new", [("+", "new")]),
        ("old", "", [("-", "old")]),
        ("", "", []),
    ],
)
def test_differences(old: str, new: str, expected: list[tuple[str, str]]) -> None:
    assert difference(old, new) == expected


TEXTS = st.text(st.sampled_from("ab \n.ß\U0001f9ee"), max_size=40)


@given(TEXTS, TEXTS)
@settings(max_examples=40)
def test_a_difference_has_both_texts(old: str, new: str) -> None:
    diff = difference(old, new)
    assert "".join(text for sign, text in diff if sign != "+") == old
    assert "".join(text for sign, text in diff if sign != "-") == new
    assert all(text for _, text in diff)


def test_texts_that_repeat_themselves_are_compared_in_bounded_time() -> None:
    old, new = "very long " * 20_000, "very " * 20_000
    start = time.process_time()
    assert difference(old, new) == [("-", old), ("+", new)]
    assert time.process_time() - start < 5
