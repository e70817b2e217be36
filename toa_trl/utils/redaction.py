"""Removing addresses and local paths from what is published."""

from __future__ import annotations

import re
from pathlib import Path

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# a name with such a suffix, or under runs/, is a path even if it no longer exists
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
# Deliberately broad: better to redact too much. URLs, host:port, and IP addresses as Python's own
# errors write them.
ADDRESS = re.compile(
    r"""
    \b\w+://[^\s'"<>]*[^\s'"<>:.,;)\]}]                                      # URL
    | \[?(?<![\w:])(?:[\da-f]{0,4}:){2,7}[\da-f]{0,4}(?![\w:])\]?(?::\d+)?   # IPv6
    | (?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?![\w.]*\w)                 # IPv4
    | \blocalhost\b(?::\d+)?
    | (?<![\w.-])(?=[\w.-]*[a-z])[\w.-]+:\d{2,5}\b                           # host:port
    """,
    re.IGNORECASE | re.VERBOSE,
)


def public_name(name: str) -> str:
    """Return the publishable name of a model or data set: of a local path, the last part only."""
    is_path = name.startswith(("/", "~", ".")) or name.count("/") > 1 or is_local(name)
    return Path(name).name if is_path else name


def on_hub(name: str) -> bool:
    """Return whether a name can only be one on the Hub."""
    return HUB_NAME.fullmatch(name) is not None and not is_local(name)


def is_local(name: str) -> bool:
    """Return whether a name is a path on this machine."""
    named = name.endswith(SUFFIXES) or name.startswith("runs/")
    return named or Path(name).expanduser().exists()


def without_addresses(text: str) -> str:
    """Return the text of an error with the addresses of servers replaced."""
    return ADDRESS.sub("a server", text)
