"""Numbers of numpy and torch, without importing them."""

from typing import Any


def as_number(value: Any) -> Any:
    """Return the number in a torch tensor or numpy array without dimensions; else the value."""
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return value.item()
    return value
