"""What is wrong in a configuration, in one line that names the path of the key."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from toa_trl.errors import ConfigError

MAX_LISTED = 40  # keys that an error lists; beyond that it names --help
MAX_SHOWN = 80  # characters of a refused value


def explain(error: ValidationError, place: str = "") -> str:
    """Return one line for the first error: path of the key, what is wrong, what is allowed."""
    return _explain(error.errors(include_url=False)[0], place)


def _explain(error: ErrorDetails, place: str) -> str:
    path, context = _path(place, error["loc"]), error.get("ctx", {})
    kind, value = error["type"], error["input"]
    if kind == "nested":
        return _explain(context["error"], path)
    if kind == "value_error" and isinstance(context["error"], ConfigError):
        return str(context["error"])  # names its own path
    if kind in ("unknown_key", "explained"):
        return f"{path}: {context['text']}" if path else str(context["text"])
    if kind == "missing":
        parent, key = _path(place, error["loc"][:-1]), error["loc"][-1]
        return f"{parent}: the key {key!r} is missing" if parent else f"{key}: the key is missing"
    wanted = {
        "int_type": "must be an integer",
        "int_from_float": "must be an integer",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false",
        "string_type": "must be a string",
        "string_too_short": "must not be empty",
        "list_type": "must be a list",
        "tuple_type": "must be a list",
        "dict_type": "must be a mapping of keys to values",
        "mapping_type": "must be a mapping of keys to values",
        "model_type": "must be a mapping of keys to values",
        "greater_than_equal": "must be >= {ge}",
        "greater_than": "must be > {gt}",
        "less_than_equal": "must be <= {le}",
        "less_than": "must be < {lt}",
        "literal_error": "must be one of {expected}",
        "too_short": "must have at least {min_length} entries",
        "value_error": "{error}",
    }.get(kind, error["msg"][:1].lower() + error["msg"][1:].replace("{", "{{").replace("}", "}}"))
    for name in ("ge", "gt", "le", "lt"):
        if name in context:
            context[name] = f"{context[name]:g}"
    shown = repr(value) if len(repr(value)) <= MAX_SHOWN else f"{repr(value)[:MAX_SHOWN]}..."
    return f"{path}: {wanted.format(**context)}, not {shown}{_remedy(kind, value, context)}"


def _remedy(kind: str, value: object, context: Mapping[str, Any]) -> str:
    if kind == "float_type" and isinstance(value, str):
        try:
            number = repr(float(value))
            if "." not in number:  # YAML 1.1 has no floats without a point
                number = number.replace("e", ".0e")
            return f" (YAML reads this as text; write {number})"
        except ValueError:
            return ""
    if kind == "literal_error":
        return nearest(value, re.findall(r"'([^']*)'", str(context["expected"])))
    return ""


def nested(error: ValidationError) -> NoReturn:
    """Raise inside a validator the first error of an inner validation, so that its path is kept."""
    raise PydanticCustomError(
        "nested", "{text}", {"text": explain(error), "error": error.errors()[0]}
    )


def unknown_key(key: object, known: Iterable[str]) -> str:
    """Return the error text for a key that is not among the known ones."""
    known = list(known)
    listed = ", ".join(known) if len(known) <= MAX_LISTED else "see --help"
    return f"unknown key {key!r}; known: {listed or 'none'}{nearest(key, known)}"


def nearest(name: object, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known name, or an empty string."""
    match = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _path(place: str, location: tuple[int | str, ...]) -> str:
    path = place
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _is_union_branch(part):
            path += f".{part}" if path else part
    return path


def _is_union_branch(part: str) -> bool:
    """Whether pydantic put it into the location to say which member of a union it tried."""
    return not part.isidentifier() or part in {
        "str",
        "int",
        "float",
        "bool",
        "list",
        "dict",
        "none",
        "literal",
    }
