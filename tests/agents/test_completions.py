"""Which part of a response is reasoning, in the spellings of many models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toa_trl.agents.completions import TAGS, split_reasoning

HARMONY = (
    "<|channel|>analysis<|message|>Half of 14.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 7.<|return|>"
)


@pytest.mark.parametrize("pair", TAGS, ids=[opening for opening, _ in TAGS])
@pytest.mark.parametrize("change", [str, str.upper])
def test_every_spelling_of_the_tags_is_reasoning(pair: tuple[str, str], change: type[str]) -> None:
    opening, closing = map(change, pair)
    expected = ("Half of 14.", "It is 7.")
    assert split_reasoning(f"{opening}\nHalf of 14.{closing}It is 7.") == expected
    assert split_reasoning(f"\nHalf of 14.\n{closing}\n\nIt is 7.") == expected
    assert split_reasoning(f"{opening} Half of 14.") == ("Half of 14.", "")


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        (HARMONY, "Half of 14.", "It is 7."),
        (f"<|start|>assistant{HARMONY}", "Half of 14.", "It is 7."),
        ("<|channel|>final<|message|>It is 7.<|return|>", None, "It is 7."),
        ("<|channel|>analysis<|message|>Half of", "Half of", ""),
        ("analysisHalf of 14.assistantfinalIt is 7.", "Half of 14.", "It is 7."),
        ("<think>a</think>It is <think>sure?</think>7.", "a\n\nsure?", "It is 7."),
        ("<think>a</think>\n<think>b</think>\n7", "a\n\nb", "7"),
        ("<think>a</think>\n</think>\n\n7", "a", "7"),
        ("<think></think>\n\n7", "", "7"),
        ("so 7.</think>It is 7.", "so 7.", "It is 7."),
        ("<think>The tag `</think>` ends it.\n</think>\n7", "The tag `</think>` ends it.", "7"),
        ("<think>a</think>Write `<think>b</think>`.", "a", "Write `<think>b</think>`."),
        ("<think>a</think>```\n<think>b</think>\n```", "a", "```\n<think>b</think>\n```"),
        ("<think>a</think>It starts with <think>.", "a", "It starts with <think>."),
        ('<think>a</think>"Seven," she said.', "a", '"Seven," she said.'),
    ],
)
def test_blocks_are_split_where_they_end(text: str, reasoning: str | None, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)


@pytest.mark.parametrize(
    "text",
    [
        "It ends its reasoning with `</think>` and then answers; it begins with `<think>`.",
        "The tag </think> ends it.",
        'It ends with "</think>".',
        "```xml\n<think>a</think>\n```",
        "Use <think>a</think> for reasoning.",
        "I think, therefore I am. [a] < b",
        "analysis of assistants",
        "",
    ],
)
def test_a_response_that_speaks_of_tags_is_left_as_it_is(text: str) -> None:
    assert split_reasoning(text) == (None, text)


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "a", " ", "\n", "`", "[THINK]", "<|channel|>"])
    )
)
def test_any_text_is_split_and_the_answer_is_a_part_of_it(parts: list[str]) -> None:
    text = "".join(parts)
    reasoning, answer = split_reasoning(text)
    assert len(answer) + len(reasoning or "") <= len(text) + 2 * len(parts)
    assert reasoning is not None or answer == text or text.lstrip().startswith("<|channel|>")
