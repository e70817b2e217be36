"""The values, and the error tree."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import toa_trl.errors
import toa_trl.types
from tests.helpers import play, rollout
from toa_trl.types import Message, Prompt, Score, as_dicts, as_messages


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
    [[1], [{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": None}], ["x"], 3],
)
def test_what_is_no_message_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError):
        as_messages(wrong)  # type: ignore[arg-type]


def test_a_score_is_a_plain_value() -> None:
    assert Score(0.5) == Score(0.5, flops=None, second=None, weight=1.0)
    assert Score(0.5, 3.0) != Score(0.5)
    assert not isinstance(Score(0.5), float)


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
