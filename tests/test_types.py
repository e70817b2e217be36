"""The values, and the error tree."""

from __future__ import annotations

import dataclasses
import inspect
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import toa_trl.errors
import toa_trl.types
from tests.helpers import play, rollout
from toa_trl.types import Flops, Message, Prompt, Score, as_dicts, as_messages, is_finite


def test_values_are_frozen() -> None:
    values = [c for _, c in inspect.getmembers(toa_trl.types, dataclasses.is_dataclass)]
    assert len(values) >= 7
    for value in values:
        assert vars(value)["__dataclass_params__"].frozen


def test_messages_in_every_form() -> None:
    expected = (Message("system", "s"), Message("user", "u"))
    dicts = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert as_messages(dicts) == as_messages(expected) == as_messages(iter(dicts)) == expected
    assert as_messages("u") == (Message("user", "u"),)
    assert as_dicts(expected) == dicts
    assert Prompt("p", "u").messages == (Message("user", "u"),)  # type: ignore[arg-type]
    assert Prompt("p", dicts).messages == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            [1],
            [{"role": "user"}],
            [{"content": "x"}],
            [{"role": "user", "content": None}],
            ["x"],
            3,
        ),
        [{"role": "user", "content": "x", "name": 3}],
        [{"role": "tool", "content": "x", "tool_call_id": ["a"]}],
        [{"role": "assistant", "content": None, "tool_calls": []}],
        [{"role": "assistant", "content": "", "tool_calls": "f(1)"}],
        [{"role": "assistant", "content": "", "tool_calls": ["f(1)"]}],
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {}}}]}],
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "f", "arguments": "1 +"}}],
            }
        ],
    ],
)
def test_what_is_no_message_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError):
        as_messages(wrong)  # type: ignore[arg-type]


def test_a_score_is_a_plain_value() -> None:
    assert Score(0.5) == Score(0.5, flops=None, second=None, weight=1.0)
    assert Score(0.5, 3.0) != Score(0.5)
    assert not isinstance(Score(0.5), float)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (1, 1.0),
        (True, 1.0),
        (Fraction(1, 2), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(-3), -3.0),
        (torch.tensor(0.25), 0.25),
        (-1e100, -1e100),
    ],
)
def test_a_score_holds_numbers_of_python(given: Any, kept: float) -> None:
    score = Score(given, flops=np.float32(2), second=given)  # type: ignore[arg-type]
    assert [type(each) for each in (score.value, score.flops, score.second)] == [float] * 3
    assert (score.value, score.flops, score.second) == (kept, 2.0, kept)


@pytest.mark.parametrize(
    "given", [math.nan, -math.inf, 10**400, 2e100, "1", None, Decimal(1), torch.ones(2), 1j]
)
@pytest.mark.parametrize("name", ["value", "second"])
def test_no_score_is_made_of_what_is_no_reward(given: Any, name: str) -> None:
    if name == "second" and given is None:  # there is none
        return
    with pytest.raises(ValueError, match="a score must be"):
        Score(**{"value": 0.0, name: given})


@pytest.mark.parametrize(
    ("given", "expected"), [(1e308, True), (10**308, True), (10**400, False), (math.nan, False)]
)
def test_what_is_finite(given: Any, expected: bool) -> None:
    assert is_finite(given) == expected


def test_ranked_is_best_first_and_the_earlier_of_equals_first() -> None:
    it = rollout(play(0, 1.0), play(1, None), play(2, 3.0), play(3, 1.0), play(4, 3.0))
    assert [p.index for p in it.scored] == [0, 2, 3, 4]
    assert [p.index for p in it.ranked] == [2, 4, 0, 3]


def test_the_error_tree_is_the_one_drawn() -> None:
    errors = [
        c
        for _, c in inspect.getmembers(toa_trl.errors, inspect.isclass)
        if issubclass(c, Exception)
    ]
    drawn = toa_trl.errors.__doc__ or ""
    assert len(errors) == 7
    for error in errors:
        assert error.__name__ in drawn
        assert issubclass(error, toa_trl.errors.ToaError)
    assert issubclass(toa_trl.errors.ConfigError, ValueError)
    assert issubclass(toa_trl.errors.SearchError, ValueError)


CALL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "arguments": {"a": [3, 4]}},
}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "What is 3 + 4?", "name": "ada"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "given"}]},
    {"role": "tool", "name": "add", "content": "7"},
    {"role": "tool", "content": "7", "tool_call_id": "given"},
    {"role": "user", "content": "And twice that?"},
]


def test_tool_calls_and_names_are_kept() -> None:
    assert as_dicts(as_messages(CONVERSATION)) == CONVERSATION
    assert hash(as_messages(CONVERSATION)) == hash(as_messages(CONVERSATION))
    changed = [*CONVERSATION[:1], {**CONVERSATION[1], "tool_calls": [CALL]}, *CONVERSATION[2:]]
    assert as_messages(changed) != as_messages(CONVERSATION)
    assert [message.text for message in as_messages(CONVERSATION)[:2]] == [
        "What is 3 + 4?",
        '{"name": "add", "arguments": {"a": [3, 4]}}\n{"name": "add", "arguments": {"a": [3, 4]}}',
    ]


def test_a_message_is_shown_with_what_is_set() -> None:
    assert repr(Message("user", "u")) == "Message(role='user', content='u')"
    assert repr(as_messages(CONVERSATION)[3]) == (
        "Message(role='tool', content='7', tool_call_id='given')"
    )


def test_null_keys_and_arguments_as_json_are_read_as_in_trls_format() -> None:
    nulls = [{"name": None, "tool_calls": None, "tool_call_id": None, **m} for m in CONVERSATION]
    function = {"name": "add", "arguments": '{"a": [3, 4]}'}
    nulls[1] |= {"content": None, "tool_calls": [{"function": function, "id": None}, CALL]}
    expected = [*CONVERSATION]
    expected[1] = {**CONVERSATION[1], "tool_calls": [CALL, CALL]}
    assert as_dicts(nulls) == expected


def test_the_formula_of_flops_is_that_of_the_paper() -> None:
    flops = Flops(num_parameters=1000, num_layers=3, hidden_size=16)
    assert flops(10) == 10 * (2 * 1000 + 2 * 3 * 10 * 16)
    assert flops(0) == 0
