"""A scripted model server for load and fault tests: chat completions and rewards over HTTP.

    python -m tests.server --port 0 --slots 64 --latency_s 0.1 0.4

prints {"port": N} once it listens. From Python, `serving(slots=64)` does the same and ends it
afterwards.

What a body is answered, and after how long, only the body decides. Whether an attempt at it fails,
and how, only the body and the number of the attempt (of those that were neither rejected nor in a
storm): so a run meets the same faults however it is scheduled, and a retry gets another draw.
Written on asyncio's protocols, so that a test measures its client and not this server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b, shake_128
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
SYLLABLES = re.findall("..", "badefigohukaleminopurasetivowuza")
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]  # one for each byte
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

CHAT, CLASSIFY, SCORE = "POST /v1/chat/completions", "POST /classify", "POST /score"
ANYWHERE = ("reset", "refuse_body", "500", "503", "429", "429_after", "stall")
FAULTS = {CHAT: (*ANYWHERE, "empty", "context"), CLASSIFY: (*ANYWHERE, "nan", "missing", "count")}
FAULTS[SCORE] = FAULTS[CLASSIFY]
CONTEXT = {
    "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 "
    "tokens (2952 in the "
    "messages, 2048 in the completion). Please reduce the length of the messages or completion.",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}


def fault_names(names: str | Sequence[str]) -> list[str]:
    """A comma list, or a list, of faults."""
    names = [name for name in names.split(",") if name] if isinstance(names, str) else list(names)
    if unknown := set(names) - {*FAULTS[CHAT], *FAULTS[SCORE]}:
        raise argparse.ArgumentTypeError(f"unknown faults: {', '.join(sorted(unknown))}")
    return names


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.server", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument(
        "--slots",
        type=int,
        default=0,
        help="requests served at once, the others wait; 0: all of them",
    )
    parser.add_argument(
        "--reject_over",
        type=int,
        default=0,
        help="429 where more are outstanding than this; 0: never",
    )
    parser.add_argument(
        "--latency_s", type=float, nargs=2, default=[0.0, 0.0], metavar=("LOW", "HIGH")
    )
    parser.add_argument(
        "--fault_rate", type=float, default=0.0, help="share of the attempts that fail"
    )
    parser.add_argument(
        "--faults",
        type=fault_names,
        default=["500"],
        help="comma list; each applies to the routes it makes sense for",
    )
    parser.add_argument("--words", type=int, default=12, help="of a response; a word is a token")
    parser.add_argument(
        "--model", nargs="+", default=["model"], help="that /v1/models lists; any name is answered"
    )
    parser.add_argument(
        "--reasoning", action="store_true", help="responses come with as long a reasoning_content"
    )
    parser.add_argument(
        "--think", action="store_true", help="responses begin with as long a <think> ... </think>"
    )
    parser.add_argument("--retry_after", type=float, help="the header of rejections and storms")
    parser.add_argument(
        "--until_eof",
        action="store_true",
        help="end when stdin ends, so that no server is left over",
    )
    return parser


class Request:
    """One that is waiting for a slot, or holds one."""

    __slots__ = ("body", "connection", "digest", "fault", "route", "size", "timer")

    def __init__(
        self, connection: Connection, route: str, body: dict[str, Any], size: int, digest: bytes
    ) -> None:
        self.connection, self.route, self.body, self.size, self.digest = (
            connection,
            route,
            body,
            size,
            digest,
        )
        self.fault: str | None = None
        self.timer: asyncio.TimerHandle | None = None  # there is one while it holds a slot


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.received = b""
        self.request: Request | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self.request is not None:
            self.server.forget(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not separator or len(body) < (int(length[1]) if length else 0):
            return
        self.received = b""
        method, path, _ = head.split(b" ", 2)
        self.server.take(self, f"{method.decode()} {path.decode()}", body)

    def answer(
        self, status: int, body: Any, retry_after: float | None = None, cut: bool = False
    ) -> None:
        """Send a body, JSON unless it is bytes; cut off half of it by closing the connection."""
        self.request = None
        self.server.statuses[status] += 1
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        wait = f"Retry-After: {retry_after:g}\r\n" if retry_after is not None else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: "
            f"application/json\r\n{wait}"
        )
        head += f"Content-Length: {len(content)}\r\n\r\n"
        self.transport.write(head.encode() + content[: len(content) // 2 if cut else None])
        if cut:
            self.transport.abort()


class Server:
    """Slots, the queue before them, and what was counted."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.waiting: deque[Request] = deque()
        self.busy = self.max_busy = 0
        self.busy_s = 0.0  # the integral of busy slots over time
        self.first = self.last = 0.0  # when the first request came; when `busy` changed last
        self.counted = 0.0  # until when `busy_s` is counted
        self.storm: tuple[int, float] = (0, 0.0)  # the status that everything gets, and until when
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.attempts: dict[bytes, int] = {}
        self.served: set[bytes] = set()
        self.served_again = self.prompt_tokens = self.completion_tokens = 0

    def take(self, connection: Connection, route: str, content: bytes) -> None:
        """Answer a request at once, or put it in a slot or the queue."""
        self.requests[route] += 1
        if route == "GET /health":
            return connection.answer(200, {})
        if route == "GET /v1/models":
            listed = [
                {"id": name, "object": "model", "owned_by": "tests"} for name in self.options.model
            ]
            return connection.answer(200, {"object": "list", "data": listed})
        if route == "GET /stats":
            return connection.answer(200, self.stats())
        try:
            body = json.loads(content)
            if route == "POST /control":
                self.control(body)
                return connection.answer(200, {})
            if route not in FAULTS:
                return connection.answer(404, _error(f"no such route: {route}"))
            digest = _digest(route, _asked(route, body))
        except (ValueError, KeyError, TypeError, argparse.ArgumentTypeError) as error:
            return connection.answer(400, _error(f"{type(error).__name__}: {error}"))
        self.first = self.first or self.loop.time()
        status, until = self.storm
        if status and self.loop.time() < until:
            return connection.answer(status, _error("a storm"), self.options.retry_after)
        if self.options.reject_over and self.busy + len(self.waiting) >= self.options.reject_over:
            return connection.answer(429, _error("too many requests"), self.options.retry_after)
        request = connection.request = Request(connection, route, body, len(content), digest)
        self.waiting.append(request)
        return self.admit()

    def admit(self) -> None:
        while self.waiting and (not self.options.slots or self.busy < self.options.slots):
            request = self.waiting.popleft()
            self.change_busy(1)
            attempt = self.attempts[request.digest] = self.attempts.get(request.digest, 0) + 1
            names = [name for name in self.options.faults if name in FAULTS[request.route]]
            if self.options.fault_rate and names:
                fails, which = _numbers(request.digest + attempt.to_bytes(4))
                request.fault = (
                    names[int(which * len(names))] if fails < self.options.fault_rate else None
                )
            low, high = self.options.latency_s
            delay = low + (high - low) * _numbers(request.digest)[0] if high else 0.0
            request.timer = self.loop.call_later(delay, self.finish, request)

    def finish(self, request: Request) -> None:
        answer = request.connection.answer
        self.faults.update([request.fault] if request.fault else [])
        if request.fault == "stall":  # it keeps its slot until its client goes
            return
        self.change_busy(-1)
        match request.fault:
            case "reset":
                answer(200, self.body(request), cut=True)
            case "refuse_body":
                answer(200, b'{"not": "JSON"')
            case "500" | "503" | "429":
                answer(int(request.fault), _error("as asked for"))
            case "429_after":
                answer(429, _error("as asked for"), 0.2)
            case "context":
                answer(400, {"error": CONTEXT})
            case _:
                answer(200, self.body(request))
                if not request.fault:
                    self.served_again += request.digest in self.served
                    self.served.add(request.digest)
        self.admit()

    def forget(self, request: Request) -> None:
        """Its client has gone."""
        if request.timer is None:
            self.waiting.remove(request)
            return
        request.timer.cancel()
        self.change_busy(-1)
        self.admit()

    def body(self, request: Request) -> dict[str, Any]:
        if request.route == CHAT:
            return self.chat(request)
        if request.route == CLASSIFY:
            scores: list[float | None] = [_numbers(request.digest)[0]]
        else:
            scores = [
                _numbers(_digest(each["prompt"], each["response"]))[0]
                for each in request.body["inputs"]
            ]
        if request.fault == "nan":
            scores = [float("nan")] * len(scores)
        elif request.fault == "missing":
            scores = [None] * len(scores)
        elif request.fault == "count":
            scores.append(0.5)
        if request.route == SCORE:
            return {"scores": scores}
        data = [
            {"index": i, "label": "LABEL_0", "num_classes": 1}
            | ({} if score is None else {"probs": [score]})
            for i, score in enumerate(scores)
        ]
        usage = {
            "prompt_tokens": request.size // 4,
            "total_tokens": request.size // 4,
            "completion_tokens": 0,
        }
        head = {"id": request.digest.hex(), "object": "list", "created": int(time.time())}
        return {**head, "model": request.body.get("model"), "data": data, "usage": usage}

    def chat(self, request: Request) -> dict[str, Any]:
        num, options = self.options.words, self.options
        drawn = [WORDS[byte] for byte in shake_128(request.digest).digest(2 * num)]
        limit = (
            request.body.get("max_completion_tokens") or request.body.get("max_tokens") or 2 * num
        )
        thoughts = drawn[num : num + limit] if options.reasoning or options.think else []
        words = drawn[: min(num, limit - len(thoughts))]
        text = " ".join(words)
        if options.think:
            text = f"<think>\n{' '.join(thoughts)}" + (f"\n</think>\n\n{text}" if words else "")
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if options.reasoning:
            message["reasoning_content"] = " ".join(thoughts)
        finish_reason = "length" if len(words) < num else "stop"
        asked, answered = request.size // 4, len(thoughts) + len(words)
        if not request.fault:
            self.prompt_tokens += asked
            self.completion_tokens += answered
        return {
            "id": request.digest.hex(),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.body["model"],
            "choices": []
            if request.fault == "empty"
            else [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
            ],
            "usage": {
                "prompt_tokens": asked,
                "completion_tokens": answered,
                "total_tokens": asked + answered,
            },
        }

    def change_busy(self, by: int) -> None:
        now = self.loop.time()
        self.busy_s += self.busy * (now - self.counted)
        self.counted = now
        self.last = now if by else self.last
        self.busy += by
        self.max_busy = max(self.max_busy, self.busy)

    def stats(self) -> dict[str, Any]:
        """Return the counts; utilisation is the change of busy_s over slots times seconds."""
        self.change_busy(0)
        seconds = self.loop.time() - self.first if self.first else 0.0
        return {
            "requests": dict(self.requests),
            "statuses": dict(self.statuses),
            "faults": dict(self.faults),
            "busy": self.busy,
            "waiting": len(self.waiting),
            "max_busy": self.max_busy,
            "mean_busy": self.busy_s / seconds if seconds else 0.0,
            "busy_s": self.busy_s,
            "seconds": seconds,  # since the first request
            "cpu_s": time.process_time(),
            "idle_s": 0.0 if self.busy else self.loop.time() - self.last,  # since the last answer
            "served_distinct": len(self.served),
            "served_again": self.served_again,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def control(self, changes: dict[str, Any]) -> None:
        changes = dict(changes)
        if "status" in changes:
            status = int(changes.pop("status") or 0)
            self.storm = (status, self.loop.time() + float(changes.pop("for_s", float("inf"))))
        if unknown := set(changes) - set(vars(self.options)):
            raise ValueError(f"no such options: {', '.join(sorted(unknown))}")
        if "faults" in changes:
            changes["faults"] = fault_names(changes["faults"])
        vars(self.options).update(changes)
        self.admit()


def _asked(route: str, body: dict[str, Any]) -> Any:
    """What of a body decides its answer."""
    if route == CHAT:
        return [body["model"], body["messages"], body.get("seed")]
    if route == CLASSIFY:
        return body["messages"] if "messages" in body else body["input"]
    return [[each["prompt"], each["response"]] for each in body["inputs"]]


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "tests", "code": None}}


