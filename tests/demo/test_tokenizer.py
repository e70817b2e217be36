"""The word-level tokenizer: round trips, unknown text, and the prefix that TRL's masking needs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toa_trl.demo import lessons, world
from toa_trl.demo.tokenizer import make_tokenizer

TOKENIZER = make_tokenizer()
SEEDS = st.integers(0, 2**32)


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


@given(SEEDS)
def test_problems_and_solutions_survive_a_round_trip(seed: int) -> None:
    problem = world.draw(random.Random(seed), "train")
    for text in (problem.text, world.solution(problem)):
        assert TOKENIZER.decode(encode(text)) == text
        assert TOKENIZER.unk_token_id not in encode(text)


@given(st.integers(0, 4))
def test_the_templates_hold_known_words_only(num_drafts: int) -> None:
    problem = world.draw(random.Random(num_drafts), "train")
    text = lessons.ask(problem, [world.solution(problem)] * num_drafts)[-1]["content"]
    assert TOKENIZER.unk_token_id not in encode(text)
    assert len(encode(text)) < 300


@given(st.lists(st.integers(7, len(TOKENIZER) - 1)))
def test_what_a_model_writes_is_read_back_as_it_was(ids: list[int]) -> None:
    newline = encode("\n")[0]
    kept = [
        t for i, t in enumerate(ids) if t != newline or (i and ids[i - 1] != newline)
    ]  # newlines in a row are one
    assert encode(TOKENIZER.decode(kept)) == kept


@given(st.text())
def test_stray_text_is_unknown_and_never_an_error(text: str) -> None:
    assert all(0 <= t < len(TOKENIZER) for t in encode(text))
    TOKENIZER.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)


def test_an_unknown_word_is_one_unk() -> None:
    assert encode("Zebra") == [TOKENIZER.unk_token_id]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Add."}]])
def test_the_prompt_is_a_prefix_of_prompt_and_completion(system: list[dict[str, str]]) -> None:
    problem = world.draw(random.Random(0), "train")
    turns = [*system, {"role": "user", "content": problem.text}]
    for _ in range(2):  # one turn, then three
        asked = TOKENIZER.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        turns = [*turns, {"role": "assistant", "content": world.solution(problem)}]
        both = TOKENIZER.apply_chat_template(turns, return_dict=False)
        assert both[: len(asked)] == asked
        assert both[-1] == TOKENIZER.eos_token_id
        turns = [*turns, {"role": "user", "content": "Write a better one."}]
