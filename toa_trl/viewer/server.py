"""The application behind the page, and its server on this machine."""

from __future__ import annotations

import errno
import math
import secrets
import socket
from collections.abc import Callable
from importlib.resources import files
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from toa_trl.errors import ConfigError, ToaError
from toa_trl.report.palette import PALETTE, drawing
from toa_trl.sampling.journal import open_journal
from toa_trl.utils.files import map_leaves
from toa_trl.viewer import outputs as of_outputs
from toa_trl.viewer import pairs as of_pairs
from toa_trl.viewer import plays as of_plays
from toa_trl.viewer import tree as of_tree
from toa_trl.viewer.figures import Figures
from toa_trl.viewer.folder import Folder, describe
from toa_trl.viewer.guard import Guard

HOST = "127.0.0.1"
Limit = Annotated[int, Query(ge=1, le=200)]
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


class Json(JSONResponse):
    """JSON in which numbers that JSON does not have are null, whatever a journal holds."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return super().render(map_leaves(_plain, content))


def make_app(folder: Folder, port: int, token: str | None = None) -> FastAPI:
    """Return the application.

    Args:
        folder: with the runs.
        port: on which it listens.
        token: of requests that change something; None: a random one.
    """
    token = token or secrets.token_urlsafe(32)
    app = FastAPI(title="toa_trl viewer", openapi_url=None, default_response_class=Json)
    app.add_middleware(Guard, port=port, token=token)
    figures, static = Figures(), _static(token)

    @app.exception_handler(ToaError)
    async def explain(request: Request, error: ToaError) -> Response:
        return Json({"error": str(error)}, 400 if isinstance(error, ConfigError) else 422)

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> Response:
        faults = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return Json({"error": "; ".join(faults)}, 400)

    @app.get("/")
    def page() -> Response:
        return Response(static["index.html"], media_type=TYPES[".html"])

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/static/{name}")
    def file(name: str) -> Response:
        if name not in static:
            return Json({"error": f"there is no file {name!r}"}, 404)
        return Response(static[name], media_type=TYPES[name[name.rfind(".") :]])

    @app.get("/api/runs")
    def runs() -> Any:
        names, evaluations = folder.names()
        listed = [{"run": name, **describe(folder.root / name)} for name in names]
        shown = str(folder.root.resolve())
        return {"folder": shown, "runs": listed, "evaluations": evaluations}

    @app.get("/api/figures")
    def totals(run: str) -> Any:
        return figures.of(folder.path(run))

    @app.get("/api/plays")
    def plays(query: Annotated[_Page, Query()]) -> Any:
        path = folder.path(query.run)
        with open_journal(path) as journal:
            return of_plays.Plays(journal, path).page(query)

    @app.get("/api/count")
    def count(query: Annotated[_Counted, Query()]) -> Any:
        path = folder.path(query.run)
        with open_journal(path) as journal:
            return {"count": of_plays.Plays(journal, path).count(query)}

    @app.get("/api/prompts")
    def prompts(run: str, words: str = "", after: int = -1, limit: Limit = 30) -> Any:
        with open_journal(folder.path(run)) as journal:
            return of_tree.prompts(journal, words, after, limit)

    @app.get("/api/tree")
    def tree(run: str, prompt: str) -> Any:
        with open_journal(folder.path(run)) as journal:
            return of_tree.tree(journal, prompt)

    @app.get("/api/play")
    def play(run: str, prompt: str, play: int) -> Any:
        with open_journal(folder.path(run)) as journal:
            return of_tree.play(journal, prompt, play)

    @app.get("/api/pairs")
    def pairs(query: Annotated[_Pairs, Query()]) -> Any:
        path = folder.path(query.run)
        with open_journal(path) as journal:
            return of_pairs.page(journal, path, query)

    @app.put("/api/mark")
    def mark(request: of_pairs.MarkRequest) -> Any:
        path = folder.path(request.run)
        with open_journal(path) as journal:
            return of_pairs.mark(journal, path, request)

    @app.get("/api/outputs")
    def outputs(
        evaluation: str, words: str = "", differ: bool = False, after: int = 0, limit: Limit = 10
    ) -> Any:
        return of_outputs.page(folder.evaluation(evaluation), words, differ, after, limit)

    return app


class _Page(of_plays.Query):
    run: str


class _Counted(of_plays.Filters):
    run: str


class _Pairs(of_pairs.PairQuery):
    run: str


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine alone.

    Args:
        port: 0: a free one.

    Raises:
        ConfigError: the port is in use, or must not be used.
    """
    try:
        return socket.create_server((HOST, port))
    except OverflowError as error:
        raise ConfigError(f"--port: must be from 0 to 65535, not {port}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port: {port} is in use, perhaps by another viewer; choose another, such as "
                f"--port {port + 1}, or --port 0 for a free one"
            ) from error
        raise ConfigError(f"--port: {port} cannot be used: {error.strerror}") from error


def serve(folder: Folder, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        make_app(folder, port),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
    )
    on_ready(f"http://{HOST}:{port}/")
    uvicorn.Server(config).run(sockets=[listener])


def _static(token: str) -> dict[str, str]:
    """Return the files of the page by name, with the token, and colours and trees of the report."""
    folder = files("toa_trl.viewer").joinpath("static")
    static = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    static["drawing.js"] = drawing("js") + "export {drawTree};\n"
    static["viewer.css"] += drawing("css")
    static["index.html"] = static["index.html"].replace("{{ token }}", token)
    light, dark = (
        "".join(f"--c{i}:{pair[side]};" for i, pair in enumerate(PALETTE)) for side in (0, 1)
    )
    light += f"--colors:{len(PALETTE)};"
    static["palette.css"] = (
        f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"
    )
    return static


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
