"""Which requests are answered: those of the page itself, on this machine.

A page of another site must neither read runs nor set marks. A browser sends the address that it
believes to ask (`Host`: another name is DNS rebinding) and where a request comes from (`Origin`,
`Sec-Fetch-Site`). Requests that change something also need the token in the page.
"""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

READING = ("GET", "HEAD")
TOKEN_HEADER = "x-toa-trl-token"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for "
    "'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware that refuses requests of other origins, and sets the headers of responses.

    Args:
        app: the application.
        port: on which it listens.
        token: that requests which change something must have.
    """

    def __init__(self, app: App, port: int, token: str) -> None:
        self._app, self._token = app, token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        reason = self._refusal(scope["method"], scope["path"], headers)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *given]}
            await send(message)

        if reason is None:
            await self._app(scope, receive, with_headers)
        else:
            await JSONResponse({"error": reason}, 403)(scope, receive, with_headers)

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> str | None:
        """Return why a request is refused, or None."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self._hosts:
            return "refused: the viewer is asked under another name than its own"
        if origin is not None and origin != f"http://{host}":
            return "refused: the request comes from another origin"
        # a link to the page may stand anywhere; a browser then asks for the page itself
        is_link = path == "/" and method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not is_link:
            return "refused: the request comes from another site"
        token = headers.get(TOKEN_HEADER, "").encode()
        if method not in READING and not hmac.compare_digest(token, self._token.encode()):
            return "refused: the token is missing or of another viewer; reload the page"
        return None
