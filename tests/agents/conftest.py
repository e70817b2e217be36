"""A small OpenAI-compatible server in a thread, scripted answer by answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from toa_trl.utils.aio import LoopThread


class Server:
    """Answers POST /v1/chat/completions from `script`, one entry per request.

    Then by quoting the request.

    An entry is a status, (status, JSON), a text (the raw body of a 200), a mapping (the JSON of a
    200), or "reset".
    """

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.refuses: tuple[str, ...] = ()  # fields of the request
        self.no_system = ""  # the error for a system message
        self.requests: list[dict[str, Any]] = []  # {"body", "authorization", "port"}
        self.ports: list[int] = []
        self._loop = LoopThread("server")
        self._runner = self._loop.run(self._start())

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}/v1" for port in self.ports]

    def close(self) -> None:
        self._loop.run(self._runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/v1/models", self._models)
        runner = web.AppRunner(app)
        await runner.setup()
        for _ in range(2):
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.ports = [port for _, port in runner.addresses]
        return runner

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "served"}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        port = request.transport.get_extra_info("sockname")[1]  # type: ignore[union-attr]
        self.requests.append(
            {"body": body, "authorization": request.headers.get("Authorization"), "port": port}
        )
        if self.no_system and body["messages"][0]["role"] == "system":
            return web.json_response({"error": {"message": self.no_system}}, status=400)
        for name in self.refuses:
            if name in body:
                return web.Response(status=400, text=f"Unrecognized argument: {name}")
        if self.script:
            entry = self.script.pop(0)
        else:
            entry = chat(f"{body['model']} {body['seed']}", body["max_tokens"])
        if entry == "reset":
            request.transport.abort()  # type: ignore[union-attr]
            return web.Response()
        if isinstance(entry, int):
            return web.Response(status=entry, text=f"no, {entry}")
        if isinstance(entry, tuple):
            return web.json_response(entry[1], status=entry[0])
        if isinstance(entry, str):
            return web.Response(text=entry, content_type="application/json")
        return web.json_response(entry)


def chat(text: str | None, max_tokens: int = 99, **changes: Any) -> dict[str, Any]:
    """A chat completion; a word is a token."""
    words = (text or "").split()
    cut = len(words) > max_tokens
    choice = {
        "message": {
            "role": "assistant",
            "content": None if text is None else " ".join(words[:max_tokens]),
        },
        "finish_reason": "length" if cut else "stop",
    }
    usage = {"prompt_tokens": 7, "completion_tokens": min(len(words), max_tokens)}
    return {"choices": [choice], "usage": usage, **changes}


@pytest.fixture(scope="session")
def running_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(running_server: Server) -> Server:
    """The server, with nothing scripted and no request seen."""
    running_server.script.clear()
    running_server.refuses, running_server.no_system = (), ""
    running_server.requests.clear()
    return running_server
