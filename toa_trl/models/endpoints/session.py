"""The HTTP session of a client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from toa_trl.models.endpoints.urls import proxy_of

CONNECT_S = 30.0


def new_session(key: str) -> aiohttp.ClientSession:
    """Return a session that sends JSON, and the key if there is one. Timeouts are the caller's."""
    proxy_of.cache_clear()
    return aiohttp.ClientSession(
        # What may be in flight is decided by the caller. uvicorn, and so vLLM, closes idle
        # connections after 5 s: not to be reused in that moment, ours are closed before.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {key}"} if key else {}),
        },
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
    )


async def call_at_end_of_loop(close: Callable[[], Awaitable[None]]) -> None:
    """Wait until this task is cancelled, as asyncio.run does with what is left, then close."""
    try:
        await asyncio.Event().wait()
    finally:
        await close()
