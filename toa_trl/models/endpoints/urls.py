"""The addresses of servers: what a base URL may hold, and how requests get there."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from toa_trl.errors import ConfigError
from toa_trl.utils.redaction import looks_like_key

KEY_IN_QUERY = re.compile(r"key|token|secret|password|sig(nature)?", re.IGNORECASE)


def check_key_name(place: str, name: object) -> None:
    """Check that `api_key_env` is the name of an environment variable, and not a key.

    Raises:
        ConfigError: it is not; the message does not show it.
    """
    is_name = isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII)
    if not is_name or looks_like_key(str(name)):
        raise ConfigError(
            f"{place}: api_key_env must be the name of an environment variable that holds the key, "
            "such as OPENAI_API_KEY, and not the key itself"
        )


def same_server(url: URL, moved: URL) -> bool:
    """Return whether a redirect stays on its host and port, or upgrades to https."""
    same_host = (moved.host, moved.user) == (url.host, url.user)
    upgraded = (url.scheme, moved.scheme) == ("http", "https") and moved.is_default_port()
    return same_host and ((moved.scheme, moved.port) == (url.scheme, url.port) or upgraded)


@lru_cache
def proxy_of(url: URL) -> str | None:
    """Return the proxy that the environment names for a URL; never one for this machine."""
    host = url.host or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy is None or proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def shown(url: URL) -> URL:
    """Return a URL for messages, without what may be secret."""
    return url.with_query(None).with_user(None).with_fragment(None)


def parse_url(place: str, given: object, api_key_env: str) -> URL:
    """Return a base URL.

    Raises:
        ConfigError: it is invalid, or holds a name, a password or a key.
    """
    try:
        url = URL(given) if isinstance(given, str) else URL()
        known = url.scheme in ("http", "https") and url.host and url.port
    except ValueError:
        known = False
    if not known:
        raise ConfigError(
            f"{place}: base_url must begin with http:// or https:// and name a host, not {given!r}"
        )
    if url.user or url.password:
        raise ConfigError(
            f"{place}: base_url holds a name or password; keys come from the environment "
            f"({api_key_env})"
        )
    keys = [name for name in url.query if KEY_IN_QUERY.search(name)]
    if keys:
        raise ConfigError(
            f"{place}: base_url holds a key in its query ({keys[0]}); keys come from the "
            f"environment ({api_key_env})"
        )
    return url


@lru_cache
def join(url: URL, path: str) -> URL:
    """Return the URL of a path under a base URL; a query string stays at the end."""
    return (url / path).with_query(url.query) if path else url
