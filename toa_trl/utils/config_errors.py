"""What is wrong in a configuration, in one line that names the path of the key."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from toa_trl.errors import ConfigError

MAX_LISTED = 40  # keys that an error lists; beyond that it names --help
MAX_SHOWN = 80  # characters of a refused value
TYPES = {  # pydantic's name of a wrong type -> the right one
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "callable_type": "a function",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "mapping_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
}

LIMITS = {  # pydantic's name of a number outside its range -> the sign of the limit
    "greater_than_equal": ">=",
    "greater_than": ">",
    "less_than_equal": "<=",
    "less_than": "<",
}


def explain(error: ValidationError, place: str = "") -> str:
    """Return one line for the first error: path of the key, what is wrong, what is allowed."""
    return _explain_first(error.errors(include_url=False), place)


def _explain_first(errors: Sequence[ErrorDetails], place: str) -> str:
    """Explain the first error; where a union allows several types, all of them are named."""
    first, *others = errors
    keys, allowed = _keys(first["loc"]), [_allowed_type(first)]
    for other in others if allowed[0] else ():
        inside, kind = _keys(other["loc"]), _allowed_type(other)
        if isinstance(first["input"], float):  # no integer, but within limits it is allowed
            kind = kind or _range(other) or _choices(other)
        if inside == keys and kind:
            allowed.append(kind)
        elif other["type"].endswith(("_type", "_instance_of")) and not kind:
            continue  # of Python objects, which no configuration holds
        elif inside[: len(keys)] == keys:  # of the right type, but wrong inside
            return _explain(other, place)
    if len(allowed) == 1:
        return _explain(first, place)
    *before, last = dict.fromkeys(map(str, allowed))
    wanted = f"{', '.join(before)} or {last}" if before else last
    return _line(_path(place, first["loc"]), f"must be {wanted}", first)


def _allowed_type(error: ErrorDetails) -> str | None:
    """Return the type that a value should have had, or None for another error."""
    is_sequence = error["type"] == "is_instance_of" and error["ctx"]["class"] == "Sequence"
    return "a list" if is_sequence else TYPES.get(error["type"])


def _range(error: ErrorDetails) -> str | None:
    """Return the limit that a number does not keep, such as ">= 1"; None for another error."""
    sign = LIMITS.get(error["type"])
    (limit,) = error["ctx"].values() if sign else (None,)
    return f"{sign} {limit:g}" if sign else None


def _choices(error: ErrorDetails) -> str | None:
    """Return the texts of which a value should have been one, or None for another error."""
    return str(error["ctx"]["expected"]) if error["type"] == "literal_error" else None


def _explain(error: ErrorDetails, place: str) -> str:
    path, context, kind = _path(place, error["loc"]), error.get("ctx", {}), error["type"]
    if kind == "nested":
        return _explain_first(context["errors"], path)
    if kind == "value_error" and isinstance(context["error"], ConfigError):
        return str(context["error"])  # names its own path
    if kind == "explained":
        return f"{path}: {context['text']}" if path else str(context["text"])
    if kind == "missing":
        parent, key = _path(place, error["loc"][:-1]), error["loc"][-1]
        return f"{parent}: the key {key!r} is missing" if parent else f"{key}: the key is missing"
    allowed = _allowed_type(error) or _range(error)
    if allowed:
        return _line(path, f"must be {allowed}", error)
    wanted = {
        "finite_number": "must be a finite number",
        "string_too_short": "must not be empty",
        "literal_error": "must be one of {expected}",
        "too_short": "must have at least {min_length} entries",
        "value_error": "{error}",
    }.get(kind, error["msg"][:1].lower() + error["msg"][1:].replace("{", "{{").replace("}", "}}"))
    return _line(path, wanted.format(**context), error)


def _line(path: str, wanted: str, error: ErrorDetails) -> str:
    value = error["input"]
    shown = repr(value) if len(repr(value)) <= MAX_SHOWN else f"{repr(value)[:MAX_SHOWN]}..."
    return f"{path}: {wanted}, not {shown}{_remedy(error['type'], value, error.get('ctx', {}))}"


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


def explained(text: object) -> PydanticCustomError:
    """Return an error for a validator to raise: the path of the key, and this text."""
    return PydanticCustomError("explained", "{text}", {"text": str(text)})


def nested(error: ValidationError) -> NoReturn:
    """Raise inside a validator the errors of an inner validation, so that their paths are kept."""
    raise PydanticCustomError(
        "nested", "{text}", {"text": explain(error), "errors": error.errors()}
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
    for part in _keys(location):
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def _keys(location: tuple[int | str, ...]) -> list[int | str]:
    return [part for part in location if isinstance(part, int) or not _is_union_branch(part)]


def _is_union_branch(part: str) -> bool:
    """Whether pydantic put it into the location to say which member of a union it tried."""
    return not part.isidentifier() or part in {
        "str",
        "int",
        "float",
        "bool",
        "callable",
        "list",
        "dict",
        "none",
        "literal",
    }
