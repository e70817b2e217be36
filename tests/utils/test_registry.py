from __future__ import annotations

from dataclasses import replace

import pytest

from toa_trl.agents import ENGINES
from toa_trl.errors import ConfigError
from toa_trl.utils.config import PositiveFloat, PositiveInt, call, validate


def make(first: int, *, width: int, alpha: float = 0.5) -> tuple[int, int, float]:
    return first, width + 0, alpha


def test_constructs_from_parameters() -> None:
    assert call("here", make, 1, params={"width": 3}) == (1, 3, 0.5)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"wdith": 3}, r"here.*'wdith'.*width, alpha.*did you mean 'width'"),
        ({"width": 3, "first": 2}, "'first'"),
        ({}, "'width' is missing"),
        ({"width": "x"}, r"here\.width: must be an integer, not 'x'"),
        ({"width": True}, r"here\.width: must be an integer, not True"),
        ([("width", 3)], "a mapping"),
        (None, "a mapping"),
        ({"width": 3, 7: 1}, "unknown key 7"),
    ],
)
def test_mistakes_name_the_place_and_the_key(params: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        call("here", make, 1, params=params)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, 1.5, "3", "x", None])
def test_a_count_is_a_positive_integer(wrong: object) -> None:
    assert validate(PositiveInt, 1, "count") == 1
    with pytest.raises(ConfigError, match=r"count: must be .*, not "):
        validate(PositiveInt, wrong, "count")


@pytest.mark.parametrize("wrong", [0, -0.1, float("nan"), float("inf"), True, "hot", None])
def test_a_scale_is_a_positive_finite_number(wrong: object) -> None:
    assert validate(PositiveFloat, 1, "tau") == 1
    with pytest.raises(ConfigError, match=r"tau: must be .*, not "):
        validate(PositiveFloat, wrong, "tau")


def test_a_built_in_name_is_found_without_reading_the_installed_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**selection: str) -> None:
        raise AssertionError("read the metadata of every installed package")

    monkeypatch.setattr("toa_trl.utils.registry.entry_points", refuse)
    agents = replace(ENGINES)
    systems = replace(agents, built_in={}, base=agents)
    for registry in (agents, systems):
        assert "transformers" in registry
        assert registry["transformers"] == "toa_trl.agents.transformers:TransformersAgent"
        assert registry.load("transformers").__name__ == "TransformersAgent"
