"""Near duplicates: found whatever the order, kept apart where texts only look alike."""

from __future__ import annotations

import pytest

from tests.helpers import play, rollout
from toa_trl.data.cleaning import Cleaning
from toa_trl.data.duplicates import Duplicates
from toa_trl.types import Message, Prompt

STORY = " ".join(f"word{n}" for n in range(60))
NEAR = STORY.replace("word59", "end")  # shares 57 of 59 three-word sequences
HALF = " ".join(f"word{n}" for n in range(45)) + " " + " ".join(f"other{n}" for n in range(45))
CHINESE = "".join(chr(0x4E00 + n) for n in range(60))


@pytest.mark.parametrize(
    ("first", "second", "near"),
    [
        (STORY, NEAR, True),
        (NEAR, STORY, True),
        (STORY, STORY.upper().replace(" ", "\n"), True),
        (STORY, HALF, False),
        (STORY, " ".join(reversed(STORY.split())), False),
        (CHINESE, CHINESE[:-1], True),
        (CHINESE, CHINESE[::-1], False),
        ("Why?", "Why not?", False),
        ("Why?", "why", True),
        ("", " ", True),
        ("", "Why?", False),
    ],
)
def test_which_texts_are_near(first: str, second: str, near: bool) -> None:
    duplicates = Duplicates(exact=False, near=0.8)
    is_duplicate = duplicates.of_responses()
    assert [is_duplicate(text) for text in (first, second)] == [False, near]
    assert not duplicates.of_responses()(second)  # of another prompt
    asked = [Prompt(text[:2], (Message("user", text),)) for text in (first, second)]
    assert [duplicates.prompt(prompt) for prompt in asked] == [False, near]


def test_near_prompts_and_responses_are_counted() -> None:
    its = [rollout(play(0, 1.0, STORY), play(1, 2.0, NEAR), play(2, 0.0, HALF), id="a")]
    its.append(rollout(play(0, 1.0, STORY), id="b"))
    cleaned = Cleaning(near_duplicates=0.8).judge(its)
    (kept,) = cleaned
    assert [p.index for p in kept.plays] == [1, 2]  # the better one of two near ones
    assert cleaned.responses == {"duplicate of a better response": 1}
    assert cleaned.prompts == {"duplicate of an earlier prompt": 1}
