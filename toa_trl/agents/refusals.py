"""What servers say of a request that they refuse, and what can be done about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# What servers say of a field that they do not take; a prompt that is too long is something else.
NOT_TAKEN = re.compile(
    r"unsupported|not supported|does not support|unrecognized|unknown|unexpected|extra|forbidden"
    r"|not permitted|not allowed|invalid|deprecated|not accept|no longer|instead",
    re.IGNORECASE,
)
TOO_LONG = re.compile(r"context.?(length|window|size)|too (long|large)|maximum", re.IGNORECASE)
# in the errors of Gemma's and Mistral's chat templates, in lower case
NO_SYSTEM = ("system role", "only user and assistant roles", "roles must alternate")


def refuses_system(said: str, asked: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a server's error is about the system message that it was sent."""
    return asked[0]["role"] == "system" and any(text in said.lower() for text in NO_SYSTEM)


def advice_on(said: str, body: Mapping[str, Any]) -> str:
    """Return how to leave out the field that a server's error names, or nothing."""
    if not NOT_TAKEN.search(said) or TOO_LONG.search(said):
        return ""
    named = [
        name
        for name in body
        if name not in ("model", "messages") and re.search(rf"\b{re.escape(name)}\b", said)
    ]
    if "max_tokens" in named and "max_completion_tokens" in said:
        change = "fields: {max_tokens: max_completion_tokens}"
    elif named:
        change = f"fields: {{{', '.join(f'{name}: null' for name in named)}}}"
    else:
        return ""
    return f"; if the server does not take it, set {change} in the agent's entry"
