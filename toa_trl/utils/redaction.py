"""Removing addresses and local paths from what is published."""

import os
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

KEY = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|xai|r8|pplx|nvapi|ghp|gho|ghs|glpat|api|key)[-_][A-Za-z0-9_-]{16,}"
    r"|\bgithub_pat_\w{20,}|\bAIza[\w-]{30,}|\bAKIA[A-Z0-9]{16}\b|\bxox[abps]-[\w-]{10,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"  # JSON web token
)
BEARER = re.compile(r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
NAMED_SECRET = re.compile(
    r"""((?:api[-_]?key|token|secret|password|passwd|authorization)['"]?\s*[:=]\s*['"]?)"""
    r"""(?!bearer\b|basic\b)(?=\S*\d)[^\s'",;&)}]{6,}""",
    re.IGNORECASE,
)
USER_OF_URL = re.compile(r"(\b\w+://)[^\s/@'\"]+@")
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
MIN_SECRET = 8  # characters of a secret in the environment; shorter values are words


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


def without_secrets(text: str) -> str:
    """Return the text of an error with keys, tokens and passwords replaced by ***.

    Secrets are values of environment variables named as such, and what looks like a key.
    """
    for name, value in os.environ.items():
        if len(value) >= MIN_SECRET and SECRET_NAME.search(name) and value in text:
            text = text.replace(value, "***")
    text = NAMED_SECRET.sub(r"\1***", BEARER.sub(r"\1***", text))
    return KEY.sub("***", USER_OF_URL.sub(r"\1***@", text))


def looks_like_key(name: str) -> bool:
    """Return whether the name of an environment variable looks like a key itself."""
    has_cases = re.search(r"[a-z]", name) and re.search(r"[A-Z]", name)
    is_mixed = re.search(r"\d", name) and (has_cases or "_" not in name)
    return bool(KEY.fullmatch(name) or (len(name) >= 16 and is_mixed))
