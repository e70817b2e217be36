"""A reward function for dry runs, in TRL's signature."""

from __future__ import annotations

import hashlib
from typing import Any


def digest_reward(completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:
    """A number in [0, 1) that only the text decides."""
    return [
        int(hashlib.md5(c[0]["content"].encode()).hexdigest()[:8], 16) / 2**32 for c in completions
    ]
