"""The arguments that objects of the user's were built with, as far as they can be read.

They decide what an object does, as the keys of a configuration entry do. What an object counts or
caches while it works is no argument of its constructor, so it does not count.
"""

import dis
import functools
import inspect
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from itertools import chain
from pathlib import PurePath
from types import MemberDescriptorType
from typing import Any

from toa_trl.agents import Agent
from toa_trl.rewards import RewardModel
from toa_trl.tasks import Task
from toa_trl.types import as_number

SECRET = re.compile(r"(^|_)(api_?key|access_?key|password|passwd|secret|credentials?)$|^token$")
MISSING = object()
"""Stands for the value of an argument that an object does not keep."""


def arguments_of(thing: Any) -> dict[str, Any]:
    """Return the arguments by name; MISSING for those whose value is unknown.

    Of a `functools.partial` they are its arguments; of a function the constants that it takes from
    the function around it; of a method those of its object; of an object those of its constructor:
    as they were given to an `Agent`, `RewardModel` or `Task`, and as any other object keeps them,
    `x` in the attribute `x` or `_x`. An object that defines `identity` by itself has none, because
    its identity says what decides its results.
    """
    found: dict[str, Any] = {}
    while isinstance(thing, functools.partial):
        found = {f"argument {n}": value for n, value in enumerate(thing.args, 1)} | {
            **thing.keywords,
            **found,
        }
        thing = thing.func
    thing = inspect.unwrap(thing)
    if inspect.ismethod(thing):
        found = {**arguments_of(thing.__self__), **found}
    elif inspect.isfunction(thing):
        found = {**_enclosed(thing), **found}
    elif not inspect.isroutine(thing) and not inspect.isclass(thing) and not _is_known(thing):
        found = {**_constructed_with(thing), **found}
    return {name: value for name, value in found.items() if not SECRET.search(name.lower())}


def as_plain(value: Any) -> Any:
    """Return a value with numbers of numpy, members of enumerations, paths and sets as JSON."""
    if isinstance(value, Enum):
        return as_plain(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(map(as_plain, value), key=repr)
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: as_plain(inner) for key, inner in value.items()}
    return as_number(value)


def is_plain(value: Any) -> bool:
    """Return whether a value is made of JSON values alone."""
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return value is None or isinstance(value, str | bool | int | float)


def _enclosed(function: Any) -> dict[str, Any]:
    """Return what a function takes from the one around it; what may change meanwhile is left out.

    That is a variable that it assigns, and a list or mapping, which may be its cache.
    """
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    assigned = {
        step.argval for step in dis.get_instructions(function) if step.opname == "STORE_DEREF"
    }
    found = {}
    for name, cell in cells:
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        if name not in assigned and not isinstance(value, list | set | dict):
            found[name] = value
    return found


def _is_known(thing: Any) -> bool:
    """Return whether the class that has the constructor, or one below it, defines `identity`."""
    general = (Agent, RewardModel, Task, object)
    return next(
        (
            "identity" in vars(kind) and kind not in general
            for kind in type(thing).__mro__
            if "identity" in vars(kind) or "__init__" in vars(kind)
        ),
        False,
    )


def _constructed_with(thing: Any) -> dict[str, Any]:
    given = getattr(thing, "__dict__", {}).get("_given_arguments")
    if given is not None:
        try:
            bound = inspect.signature(type(thing)).bind(*given[0], **given[1])
        except (TypeError, ValueError):
            return {}
        bound.apply_defaults()
        found = dict(bound.arguments)
        for parameter in bound.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                found |= found.pop(parameter.name)
        return found
    names = dict.fromkeys(chain.from_iterable(map(_parameters, type(thing).__mro__)))
    required = set(_parameters(type(thing)))
    kept = {name: _kept(thing, name) for name in names}
    return {name: kept[name] for name in names if kept[name] is not MISSING or name in required}


def _parameters(kind: type) -> Iterable[str]:
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):  # a type of C
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in named]


def _kept(thing: Any, name: str) -> Any:
    for attribute in (name, f"_{name}"):
        value = inspect.getattr_static(thing, attribute, MISSING)
        if isinstance(value, MemberDescriptorType):  # a slot
            value = getattr(thing, attribute, MISSING)
        if value is not MISSING and not isinstance(value, property):
            return value
    return MISSING
