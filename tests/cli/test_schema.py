"""JSON schemas of the configurations, and the reference page made from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from toa_trl.cli.main import run
from toa_trl.cli.schema import CONFIGURATIONS, reference_page, schema_of

ROOT = Path(__file__).parents[2]


def references(schema: Any) -> Iterator[str]:
    parts = schema.values() if isinstance(schema, dict) else schema
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"]
    for part in parts:
        if isinstance(part, dict | list):
            yield from references(part)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_schemas_are_valid_and_complete(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(["schema", name])
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(references(schema)) <= {f"#/$defs/{key}" for key in schema["$defs"]}


def errors(name: str, content: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema_of(name))
    return [error.json_path for error in validator.iter_errors(content)]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("synthesize", "demo/synthesize"),
        ("synthesize", "llama3-8b/synthesize"),
        ("serve", "demo/synthesize"),
        ("evaluate", "demo/evaluate"),
        ("compare", "demo/compare"),
        ("compare", "demo/data_table"),
        ("iterate", "demo/iterate"),
    ],
)
def test_the_bundled_configurations_are_valid(name: str, file: str) -> None:
    content = yaml.safe_load((ROOT / f"recipes/configs/{file}.yaml").read_text(encoding="utf-8"))
    assert errors(name, content) == []


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"budget": 0}, "$.budget"),
        ({"budegt": 3}, "$"),
        ({"agents": [{"name": "a", "engine": "scripted", "latency": 1}]}, "$.agents[0]"),
        ({"agents": [{"engine": "scripted"}]}, "$.agents[0]"),
        ({"reward": {"kind": "clasifier"}}, "$.reward"),
        ({"sampling": {"top_p": 2}}, "$.sampling.top_p"),
        ({"search_params": {"widht": 3}}, "$.search_params"),
    ],
)
def test_a_mistake_is_found_by_the_schema(changes: dict[str, Any], path: str) -> None:
    content = {
        "agents": [{"name": "a", "engine": "scripted"}],
        "reward": {"kind": "length"},
        "output_dir": "x",
    }
    assert errors("synthesize", content) == []
    assert path in errors("synthesize", {**content, **changes})


@pytest.mark.parametrize(
    "changes", [{"port": 0}, {"max_budget": "48k"}, {"search_params": {"x": 1}}]
)
def test_a_mistake_in_a_server_is_found_by_the_schema(changes: dict[str, Any]) -> None:
    content = {"agents": [{"name": "a", "engine": "scripted"}], "reward": {"kind": "length"}}
    assert errors("serve", {**content, "port": 8001}) == []
    assert errors("serve", {**content, **changes}) == [f"$.{next(iter(changes))}"]


def test_the_reference_page_is_current() -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    assert page == reference_page(), (
        "write it: toa-trl schema --markdown > docs/reference/configuration.md"
    )
