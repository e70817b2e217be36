"""Errors of the typed configuration: the path of the key, what is allowed, and the value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from toa_trl.agents import ENGINES
from toa_trl.errors import ConfigError
from toa_trl.pipeline.config import StageConfig
from toa_trl.search.toa import Share
from toa_trl.tasks import Templates
from toa_trl.utils.config import Config, PositiveInt, validate

Entries = list[Annotated[dict[str, Any], ENGINES]]
OPENAI = {"name": "b", "engine": "openai", "model": "m", "base_url": "http://host/v1"}
NUMBERS = [
    (-1, "must be >= 1, not -1"),
    (0, "must be >= 1, not 0"),
    (1.5, "must be an integer, not 1.5"),
    ("x", "must be an integer, not 'x'"),
    (True, "must be an integer, not True"),
    (None, "must be an integer, not None"),
    (2**63, "must be <= 9223372036854775807"),
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"modle": 1},
            r"agents[1]: unknown key 'modle'; known: price, name, model.*(did you mean 'model'?)",
        ),
        ({"engine": "opnai"}, "agents[1]: unknown engine 'opnai'.*(did you mean 'openai'?)"),
        ({"model": 3}, "agents[1].model: must be a string, not 3"),
        ({"model": ""}, "agents[1].model: must not be empty, not ''"),
        ({"timeout_s": 0}, "agents[1].timeout_s: must be > 0, not 0"),
        ({"timeout_s": float("inf")}, "agents[1].timeout_s: must be a finite number, not inf"),
        ({"keep_reasoning": 1}, "agents[1].keep_reasoning: must be true or false, not 1"),
        ({"price": {"prompt": -1}}, "agents[1].price.prompt: must be >= 0, not -1"),
        ({"sampling": 3}, "agents[1].sampling: must be a mapping of keys to values, not 3"),
        (
            {"sampling": {"temperature": -0.5}},
            "agents[1].sampling.temperature: must be >= 0, not -0.5",
        ),
        (
            {"sampling": {"temperature": "1e-5"}},
            "agents[1].sampling.temperature: must be a number, not '1e-5' "
            "(YAML reads this as text; write 1.0e-05)",
        ),
        ({"sampling": {"top_p": 2}}, "agents[1].sampling.top_p: must be <= 1, not 2"),
        (
            {"sampling": {"topp": 1}},
            "agents[1].sampling: unknown key 'topp'.*(did you mean 'top_p'?)",
        ),
        (
            {"sampling": {"stop": ["a", ""]}},
            "agents[1].sampling.stop[1]: must not be empty, not ''",
        ),
        (
            {"sampling": {"stop": 3}},
            "agents[1].sampling.stop: must be a string or a list of strings, not 3",
        ),
        ({"base_url": 3}, "agents[1].base_url: must be a string or a list, not 3"),
        ({"base_url": ["http://a", 3]}, "agents[1].base_url[1]: must be a string, not 3"),
        *(({"max_attempts": value}, f"agents[1].max_attempts: {text}") for value, text in NUMBERS),
    ],
)
def test_errors_name_path_rule_and_value(changes: dict[str, Any], message: str) -> None:
    entries = [{"name": "a", "engine": "scripted"}, {**OPENAI, **changes}]
    with pytest.raises(ConfigError) as error:
        validate(Entries, entries, "agents")
    start, _, end = message.partition(".*")
    assert str(error.value).startswith(start)
    assert str(error.value).endswith(end)


class Named(Config):
    name: str
    names: str


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (StageConfig, {"config": 3}, "a.config: must be a string or a mapping of keys to values"),
        (bool | int | str, [1], "a: must be true or false, an integer or a string, not [1]"),
        (str | list[str] | None, 3, "a: must be a string or a list, not 3"),
        (str | PositiveInt, 0, "a: must be >= 1, not 0"),
        (PositiveInt | Share, 1.5, "a: must be an integer or < 1, not 1.5"),
        (PositiveInt | Share | Literal["any"], -0.5, "a: must be an integer, > 0 or 'any', not"),
        (str | Path, 3, "a: must be a string, not 3"),
        (str | Templates, 3, "a: must be a string, not 3"),
        (Named, {"name": 3, "names": []}, "a.name: must be a string, not 3"),
        (str | list[int], ["b"], "a[0]: must be an integer, not 'b'"),
    ],
)
def test_an_error_names_every_type_that_is_allowed(kind: Any, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(kind, value, "a")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("key", ["engine", "name", "model"])
def test_a_missing_key_is_named(key: str) -> None:
    entry = {name: value for name, value in OPENAI.items() if name != key}
    with pytest.raises(ConfigError, match=rf"agents\[0\]: the key '{key}' is missing"):
        validate(Entries, [entry], "agents")


def test_a_valid_entry_stays_as_it_was_written() -> None:
    entry = {**OPENAI, "sampling": {"temperature": 1, "stop": "END"}, "timeout_s": 5}
    assert validate(Entries, [entry], "agents") == [entry]
    (kept,) = validate(Entries, [entry], "agents")
    assert type(kept["sampling"]["temperature"]) is int


@pytest.mark.parametrize(("value", "message"), NUMBERS)
def test_plain_types_are_validated_without_conversions(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"budget: {message}"):
        validate(PositiveInt, value, "budget")
