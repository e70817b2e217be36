"""What an object was constructed with: part of the identity of the run that uses it."""

from typing import Any, TypeVar

T = TypeVar("T")


def with_arguments(cls: type[T], /, *args: Any, **kwargs: Any) -> T:
    """Return a new object that keeps the arguments of its constructor; used as `__new__`."""
    new = object.__new__(cls)
    vars(new)["_given_arguments"] = (args, kwargs)
    return new
