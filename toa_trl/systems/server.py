"""An OpenAI-compatible endpoint in front of a search."""

import asyncio
import errno
import hmac
import json
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from toa_trl.errors import ConfigError, ToaError
from toa_trl.systems.requests import ApiError, Question, chunks_of, completion_of, read_request
from toa_trl.systems.search_model import NoResponse, SearchModel, SearchResult
from toa_trl.utils.files import parse_json
from toa_trl.utils.redaction import without_secrets

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

SHUTDOWN_S = 5  # seconds that requests in flight have at the end
CLOSED = 499  # status of a request whose client has gone


def make_app(
    model: SearchModel,
    name: str = "toa",
    api_key: str | None = None,
    max_budget: int | None = None,
    max_requests: int = 64,
) -> "FastAPI":
    """Return the application.

    Args:
        model: answers requests.
        name: of the model, as requests name it.
        api_key: that requests must have; None: none.
        max_budget: largest budget that a request may have; by default the model's.
        max_requests: searches at the same time; a further request is refused with status 429.

    Raises:
        ConfigError: FastAPI is not installed, or the budget of the model is above max_budget.
    """
    try:
        from fastapi import Depends, FastAPI, Request, Response
        from fastapi.responses import JSONResponse, StreamingResponse
    except ModuleNotFoundError as error:
        raise missing(error) from error
    limit = model.settings.budget if max_budget is None else max_budget
    if model.settings.budget > limit:
        raise ConfigError(
            f"max_budget: must be at least the budget of {model.settings.budget}, not {limit}"
        )
    app = FastAPI(title="toa_trl", openapi_url=None)
    num_searching = 0

    def reply(error: ApiError) -> Response:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}
        return JSONResponse(error.body, error.status, headers.get(error.status))

    @app.exception_handler(ApiError)
    async def explain(request: Request, error: ApiError) -> Response:
        return reply(error)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def refuse(request: Request, error: Any) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return reply(ApiError(error.status_code, message))

    @app.exception_handler(500)
    async def apologize(request: Request, error: Exception) -> Response:
        return reply(ApiError(500, "internal error; the log of the server has the reason"))

    async def authorize(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if api_key and not hmac.compare_digest(given, f"Bearer {api_key}".encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "searching": num_searching}

    @app.get("/v1/models", dependencies=[Depends(authorize)])
    async def models() -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "toa_trl"}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/chat/completions", dependencies=[Depends(authorize)])
    async def complete(request: Request) -> Response:
        nonlocal num_searching
        try:
            body = parse_json(await request.body())
        except ValueError as error:
            raise ApiError(400, f"the body is not valid JSON: {error}") from error
        question = read_request(body, model, name, limit)
        if num_searching >= max_requests:
            # alpaca_eval repeats a request only if the error has "rate " in it, as OpenAI's have
            message = f"rate limit: {max_requests} requests are in progress; repeat this one later"
            raise ApiError(429, message, code="rate_limit_exceeded")
        num_searching += 1
        try:
            result = await _answer_while_connected(request, model, question)
        finally:
            num_searching -= 1
        if result is None:
            return Response(status_code=CLOSED)
        if question.request.stream:
            events = _events(question, result, name)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(completion_of(question, result, name))

    return app


async def _answer_while_connected(
    request: Any, model: SearchModel, question: Question
) -> SearchResult | None:
    """Return the result of the search, or None if the client has gone."""
    search = asyncio.create_task(
        model.answer(question.prompt, question.settings, question.sampling)
    )
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({search, gone}, return_when=asyncio.FIRST_COMPLETED)
        return search.result() if search.done() else None
    except NoResponse as error:
        raise ApiError(502, without_secrets(str(error)), code="no_response") from error
    except ConfigError as error:
        raise ApiError(400, str(error), code="invalid_value") from error
    except ToaError as error:
        raise ApiError(503, without_secrets(str(error)), code="unavailable") from error
    finally:
        for task in (search, gone):
            task.cancel()
        await asyncio.gather(search, gone, return_exceptions=True)


async def _disconnected(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(question: Question, result: SearchResult, name: str) -> AsyncIterator[str]:
    for chunk in chunks_of(question, result, name):
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: the port is in use, or the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port: {port} is in use; choose another") from error
        raise ConfigError(f"host: {host}:{port} cannot be used: {error.strerror}") from error


def make_server(app: "FastAPI") -> "uvicorn.Server":
    """Return the server of an application, for `serve(sockets=[...])`.

    Raises:
        ConfigError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise missing(error) from error
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )


def serve(
    model: SearchModel, app: "FastAPI", listener: socket.socket, on_ready: Callable[[], None]
) -> None:
    """Serve until SIGINT or SIGTERM. Must be called in the main thread.

    Args:
        model: of the application; closed at the end.
        app: the application.
        listener: a socket that listens.
        on_ready: called when agents and reward model can be asked.

    Raises:
        ConfigError: a server of an agent or of the reward model cannot be reached.
    """
    server = make_server(app)

    async def run() -> None:
        await model.check()
        on_ready()
        await server.serve(sockets=[listener])

    # the server raises the signal that has stopped it again
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with asyncio.Runner() as runner:
            try:
                with suppress(KeyboardInterrupt):
                    runner.run(run())
            finally:
                runner.run(model.aclose())
    finally:
        signal.signal(signal.SIGTERM, previous)


def missing(error: ModuleNotFoundError) -> ConfigError:
    """Return the error for a library of the extra `serve` that is not installed."""
    return ConfigError(f"serve: {error.name} is not installed; pip install 'toa_trl[serve]'")
