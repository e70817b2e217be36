"""What holds for the rows of every builder, and which plays each of them takes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_policies import rollouts
from tests.helpers import completion_of, play, rollout
from toa_trl.data.builders import Recipe, build_rows
from toa_trl.data.plays import usable
from toa_trl.data.recipes import BUILDERS
from toa_trl.tasks import make_task
from toa_trl.types import Action, Completion, Play, Rollout, as_dicts

PAIRS = ["top_bottom", "length_matched", "refinement_pairs"]
TASK = make_task("alignment")


def rows_of(it: Rollout, builder: str, keep: bool = False, **params: Any) -> list[dict[str, Any]]:
    """Return the rows of one prompt; without one, there is one reason."""
    recipe = Recipe("r", BUILDERS.build("", {"builder": builder, **params}), keep)
    built = build_rows([it], [recipe], render=TASK.render)
    rows = list(built.rows)
    assert built.dropped.total() == (not rows)
    assert built.made == ({"r": len(rows)} if rows else {})
    assert all(row["recipe"] == "r" for row in rows)
    return rows


def aggregate(index: int, reward: float, *refs: int) -> Play:
    action = Action("b", "aggregate", refs, refs[0], 1)
    return Play(index, action, Completion(f"text {index}"), reward)


@given(
    it=rollouts(),
    builder=st.sampled_from(PAIRS),
    cap=st.integers(1, 5),
    margin=st.sampled_from([0.0, 0.5, 1.5]),
    keep=st.booleans(),
)
@settings(max_examples=150)
def test_what_holds_for_several_pairs(
    it: Rollout, builder: str, cap: int, margin: float, keep: bool
) -> None:
    rows = rows_of(it, builder, keep, max_pairs=cap, margin=margin)
    assert len(rows) <= cap
    plays = {p.index: (rank, p) for rank, p in usable(it, keep)}
    for row in rows:
        for side in ("chosen", "rejected"):
            rank, found = plays[row[f"{side}_play"]]  # neither failed nor truncated, unless kept
            assert row[side] == [{"role": "assistant", "content": completion_of(found).text}]
            assert row[f"{side}_reward"] == found.reward
            assert (row[f"{side}_rank"], row[f"{side}_agent"]) == (rank, found.action.agent)
        gap = row["chosen_reward"] - row["rejected_reward"]
        assert gap > 0
        assert gap >= margin
        assert row["chosen"] != row["rejected"]
        if builder == "refinement_pairs":
            assert row["rejected_play"] in plays[row["chosen_play"]][1].action.refs
        if builder == "length_matched":
            lengths = sorted(len(row[side][0]["content"]) for side in ("chosen", "rejected"))
            assert lengths[1] <= 1.1 * lengths[0]
    texts = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]
    assert len(set(texts)) == len(texts)
    if builder == "length_matched":
        used = Counter(row[f"{side}_play"] for row in rows for side in ("chosen", "rejected"))
        assert set(used.values()) <= {1}


@given(
    it=rollouts(),
    target=st.sampled_from(["child", "best"]),
    cap=st.integers(1, 4),
    margin=st.sampled_from([0.0, 1.0]),
    keep=st.booleans(),
)
@settings(max_examples=100)
def test_what_holds_for_rows_that_refine(
    it: Rollout, target: str, cap: int, margin: float, keep: bool
) -> None:
    rows = rows_of(it, "refinement_sft", keep, target=target, max_rows=cap, margin=margin)
    assert len(rows) <= cap
    plays = {p.index: p for _, p in usable(it, keep)}
    for row in rows:
        draft, better = plays[row["draft_play"]], plays[row["play"]]
        assert row["completion"][0]["content"] == completion_of(better).text
        assert (row["reward"], row["agent"]) == (better.reward, better.action.agent)
        gap = row["reward"] - (draft.reward or 0.0)
        assert gap > 0
        assert gap >= margin
        refine = Action("a", "refine", (draft.index,))
        assert row["prompt"] == as_dicts(TASK.render(it.prompt, refine, plays))
        assert completion_of(draft).text in row["prompt"][-1]["content"]
        if target == "child":
            assert better.action.refs == (draft.index,)
        else:
            assert better == usable(it, keep)[0][1]


@given(it=rollouts(), cap=st.none() | st.integers(2, 5), keep=st.booleans())
@settings(max_examples=150)
def test_what_holds_for_all_scored_responses(it: Rollout, cap: int | None, keep: bool) -> None:
    plays = {p.index: p for _, p in usable(it, keep)}
    texts = {completion_of(p).text for p in plays.values()}
    labelled = rows_of(it, "kto", keep, max_rows=cap)
    assert len(labelled) <= (cap or len(texts))
    for row in labelled:
        assert row["reward"] == plays[row["play"]].reward
        assert row["completion"][0]["content"] == completion_of(plays[row["play"]]).text
    good = [row["reward"] for row in labelled if row["label"]]
    bad = [row["reward"] for row in labelled if not row["label"]]
    assert not good or not bad or min(good) > max(bad)
    for row in rows_of(it, "groups", keep, max_responses=cap):
        assert row["rewards"] == [plays[index].reward for index in row["plays"]]
        assert row["agents"] == [plays[index].action.agent for index in row["plays"]]
        assert row["rewards"] == sorted(row["rewards"], reverse=True)
        assert row["rewards"][0] > row["rewards"][-1]
        shown = [completion[0]["content"] for completion in row["completions"]]
        assert shown == [completion_of(plays[index]).text for index in row["plays"]]
        assert len(set(shown)) == len(shown) == min(len(texts), cap or len(texts))


def texts_of(*lengths: int) -> Rollout:
    """Responses of these lengths, the best first."""
    return rollout(*(play(n, -float(n), chr(97 + n) * length) for n, length in enumerate(lengths)))


SIX = rollout(*(play(n, -float(n)) for n in range(6)))
TREE = rollout(
    play(0, 1.0),
    play(1, 3.0, parent=0),
    play(2, 2.0, parent=1),
    play(3, 4.0, parent=1),
    aggregate(4, 5.0, 0, 1, 2),
    play(5, None),
)


@pytest.mark.parametrize(
    ("it", "builder", "params", "pairs"),
    [
        (SIX, "top_bottom", {"top_k": 2, "bottom_k": 2}, [(0, 5), (1, 4), (0, 4), (1, 5)]),
        (SIX, "top_bottom", {"top_k": 2, "bottom_k": 3, "max_pairs": 3}, [(0, 5), (1, 4), (0, 4)]),
        (SIX, "top_bottom", {"top_k": 1, "bottom_k": 9, "margin": 4.0}, [(0, 5), (0, 4)]),
        (SIX, "top_bottom", {"margin": 9.0}, []),
        (texts_of(100, 50, 109, 99, 50), "length_matched", {}, [(0, 3), (1, 4)]),
        (texts_of(100, 50, 109, 99), "length_matched", {"top_k": 1, "max_pairs": 9}, [(0, 3)]),
        (texts_of(100, 50, 25), "length_matched", {}, []),
        (texts_of(100, 50, 25), "length_matched", {"max_ratio": 4.0}, [(0, 2)]),
        (TREE, "refinement_pairs", {}, [(4, 0), (4, 1), (4, 2), (3, 1)]),
        (
            TREE,
            "refinement_pairs",
            {"margin": 2.0, "max_pairs": 9},
            [(4, 0), (4, 1), (4, 2), (1, 0)],
        ),
        (rollout(play(0, 1.0), play(1, 0.0, parent=0)), "refinement_pairs", {}, []),
    ],
)
def test_which_plays_are_paired(
    it: Rollout, builder: str, params: dict[str, Any], pairs: list[tuple[int, int]]
) -> None:
    rows = rows_of(it, builder, **params)
    assert [(row["chosen_play"], row["rejected_play"]) for row in rows] == pairs


@pytest.mark.parametrize(
    ("params", "rows"),
    [
        ({}, [(4, 1), (3, 1), (1, 0)]),  # play 4 saw three drafts, of which 1 is the best
        ({"margin": 2.0}, [(4, 1), (1, 0)]),
        ({"max_rows": 1}, [(4, 1)]),
        ({"target": "best"}, [(4, 3), (4, 1), (4, 2), (4, 0)]),
        ({"target": "best", "max_rows": 2}, [(4, 3), (4, 0)]),
        ({"target": "best", "max_rows": 1, "margin": 2.5}, [(4, 2)]),
    ],
)
def test_which_drafts_are_refined(params: dict[str, Any], rows: list[tuple[int, int]]) -> None:
    made = rows_of(TREE, "refinement_sft", **params)
    assert [(row["play"], row["draft_play"]) for row in made] == rows


def test_a_response_made_from_several_drafts_is_asked_for_as_its_agent_was() -> None:
    (row, *_) = rows_of(TREE, "refinement_sft")
    plays = {p.index: p for p in TREE.plays}
    asked = TASK.render(TREE.prompt, plays[4].action, plays)
    assert row["prompt"] == as_dicts(asked)
    assert all(f"text {index}" in asked[-1].content for index in (0, 1, 2))


@pytest.mark.parametrize(
    ("params", "labels"),
    [
        ({}, [(0, True), (5, False), (1, True), (4, False), (2, True), (3, False)]),
        ({"max_rows": 3}, [(0, True), (5, False), (1, True)]),
        ({"gap": 2.0}, [(0, True), (5, False)]),
        ({"threshold": -4.0}, [(0, True), (5, False), (1, True), (4, False), (2, True), (3, True)]),
        ({"threshold": 0.0, "max_rows": 2}, [(5, False), (4, False)]),
        ({"threshold": -9.0, "max_rows": 2}, [(0, True), (1, True)]),
        ({"gap": 9.0}, []),
    ],
)
def test_which_label_a_response_gets(
    params: dict[str, Any], labels: list[tuple[int, bool]]
) -> None:
    assert [(row["play"], row["label"]) for row in rows_of(SIX, "kto", **params)] == labels


def test_groups_hold_the_best_the_worst_and_those_between() -> None:
    (row,) = rows_of(SIX, "groups", max_responses=3)
    assert (row["plays"], row["ranks"], row["rewards"]) == ([0, 2, 5], [1, 3, 6], [0.0, -2.0, -5.0])
    assert rows_of(rollout(play(0, 1.0), play(1, 1.0)), "groups") == []
    assert rows_of(rollout(play(0, 1.0), play(1, 1.0)), "kto") == []
