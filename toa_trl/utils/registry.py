"""Building things from configuration entries: every unknown or missing key is an error that names the nearest known one."""

from __future__ import annotations

import difflib
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from toa_trl.errors import ConfigError

T = TypeVar("T")


def choose(place: str, key: str, options: Mapping[str, T], name: object) -> T:
    """`options[name]`.

    Raises:
        ConfigError: there is no such option; the message names `place`, `key` and what there is.
    """
    if not isinstance(name, str) or name not in options:
        raise ConfigError(
            f"{place}: {key} {name!r} is not known; choose one of {', '.join(options)}{_nearest(name, options)}"
        )
    return options[name]


def construct(place: str, factory: Callable[..., T], *args: Any, params: Mapping[str, Any]) -> T:
    """`factory(*args, **params)`, where `params` come from a configuration.

    Raises:
        ConfigError: `params` is no mapping, or has a key that the factory does not know, or lacks one that it needs.
    """
    check_arguments(place, factory, len(args), params)
    try:
        return factory(*args, **params)
    except TypeError as error:  # a value of another type than the factory can work with
        raise ConfigError(f"{place}: {error}") from error


def check_arguments(place: str, factory: Callable[..., Any], num_args: int, params: Mapping[str, Any]) -> None:
    """Whether `factory(*args, **params)` could be called with so many args.

    Raises:
        ConfigError: as of `construct`.
    """
    if not isinstance(params, Mapping):
        raise ConfigError(f"{place}: a mapping of keys to values is needed, not {params!r}")
    parameters = list(inspect.signature(factory).parameters.values())
    settable = [p for p in parameters[num_args:] if p.kind is not p.VAR_POSITIONAL]
    check_keys(place, params, [p.name for p in settable])
    if missing := [p.name for p in settable if p.default is p.empty and p.name not in params]:
        raise ConfigError(f"{place}: the key {missing[0]!r} is missing")


def load_object(place: str, path: str) -> Any:
    """What "package.module:name" names; a module in the working directory is found too.

    Raises:
        ConfigError: no such module or name, or the module raises something.
    """
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ConfigError(f"{place}: write it as package.module:name, not {path!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a script's path begins with its own folder, not with the user's
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # the user's own module: whatever it raises
        raise ConfigError(f"{place}: {path!r} cannot be imported: {type(error).__name__}: {error}") from error


def check_keys(place: str, given: Iterable[object], known: Iterable[str]) -> None:
    """Raises:
    ConfigError: one of the given keys is not known.
    """
    known = list(known)
    for key in given:
        if key not in known:
            listed = f"known: {', '.join(known) or 'none'}" if len(known) < 50 else "--help lists those that are known"
            raise ConfigError(f"{place}: unknown key {key!r}; {listed}{_nearest(key, known)}")


def check_whole(name: str, value: object, at_least: int) -> None:
    """Raises:
    ConfigError: the value is no whole number >= `at_least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name}: a whole number >= {at_least} is needed, not {value!r}")


def check_number(name: str, value: object, at_least: float, above: bool = False) -> None:
    """Raises:
    ConfigError: the value is no finite number >= `at_least` (with `above`: > `at_least`).
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < at_least or (above and value == at_least):  # type: ignore[operator]
        raise ConfigError(f"{name}: a number {'>' if above else '>='} {at_least} is needed, not {value!r}")


def _nearest(name: object, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
