from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import wait
from toa_trl.errors import ConfigError
from toa_trl.rewards import make_reward
from toa_trl.types import Prompt

TEXTS = ["", "one", "one two\n\nthree ", "五 六"]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [0, 1, 3, 2]),
        ({"unit": "characters"}, [0, 3, 15, 3]),
        ({"target": 2}, [-2, -1, -1, 0]),
        ({"target": 0}, [0, -1, -3, -2]),
        ({"unit": "characters", "target": 3.5}, [-3.5, -0.5, -11.5, -0.5]),
    ],
)
def test_counts(params: dict[str, Any], expected: list[float]) -> None:
    assert (
        wait(make_reward({"kind": "length", **params}).score(Prompt("p", "x"), TEXTS)) == expected
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"unit": "word"}, "unit 'word' is not known.*did you mean 'words'"),
        ({"unit": None}, "unit None is not known"),
        ({"target": -1}, "target: a number >= 0 is needed"),
        ({"target": float("nan")}, "target: a number >= 0 is needed"),
        ({"target": "100"}, "target: a number >= 0 is needed"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward 'length'.*{named}"):
        make_reward({"kind": "length", **params})
