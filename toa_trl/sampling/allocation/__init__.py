"""The budget of a run, divided among its prompts."""

from collections.abc import Mapping
from typing import Any

from toa_trl.sampling.allocation.base import Allocation
from toa_trl.utils.registry import Registry

ALLOCATIONS: Registry[Allocation] = Registry(
    key="kind",
    built_in={
        "uniform": "toa_trl.sampling.allocation.base:Uniform",
        "adaptive": "toa_trl.sampling.allocation.adaptive:Adaptive",
    },
    group="toa_trl.allocations",
)

__all__ = ["ALLOCATIONS", "Allocation", "make_allocation"]


def make_allocation(entry: Mapping[str, Any] | None) -> Allocation:
    """Return the allocation that an entry {kind, ...} describes; None: uniform.

    Raises:
        ConfigError: a key is unknown, or a value is invalid.
    """
    return ALLOCATIONS.build("allocation", entry or {"kind": "uniform"})
