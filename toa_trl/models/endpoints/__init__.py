"""Servers that agents and rewards ask.

`Endpoints`, over which requests are spread, and the rule of every fault.
"""

from toa_trl.models.endpoints.client import Endpoints, RequestError

__all__ = ["Endpoints", "RequestError"]
