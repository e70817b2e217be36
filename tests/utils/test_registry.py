from __future__ import annotations

import pytest

from toa_trl.errors import ConfigError
from toa_trl.utils.registry import check_keys, check_number, check_whole, choose, construct


def make(first: int, *, width: int, alpha: float = 0.5) -> tuple[int, int, float]:
    return first, width + 0, alpha


def test_constructs_from_parameters() -> None:
    assert construct("here", make, 1, params={"width": 3}) == (1, 3, 0.5)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"wdith": 3}, r"here.*'wdith'.*width, alpha.*did you mean 'width'"),
        ({"width": 3, "first": 2}, "'first'"),
        ({}, "'width' is missing"),
        ({"width": "x"}, "here"),
        ([("width", 3)], "a mapping"),
        (None, "a mapping"),
        ({"width": 3, 7: 1}, "unknown key 7"),
    ],
)
def test_mistakes_name_the_place_and_the_key(params: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        construct("here", make, 1, params=params)  # type: ignore[arg-type]


def test_choose() -> None:
    assert choose("here", "engine", {"a": 1}, "a") == 1
    for wrong in ("b", None, ["a"], 3):
        with pytest.raises(ConfigError, match=r"here: engine .* is not known; choose one of a"):
            choose("here", "engine", {"a": 1}, wrong)


def test_check_keys() -> None:
    check_keys("here", ["a"], ["a", "b"])
    with pytest.raises(ConfigError, match="known: none"):
        check_keys("here", ["a"], [])


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "3", None])
def test_check_whole(wrong: object) -> None:
    check_whole("count", 1, at_least=1)
    with pytest.raises(ConfigError, match="count"):
        check_whole("count", wrong, at_least=1)


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf"), True, "hot", None])
def test_check_number(wrong: object) -> None:
    check_number("tau", 0, at_least=0)
    with pytest.raises(ConfigError, match="tau"):
        check_number("tau", wrong, at_least=0)
    with pytest.raises(ConfigError, match="> 0"):
        check_number("tau", 0, at_least=0, above=True)