def _digest(*parts: Any) -> bytes:
    return blake2b(json.dumps(parts).encode(), digest_size=12).digest()


def _numbers(content: bytes) -> tuple[float, float]:
    """Two numbers in [0, 1) that only the content decides."""
    drawn = int.from_bytes(blake2b(content, digest_size=8).digest())
    return (drawn >> 32) / 2**32, (drawn & 0xFFFFFFFF) / 2**32


async def main() -> None:
    options = arguments().parse_args()
    loop = asyncio.get_running_loop()
    server = Server(options)
    listening = await loop.create_server(
        lambda: Connection(server), "127.0.0.1", options.port, backlog=4096
    )
    sys.stdout.write(json.dumps({"port": listening.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await (
        loop.run_in_executor(None, sys.stdin.read)
        if options.until_eof
        else listening.serve_forever()
    )


class Process:
    """A server that runs in a process of its own: `python -m MODULE`."""

    def __init__(self, options: dict[str, Any], module: str) -> None:
        self._options, self._module = options, module
        self.port = 0
        self.restart()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def restart(self) -> None:
        """Start it, again on the port it had; what it counted is lost."""
        options = [word for option in self._options.items() for word in _option(option)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module, "--until_eof", "--port", str(self.port), *options],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = json.loads(self._process.stdout.readline())["port"]

    def kill(self) -> None:
        """SIGKILL: whoever is connected sees a reset."""
        self._process.kill()
        self._process.communicate()

    def stats(self) -> dict[str, Any]:
        with urlopen(f"{self.root}/stats", timeout=60) as answer:
            return json.load(answer)

    def control(self, **changes: Any) -> None:
        """Change options; `status=429, for_s=30` is a storm, `status=None` ends it."""
        with urlopen(
            HttpRequest(f"{self.root}/control", json.dumps(changes).encode()), timeout=60
        ) as answer:
            answer.read()


def _option(option: tuple[str, Any]) -> list[str]:
    name, value = option
    if value is None or value is False:
        return []
    if name == "faults" and not isinstance(value, str):
        value = ",".join(value)
    values = [] if value is True else value if isinstance(value, list | tuple) else [value]
    return [f"--{name}", *map(str, values)]


@contextmanager
def serving(module: str = "tests.server", **options: Any) -> Iterator[Process]:
    """A server with these options, e.g.

    Serving(slots=64, latency_s=(0.1, 0.4), faults=["reset", "500"]).
    """
    process = Process(options, module)
    try:
        yield process
    finally:
        process.kill()


if __name__ == "__main__":
    asyncio.run(main())
