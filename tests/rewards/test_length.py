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
    reward = make_reward({"kind": "length", **params})
    assert wait(reward.score(Prompt("p", "x"), TEXTS)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"unit": "word"}, "unit: must be one of 'words' or 'characters', not 'word'.*'words'"),
        ({"unit": None}, "unit: must be one of 'words' or 'characters', not None"),
        ({"target": -1}, "target: must be >= 0, not -1"),
        ({"target": float("nan")}, "target: must be "),
        ({"target": "100"}, "target: must be a number, not '100'"),
    ],
)
def test_mistakes_are_named(params: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"^reward\.{named}"):
        make_reward({"kind": "length", **params})
