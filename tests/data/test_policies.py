"""Rollouts -> rows: which response is chosen, which is rejected, and why a prompt gives none."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import completion_of, play, rollout
from toa_trl.data import preference, sft
from toa_trl.data.preference import POLICIES, check_rank
from toa_trl.errors import ConfigError
from toa_trl.types import Play, Rollout
from toa_trl.utils.config import call


def preference_rows(*args: Any, **params: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows, dropped = preference.preference_rows(*args, **params)
    return list(rows), dropped


def sft_rows(*args: Any, **params: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows, dropped = sft.sft_rows(*args, **params)
    return list(rows), dropped


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    # drawn as one seed: a rollout of single choices takes hypothesis a second per example
    rng, plays = random.Random(draw(st.integers(0, 10**6))), list[Play]()
    for index in range(draw(st.integers(0, 14))):
        scored = [p.index for p in plays if p.reward is not None]
        plays.append(
            play(
                index,
                rng.choice([None, -1.0, 0.0, 0.5, 0.5, 1.0, 2.0]),
                rng.choice(["one", "two", "three", "four"]),
                agent=rng.choice("abc"),
                parent=rng.choice([None, *scored]),
                finish_reason=rng.choice(["stop", "stop", "length", "content_filter"]),
            )
        )
    return rollout(*plays)


def reward_of(it: Play) -> float:
    assert it.reward is not None
    return it.reward


def params(policy: str, rank: Any, margin: float) -> dict[str, Any]:
    return {
        "policy": policy,
        "rejected_rank": rank,
        **({"margin": margin} if policy == "margin" else {}),
    }


@given(
    it=rollouts(),
    policy=st.sampled_from(POLICIES),
    rank=st.sampled_from([2, 3, 5, 0.1, 0.5, 0.99]),
    margin=st.sampled_from([0.1, 1.0]),
    keep=st.booleans(),
)
@settings(max_examples=400)
def test_what_holds_for_every_pair(
    it: Rollout, policy: str, rank: Any, margin: float, keep: bool
) -> None:
    rows, dropped = preference_rows([it], keep_truncated=keep, **params(policy, rank, margin))
    assert len(rows) + sum(dropped.values()) == 1  # a row, or a reason
    plays = {p.index: p for p in it.plays}
    whole = {"stop", "length"} if keep else {"stop"}
    usable = [p for p in it.ranked if completion_of(p).finish_reason in whole]
    for row in rows:
        chosen, rejected = plays[row["chosen_play"]], plays[row["rejected_play"]]
        assert row["chosen"] == [{"role": "assistant", "content": completion_of(chosen).text}]
        assert row["rejected"] == [{"role": "assistant", "content": completion_of(rejected).text}]
        assert row["prompt"] == [{"role": "user", "content": "What?"}]
        assert row["prompt_id"] == "p"
        assert (row["chosen_reward"], row["rejected_reward"]) == (
            reward_of(chosen),
            reward_of(rejected),
        )
        assert (row["chosen_agent"], row["rejected_agent"]) == (
            chosen.action.agent,
            rejected.action.agent,
        )
        assert [it.ranked.index(p) + 1 for p in (chosen, rejected)] == [
            row["chosen_rank"],
            row["rejected_rank"],
        ]
        assert reward_of(rejected) < reward_of(chosen)
        assert completion_of(rejected).text != completion_of(chosen).text
        assert chosen in usable
        assert rejected in usable
        if policy != "same_parent":
            assert chosen == usable[0]
        others = [
            p
            for p in usable
            if reward_of(p) < reward_of(chosen)
            and completion_of(p).text != completion_of(chosen).text
        ]
        if policy == "worst":
            assert rejected == others[-1]
        if policy == "margin":
            assert rejected == next(p for p in others if reward_of(chosen) - reward_of(p) >= margin)
        if policy == "same_parent":
            siblings = [p for p in others if p.action.parent == chosen.action.parent]
            assert rejected == siblings[-1]
        if policy == "cross_agent":
            assert rejected.action.agent != chosen.action.agent
        if policy in ("rank", "cross_agent"):
            assert row["rejected_rank"] >= (
                rank if isinstance(rank, int) else max(2, round(rank * len(it.scored)))
            )


@given(it=rollouts(), top_k=st.integers(1, 4), keep=st.booleans())
@settings(max_examples=150)
def test_what_holds_for_every_sft_row(it: Rollout, top_k: int, keep: bool) -> None:
    rows, dropped = sft_rows([it], top_k=top_k, keep_truncated=keep)
    whole = {"stop", "length"} if keep else {"stop"}
    usable = [p for p in it.ranked if completion_of(p).finish_reason in whole]
    assert bool(rows) == bool(usable)
    assert sum(dropped.values()) == (not usable)
    texts = list(dict.fromkeys(completion_of(p).text for p in usable))
    assert [row["completion"][0]["content"] for row in rows] == texts[:top_k]
    if rows:
        assert (rows[0]["play"], rows[0]["reward"]) == (usable[0].index, usable[0].reward)


def of_160() -> Rollout:
    return rollout(*(play(i, (i * 37 % 160) / 160) for i in range(160)))


@pytest.mark.parametrize("rank", [30, 0.1875, 30 / 160])
def test_the_papers_rank_is_30_of_160(rank: float) -> None:
    (row,) = preference_rows([of_160()], rejected_rank=rank)[0]
    assert (row["chosen_rank"], row["rejected_rank"]) == (1, 30)
    assert (row["chosen_reward"], row["rejected_reward"]) == (159 / 160, 130 / 160)
    assert preference_rows([of_160()])[0] == [row]  # the default


@pytest.mark.parametrize("budget", [2, 3, 7, 16, 40, 160, 320])
def test_the_default_rank_suits_every_budget(budget: int) -> None:
    it = rollout(*(play(i, i / budget) for i in range(budget)))
    (row,) = preference_rows([it])[0]
    assert row["rejected_rank"] == max(2, round(budget * 30 / 160))


@pytest.mark.parametrize("policy", ["rank", "cross_agent"])
def test_a_rank_beyond_the_budget_is_refused(policy: str) -> None:
    with pytest.raises(ConfigError, match=r"preference\.rejected_rank: .*rank 30.*budget is 16"):
        check_rank({"policy": policy, "rejected_rank": 30}, 16)
    for fine in ({"rejected_rank": 16}, {"rejected_rank": 0.99}, {}):
        check_rank({"policy": policy, **fine}, 16)
    check_rank({"policy": "worst", "rejected_rank": 30}, 16)
    check_rank({}, 1)  # SFT alone


def test_other_words_for_a_whole_response_and_empty_ones() -> None:
    it = rollout(
        play(0, 9.0, ""), play(1, 2.0, finish_reason="eos_token"), play(2, 1.0, finish_reason="EOS")
    )
    (row,) = preference_rows([it], rejected_rank=2)[0]
    assert (row["chosen_play"], row["rejected_play"], row["chosen_rank"]) == (1, 2, 2)
    assert [row["play"] for row in sft_rows([it], top_k=3)[0]] == [1, 2]


def test_a_rank_counts_truncated_and_repeated_responses_but_does_not_take_them() -> None:
    it = rollout(
        play(0, 5.0, "best"),
        play(1, 4.0, "x"),
        play(2, 3.0, "best"),
        play(3, 2.0, finish_reason="length"),
        play(4, 1.0),
    )
    (row,) = preference_rows([it], rejected_rank=3)[0]
    assert (row["rejected_play"], row["rejected_rank"]) == (4, 5)
    (row,) = preference_rows([it], rejected_rank=3, keep_truncated=True)[0]
    assert (row["rejected_play"], row["rejected_rank"]) == (3, 4)


def test_same_parent_takes_siblings_of_the_best_that_has_some() -> None:
    it = rollout(
        play(0, 1.0), play(1, 9.0, parent=0), play(2, 5.0, parent=3), play(3, 0.5), play(4, 2.0,
        parent=3),
        play(5, 3.0, parent=3),
    )  # fmt: skip
    (row,) = preference_rows([it], policy="same_parent")[0]
    assert (row["chosen_play"], row["rejected_play"]) == (2, 4)


@pytest.mark.parametrize(
    ("it", "changes", "reason"),
    [
        (rollout(), {}, "no play was scored"),
        (rollout(play(0, None)), {}, "no play was scored"),
        (rollout(play(0, 1.0, finish_reason="length")), {}, "every response was truncated"),
        (rollout(play(0, 1.0, " \n"), play(1, 0.0, "")), {}, "every response was empty"),
        (
            rollout(
                play(0, 1.0, finish_reason="length"), play(1, 0.0, finish_reason="content_filter")
            ),
            {},
            "no response was completed (finish_reason content_filter, length)",
        ),
        (
            rollout(play(0, 1.0), play(1, 1.0)),
            {"rejected_rank": 2},
            "no other text has a lower reward than the best",
        ),
        (
            rollout(play(0, 1.0), play(1, 0.0)),
            {"rejected_rank": 3},
            "fewer than 3 scored responses",
        ),
        (
            rollout(play(0, 1.0), play(1, 0.5), play(2, 0.1, finish_reason="length")),
            {"rejected_rank": 3},
            "no usable response at rank 3 or below",
        ),
        (
            rollout(play(0, 1.0), play(1, 0.5)),
            {"rejected_rank": 2, "policy": "cross_agent"},
            "no usable response of another agent at rank 2 or below",
        ),
        (
            rollout(play(0, 1.0), play(1, 0.5)),
            {"policy": "margin", "margin": 0.6},
            "no response is 0.6 below the best",
        ),
        (
            rollout(play(0, 1.0), play(1, 0.5, parent=0)),
            {"policy": "same_parent"},
            "no two responses of one parent differ in text and reward",
        ),
    ],
)
def test_a_prompt_without_a_pair_is_counted_with_its_reason(
    it: Rollout, changes: dict[str, Any], reason: str
) -> None:
    rows, dropped = preference_rows([it, of_160(), it], **changes)
    assert dropped == {reason: 2} or changes.get("policy") in ("cross_agent", "same_parent")
    assert dropped[reason] == (3 if changes.get("policy") == "cross_agent" else 2)
    assert len(rows) + sum(dropped.values()) == 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"policy": "best"}, "policy: must be one of 'rank'.*'best'"),
        ({"rejected_rank": 1}, "rejected_rank"),
        ({"rejected_rank": 0}, "rejected_rank"),
        ({"rejected_rank": 1.0}, "rejected_rank"),
        ({"rejected_rank": 0.0}, "rejected_rank"),
        ({"rejected_rank": 30.0}, "rejected_rank"),
        ({"rejected_rank": True}, "rejected_rank"),
        ({"rejected_rank": "30"}, "rejected_rank"),
        ({"policy": "margin"}, "margin"),
        ({"margin": 0.5}, "margin"),
        ({"policy": "margin", "margin": 0}, "margin"),
        ({"policy": "margin", "margin": float("nan")}, "margin"),
    ],
)
def test_values_out_of_range_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"preference.*{named}"):
        call("preference", preference.preference_rows, [], params=changes)


@pytest.mark.parametrize("top_k", [0, 1.5, True, "2"])
def test_a_top_k_out_of_range_is_refused_by_name(top_k: Any) -> None:
    with pytest.raises(ConfigError, match=r"sft.*top_k"):
        call("sft", sft.sft_rows, [], params={"top_k": top_k})


@pytest.mark.parametrize("make", [sft.sft_rows, preference.preference_rows])
def test_rows_are_made_as_they_are_read(make: Any) -> None:
    read = []

    def run() -> Iterator[Rollout]:
        for it in (of_160(), rollout(), of_160()):
            read.append(it)
            yield it

    rows, dropped = make(run())
    assert (read, dropped) == ([], {})
    next(rows)
    assert (len(read), dropped) == (1, {})
    assert len(list(rows)) == 1
    assert dropped == {"no play was scored": 1}


def test_prompts_that_overlap_give_no_row() -> None:
    its = [rollout(play(0, 1.0), play(1, 0.0), id=id) for id in "abc"] + [
        rollout(play(0, None), id="d")
    ]
    for rows, dropped in (
        sft_rows(its, without=["b", "d", "x"]),
        preference_rows(its, policy="worst", without=["b", "d", "x"]),
    ):
        assert [row["prompt_id"] for row in rows] == ["a", "c"]
        assert dropped == {"overlaps with an evaluation set": 2}
    for wrong in ("abc", [1]):
        for make in (sft.sft_rows, preference.preference_rows):
            with pytest.raises(ConfigError, match=r"rows\.without"):
                call("rows", make, [], params={"without": wrong})
