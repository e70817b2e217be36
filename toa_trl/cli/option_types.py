"""Types of the values that a YAML file gives to options of TRL's parsers.

argparse reads texts alone as the types of its options, and takes every other value as it is.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from toa_trl.errors import ConfigError

WHAT = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def check_types(settings: Mapping[str, Any], options: Sequence[Any], place: str) -> None:
    """Check values of a YAML file against the annotations of the dataclasses that take them.

    Args:
        settings: keys and values of the file.
        options: the dataclasses; `takes_entries` of one lists the options that a file gives as
            entries, although argparse needs them to be texts.
        place: of the file, for errors.

    Raises:
        ConfigError: a value is a list, a mapping or a number where its option takes none.
    """
    hints = dict[str, Any]()
    for kind in options:
        hints |= get_type_hints(kind) | dict.fromkeys(getattr(kind, "takes_entries", ()), Any)
    for key, value in settings.items():
        allowed = list(_kinds(hints.get(key, Any)))
        if not _fits(value, allowed):
            known = [WHAT[kind] for kind in allowed if kind in WHAT]
            what = " or ".join(dict.fromkeys(known)) or "of another type"
            raise ConfigError(f"{place}: {key}: must be {what}, not {value!r:.80}")


def _kinds(hint: Any) -> Iterator[Any]:
    """Yield the types of an annotation, without their arguments."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _kinds(part)
    else:
        yield origin or hint


def _fits(value: Any, allowed: Sequence[Any]) -> bool:
    if value is None or isinstance(value, str):
        return True  # argparse reads texts
    if {*allowed} - {*WHAT, type(None), list, dict}:
        return True  # an enumeration, or a type of another library
    if isinstance(value, list | dict):
        return type(value) in allowed
    if not isinstance(value, bool | int | float):
        return False  # such as a date
    if isinstance(value, float) and int in allowed and float not in allowed:
        return value.is_integer()
    return bool({*allowed} & {bool, int, float})
