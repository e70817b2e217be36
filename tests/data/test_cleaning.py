"""What is left out of the data sets, and that everything that is missing is counted."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import play, rollout
from toa_trl.data.cleaning import EMPTIED, Cleaning
from toa_trl.data.recipes import make_plan
from toa_trl.errors import ConfigError
from toa_trl.types import Message, Prompt, Rollout
from toa_trl.utils.config import call

GERMAN = "Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter von gestern und heute."
ENGLISH = "This is a perfectly ordinary sentence about the weather of the last few days."
CODE = "```python\nprint(1)\n```"


def cleaning(**params: Any) -> Cleaning:
    return call("clean", Cleaning, params=params)


TEXTS = ("good", "Good ", "bad", "sorry, but I cannot help", "I can't write", "", "long " * 9)


@st.composite
def runs(draw: st.DrawFn) -> list[Rollout]:
    rng, its = random.Random(draw(st.integers(0, 10**6))), []
    for number in range(rng.randrange(6)):
        plays = [
            play(n, rng.choice([None, 0.0, 0.5, 1.0, 2.0]), rng.choice(TEXTS))
            for n in range(rng.randrange(8))
        ]
        asked = rng.choice(["What?", "what?  ", "Why?", "Where is it?"])
        prompt = Prompt(str(number), (Message("user", asked),))
        its.append(Rollout(prompt, tuple(plays)))
    return its


@given(
    its=runs(),
    params=st.fixed_dictionaries(
        {},
        optional={
            "exact_duplicates": st.booleans(),
            "refusals": st.booleans(),
            "min_characters": st.integers(1, 5),
            "max_characters": st.integers(4, 30),
            "max_prompt_characters": st.integers(4, 8),
            "min_prompt_characters": st.integers(5, 6),
            "min_reward": st.sampled_from([0.5, 1.5]),
            "min_margin": st.sampled_from([0.5, 1.5]),
        },
    ),
)
@settings(max_examples=80)
def test_counts_add_up_to_what_is_missing(its: list[Rollout], params: dict[str, Any]) -> None:
    recipes = [{"builder": "top_bottom"}, {"builder": "kto"}, {"builder": "groups"}]
    plan, whole = make_plan(recipes=recipes, clean=params), make_plan(recipes=recipes)
    cleaned = plan.clean(its)
    kept = {it.prompt.id: it for it in cleaned}
    assert [it.prompt.id for it in cleaned] == list(kept)  # read again: the same
    scored = [it for it in its if it.scored]
    assert sum(bool(it.scored) for it in kept.values()) + cleaned.prompts.total() == len(scored)
    if set(cleaned.prompts) <= {EMPTIED}:
        left = sum(len(it.scored) for it in kept.values())
        assert left + cleaned.responses.total() == sum(len(it.scored) for it in its)
    for it in kept.values():
        (before,) = (other for other in its if other.prompt.id == it.prompt.id)
        assert [p for p in before.plays if p in it.plays] == list(it.plays)
    for kind, made in plan.build(cleaned, (), None).items():
        rows = list(made.rows)
        unfiltered = list(whole.build(kept.values(), (), None)[kind].rows)
        assert len(rows) + made.filtered.total() == len(unfiltered)
        assert len(rows) == made.made.total()
        assert all(row in unfiltered for row in rows)


@pytest.mark.parametrize(
    ("params", "text", "reason"),
    [
        ({"min_characters": 5}, "four", "shorter than 5 characters"),
        ({"min_characters": 4}, "four", None),
        ({"max_characters": 3}, "four", "longer than 3 characters"),
        ({"max_characters": 4}, "  four ", None),
        ({"languages": ["en"]}, GERMAN, "another language than en"),
        ({"languages": ["en", "de"]}, GERMAN, None),
        ({"languages": ["de"]}, CODE, None),  # uncertain
        ({"same_language": True}, GERMAN, "another language than asked for"),
        ({"same_language": True}, ENGLISH, None),
        ({"refusals": True}, "I'm sorry, but I can't help with that.", "refusal"),
        ({"refusals": True}, "I’m sorry, I cannot do this.", "refusal"),
        ({"refusals": True}, "I am really sorry but I won't.", "refusal"),
        ({"refusals": True}, "Sorry, I can't assist with that request.", "refusal"),
        ({"refusals": True}, "I cannot provide instructions for that.", "refusal"),
        ({"refusals": True}, "Unfortunately, I'm unable to assist.", "refusal"),
        ({"refusals": True}, "As an AI language model, I do not have opinions.", "refusal"),
        ({"refusals": True}, "I can't stress enough how useful tests are.", None),
        ({"refusals": True}, "I cannot help but smile at this question.", None),
        ({"refusals": True}, "I'm sorry to hear that. Try this: ...", None),
        ({"refusals": True}, 'The robot said: "I\'m sorry, I cannot help."', None),
        ({"refusals": True}, "As an AI researcher, you will need ...", None),
        ({"refusal_patterns": ["^je ne peux pas"]}, "Je ne peux pas vous aider.", "refusal"),
        ({"refusal_patterns": ["no way"]}, "x" * 300 + "no way", None),
        ({}, "I'm sorry, but I can't help with that.", None),
    ],
)
def test_which_responses_are_left_out(
    params: dict[str, Any], text: str, reason: str | None
) -> None:
    it = Rollout(Prompt("p", ENGLISH), (play(0, None), play(1, 1.0, text)))  # type: ignore[arg-type]
    cleaned = cleaning(**params).judge([it])
    assert cleaned.responses == ({} if reason is None else {reason: 1})
    assert cleaned.prompts == ({} if reason is None else {EMPTIED: 1})
    assert list(cleaned) == ([it] if reason is None else [])


@pytest.mark.parametrize(
    ("params", "its", "kept", "reason"),
    [
        ({"max_prompt_characters": 4}, "Why? / Where?", "Why?", "longer than 4 characters"),
        ({"min_prompt_characters": 5}, "Why? / Where?", "Where?", "shorter than 5 characters"),
        ({"prompt_languages": ["de"]}, f"{GERMAN} / {ENGLISH}", GERMAN, "another language than de"),
        (
            {"exact_duplicates": True},
            "Why? / Who? /  why? ",
            "Why? / Who?",
            "duplicate of an earlier prompt",
        ),
    ],
)
def test_which_prompts_are_left_out(
    params: dict[str, Any], its: str, kept: str, reason: str
) -> None:
    run = [
        Rollout(Prompt(str(n), text), (play(0, 1.0),))  # type: ignore[arg-type]
        for n, text in enumerate(its.split(" / "))
    ]
    cleaned = cleaning(**params).judge(run)
    assert [it.prompt.messages[0].content for it in cleaned] == kept.split(" / ")
    assert (cleaned.prompts, cleaned.responses) == ({reason: 1}, {})


def test_a_prompt_is_no_duplicate_of_one_that_gives_no_row() -> None:
    failed = rollout(play(0, None), id="a")
    short, good = rollout(play(0, 1.0, "x"), id="b"), rollout(play(0, 1.0, "fine"), id="c")
    run = [failed, short, good, rollout(play(0, 2.0, "finer"), id="d")]
    cleaned = cleaning(exact_duplicates=True, min_characters=3).judge(run)
    assert [it.prompt.id for it in cleaned] == ["a", "c"]
    assert cleaned.prompts == {EMPTIED: 1, "duplicate of an earlier prompt": 1}


def test_the_best_of_several_duplicates_is_kept_and_the_next_best_is_used() -> None:
    it = rollout(
        play(0, 1.0, "A"), play(1, 3.0, "I cannot help."), play(2, 2.0, "a "), play(3, 0.0, "b")
    )
    plan = make_plan(clean={"exact_duplicates": True, "refusals": True}, sft={"top_k": 4})
    cleaned = plan.clean([it])
    assert cleaned.responses == {"duplicate of a better response": 1, "refusal": 1}
    rows = list(plan.build(cleaned, (), None)["sft"].rows)
    assert [(row["play"], row["rank"]) for row in rows] == [(2, 1), (3, 2)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"reward": 0.4}, "reward below 0.5"),
        ({"reward": 0.5}, None),
        ({"reward": 0.4, "label": False}, None),
        ({"reward": 0.4, "label": True}, "reward below 0.5"),
        ({"chosen": [], "chosen_reward": 0.4, "rejected_reward": -9.0}, "reward below 0.5"),
        (
            {"chosen": [], "chosen_reward": 1.0, "rejected_reward": 0.5},
            "difference of rewards below 1",
        ),
        ({"chosen": [], "chosen_reward": 1.0, "rejected_reward": 0.0}, None),
        ({"rewards": [0.4, -9.0]}, "reward below 0.5"),
        ({"rewards": [0.6, 0.5]}, "difference of rewards below 1"),
        ({"rewards": [0.6, 0.5, -9.0]}, None),
    ],
)
def test_which_rows_are_dropped(row: dict[str, Any], reason: str | None) -> None:
    assert cleaning(min_reward=0.5, min_margin=1.0).row_fault(row) == reason
    assert cleaning().row_fault(row) is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"languages": ["english"]}, r"clean\.languages: 'english' is not the code"),
        ({"prompt_languages": ["e"]}, r"clean\.prompt_languages: 'e' is not the code"),
        ({"refusal_patterns": ["("]}, r"clean\.refusal_patterns: '\(': missing \)"),
        ({"near_duplicates": 1.0}, r"clean\.near_duplicates: .*< 1"),
        ({"min_reward": float("nan")}, r"clean\.min_reward"),
        ({"refusal": True}, r"unknown key 'refusal'.*did you mean 'refusals'"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cleaning(**params)
