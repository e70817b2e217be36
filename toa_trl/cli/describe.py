"""JSON schemas in words, for --help and the reference page."""

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from toa_trl.utils.config import Config
from toa_trl.utils.registry import LATER

PLAIN = {"boolean": "true or false", "object": "mapping", "null": "null", "string": "string"}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def describe_type(schema: Mapping[str, Any]) -> str:
    """Return what a JSON schema allows in words, such as "integer >= 1"."""
    branches = schema.get("anyOf") or schema.get("oneOf") or []
    if branches and "properties" not in branches[0]:
        kinds = [describe_type(branch) for branch in branches if branch.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type", "object" if {"$ref", LATER} & schema.keys() else "any value")
    if kind == "array":
        return f"list of {_plural(describe_type(schema.get('items', {})))}"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([PLAIN.get(kind, kind), " and ".join(bounds)]).strip()


def default_of(field: FieldInfo) -> str:
    """Return the default of a field in words."""
    if field.is_required():
        return "required"
    return default_text(field.get_default(call_default_factory=True))


def describe_keys(model: type[Config]) -> str:
    """Return the keys of a configuration in at most 100 columns: name, meaning and default."""
    lines = list[str]()
    for name, field in model.model_fields.items():
        text = f"{' '.join((field.description or '').split())} [{default_of(field)}]"
        lines += textwrap.wrap(
            text, 100, initial_indent=f"    {name:17}", subsequent_indent=" " * 21
        )
    return "\n".join(lines)


def default_text(value: Any) -> str:
    """Return a default in words, as YAML and JSON write it."""
    if isinstance(value, Config):
        value = value.model_dump(exclude_defaults=True)
    return "no default" if value in (None, "") else f"default: {json.dumps(value)}"


def _plural(name: str) -> str:
    first, space, rest = name.partition(" ")
    return f"{first if first == 'any' else first + 's'}{space}{rest}"
