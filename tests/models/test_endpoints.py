"""Where requests go, how many at once, and the rule of every fault.

Over real connections to small servers.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

import toa_trl.models.endpoints.client
from tests.helpers import asynchronous, wait
from toa_trl.errors import ConfigError, Unavailable
from toa_trl.models.endpoints import Endpoints, RequestError
from toa_trl.models.endpoints.client import FAULTS_IN_A_ROW
from toa_trl.models.endpoints.pool import FIRST_LIMIT
from toa_trl.models.endpoints.throttling import is_out_of_quota, retry_after_s

CONTEXT = {
    "error": {
        "message": "This model's maximum context length is 4096 tokens. However, you requested "
        "5000."
    }
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short, so that tests are."""
    monkeypatch.setattr(toa_trl.models.endpoints.client, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(toa_trl.models.endpoints.client, "FIRST_PROBE_S", 0.02)
    monkeypatch.setattr(toa_trl.models.endpoints.client, "LONGEST_PROBE_S", 0.05)


class Server:
    """Answers POST /it from `script`, an entry per request, and otherwise {"ok": true}.

    GET /alive with `alive`.

    An entry is a status, (status, headers), a text (the body of a 200), JSON, "reset" or "stall"
    within the body, or seconds (float) to wait before.
    """

    def __init__(self, *script: Any, latency_s: float = 0.0) -> None:
        self.script = list(script)
        self.latency_s = latency_s
        self.alive = 200
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.in_flight = self.most_in_flight = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.times.append(asyncio.get_running_loop().time())
        self.keys.append(request.headers.get("Authorization"))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            entry = self.script.pop(0) if self.script else {"ok": True}
            await asyncio.sleep(entry if isinstance(entry, float) else self.latency_s)
        finally:
            self.in_flight -= 1
        if entry in ("reset", "stall"):
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            await response.write(b'{"half": ')
            if entry == "stall":
                await asyncio.sleep(60)
            request.transport.abort()  # type: ignore[union-attr]
            return response
        if isinstance(entry, float):
            return web.json_response({"ok": True})
        if isinstance(entry, str):
            return web.Response(text=entry)
        status, headers = entry if isinstance(entry, tuple) else (entry, {})
        if isinstance(status, int):
            return web.json_response(CONTEXT, status=status, headers=headers)
        return web.json_response(entry)

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.alive, text="{}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        app = web.Application()
        app.router.add_post("/it", self.answer)
        app.router.add_get("/alive", self.health)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        ((_, self.port),) = runner.addresses
        try:
            yield self
        finally:
            await runner.cleanup()


def parse(answer: Any) -> bool:
    if "ok" not in answer:
        raise ValueError(f"no answer: {answer}")
    return bool(answer["ok"])


@asynccontextmanager
async def to(*servers: Server, **options: Any) -> AsyncIterator[Endpoints]:
    endpoints = Endpoints("here", [server.url for server in servers], probe="alive", **options)
    try:
        yield endpoints
    finally:
        await endpoints.aclose()


def against(
    *script: Any, do: Callable[[Endpoints], Awaitable[Any]] | None = None, **options: Any
) -> tuple[Any, Server]:
    """One request, or `do`, against a server with this script."""

    async def run() -> tuple[Any, Server]:
        async with Server(*script).running() as server, to(server, **options) as endpoints:
            try:
                result: Any = await (do(endpoints) if do else endpoints.post("it", {"n": 1}, parse))
            except RequestError as error:
                result = error
            return result, server

    return wait(run())


async def many(endpoints: Endpoints, count: int) -> list[bool]:
    return await asyncio.gather(*(endpoints.post("it", {"n": n}, parse) for n in range(count)))


@pytest.mark.parametrize(
    "fault", [500, 502, 503, 504, 529, 408, "reset", "{not json", '{"else": 1}', "[]", b"\xff"]
)
def test_a_fault_is_tried_again_up_to_max_attempts(fault: Any) -> None:
    fault = '{"\ud800' if fault == b"\xff" else fault
    result, server = against(*[fault] * 2, max_attempts=3)
    assert result is True
    assert len(server.times) == 3
    result, server = against(*[fault] * 3, max_attempts=3)
    assert isinstance(result, RequestError)
    assert server.url in str(result)
    assert "attempt 3 of 3" in str(result)
    assert len(server.times) == 3


@pytest.mark.parametrize("fault", [5.0, "stall"])
def test_a_timeout_is_tried_again_and_halves_the_concurrency(fault: float | str) -> None:
    async def do(endpoints: Endpoints) -> float:
        assert await endpoints.post("it", {}, parse)
        return endpoints._pool.endpoints[0].limit

    limit, server = against(fault, timeout_s=0.2, do=do)
    assert limit == FIRST_LIMIT / 2
    assert len(server.times) == 2
    result, server = against(fault, timeout_s=0.1, max_attempts=1)
    assert isinstance(result, RequestError)
    assert "no answer within 0.1 s" in str(result)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_what_no_attempt_can_mend_is_given_up_in_the_servers_words(status: int) -> None:
    result, server = against(status)
    assert "maximum context length is 4096" in str(result)
    assert str(status) in str(result)
    assert len(server.times) == 1


def test_429_is_not_an_attempt() -> None:
    result, server = against(*[429] * 5, max_attempts=1)
    assert result is True
    assert len(server.times) == 6


def test_429_has_an_end() -> None:
    result, _ = against(*[429] * 1000, patience_s=0.2)
    assert "answered 429" in str(result)
    assert "for 0 s" in str(result)


def test_retry_after_is_respected() -> None:
    result, server = against((429, {"Retry-After": "0.4"}))
    assert result is True
    assert server.times[1] - server.times[0] >= 0.4


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after_s(None) is None
    assert retry_after_s("1.5") == 1.5
    assert retry_after_s("-3") == 0
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_s("soon") is None


def test_concurrency_grows_while_the_server_keeps_up_and_halves_once_per_429_round() -> None:
    limits = []

    async def do(endpoints: Endpoints) -> None:
        (endpoint,) = endpoints._pool.endpoints
        for _ in range(4):
            await many(endpoints, 400)
            limits.append(endpoint.limit)

    async def run() -> None:
        server = Server(latency_s=0.005)
        async with server.running(), to(server, max_concurrency=100) as endpoints:
            await do(endpoints)
            assert server.most_in_flight == 100
            server.script = [429] * 60
            (endpoint,) = endpoints._pool.endpoints
            await many(endpoints, 60)
            assert not endpoint.growing
            # two or three rounds met 60 times 429: each halved once, not once per answer
            assert 5 <= endpoint.limit <= 60

    wait(run())
    assert limits[-1] == 100
    assert limits == sorted(limits)


@asynchronous
async def test_the_one_with_the_fewest_outstanding_is_asked() -> None:
    fast, slow = Server(latency_s=0.001), Server(latency_s=0.1)
    async with fast.running(), slow.running(), to(fast, slow, max_concurrency=8) as endpoints:
        await many(endpoints, 200)
        assert len(fast.times) > 5 * len(slow.times)
        assert len(slow.times) >= 4


@asynchronous
async def test_a_dead_endpoint_is_left_out_and_comes_back() -> None:
    one, two = Server(latency_s=0.005), Server(latency_s=0.005)
    async with one.running():
        async with two.running():
            endpoints = Endpoints("here", [one.url, two.url], probe="alive", max_attempts=1)
            await many(endpoints, 40)
        before = len(two.times)
        assert before
        assert all(await many(endpoints, 100)), "no attempt is lost on a dead endpoint"
        assert [bool(e.away) for e in endpoints._pool.endpoints] == [False, True]
        async with two.running():
            while endpoints._pool.endpoints[1].away:
                await asyncio.sleep(0.01)
            await many(endpoints, 40)
            assert len(two.times) > before
            await endpoints.aclose()


@asynchronous
async def test_aclose_closes_the_connections() -> None:
    server = Server()
    async with server.running(), to(server) as endpoints:
        await endpoints.post("it", {}, parse)
        session = endpoints._session
        assert session is not None
        await endpoints.aclose()
        assert session.closed
        assert await endpoints.post("it", {}, parse)  # with a new session


@asynchronous
async def test_faults_in_a_row_take_an_endpoint_out() -> None:
    bad, good = Server(*[500] * 10_000), Server(latency_s=0.01)
    async with bad.running(), good.running(), to(bad, good, max_attempts=50) as endpoints:
        bad.alive = 500
        assert all(await many(endpoints, 100))
        assert [bool(e.away) for e in endpoints._pool.endpoints] == [True, False]
        assert FAULTS_IN_A_ROW <= len(bad.times) <= FAULTS_IN_A_ROW + FIRST_LIMIT


def test_faults_with_an_answer_between_them_leave_the_endpoint_available(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toa_trl.models.endpoints.client, "LONGEST_PAUSE_S", 0.001)
    faults = [500] * (FAULTS_IN_A_ROW - 1)

    async def run(answer: Any) -> None:
        server = Server(*faults, answer, *faults)
        async with server.running(), to(server, max_attempts=FAULTS_IN_A_ROW) as endpoints:
            if answer == 400:
                with pytest.raises(RequestError, match="context length"):
                    await endpoints.post("it", {}, parse)
            else:
                assert await endpoints.post("it", {}, parse)
            assert await endpoints.post("it", {}, parse)
            assert len(server.times) == 2 * FAULTS_IN_A_ROW

    wait(run(400))
    wait(run({"ok": True}))


@asynchronous
async def test_one_that_answers_nothing_but_its_probe_is_asked_less_and_less() -> None:
    bad, good = Server(*[500] * 10_000), Server(latency_s=0.001)
    async with bad.running(), good.running(), to(bad, good, max_attempts=1000) as endpoints:
        endpoint = endpoints._pool.endpoints[0]
        while endpoint.outages < 3:
            await many(endpoints, 50)
        bad.script.clear()
        while endpoint.outages:
            await many(endpoints, 50)
        assert not endpoint.away


@asynchronous
async def test_without_any_endpoint_requests_fail_at_once_or_wait() -> None:
    server = Server()
    async with server.running():
        pass  # its port is known, and nobody listens there
    async with to(server) as endpoints:
        assert endpoints.away is None
        with pytest.raises(Unavailable, match=server.url):
            await endpoints.post("it", {}, parse)
        assert server.url in str(endpoints.away)
        with pytest.raises(Unavailable):
            await endpoints.post("it", {}, parse)
    async with to(server, wait_s=0.1) as endpoints:
        with pytest.raises(Unavailable):
            await endpoints.post("it", {}, parse)
    async with to(server, wait_s=60.0) as endpoints:
        waiting = asyncio.create_task(many(endpoints, 10))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        async with server.running():
            assert all(await waiting)
            await endpoints.aclose()


@settings(max_examples=15)
@given(st.integers(0, 10_000))
@asynchronous
async def test_no_slot_is_lost_whatever_happens(seed: int) -> None:
    """Faults and cancellations at random.

    Afterwards nothing is outstanding, and requests go through.
    """
    rng = random.Random(seed)
    faults: list[Any] = [500, 429, "reset", "{", 400, 0.02, {"ok": True}]
    server = Server(*(rng.choice(faults) for _ in range(60)), latency_s=0.001)
    async with server.running(), to(server, max_concurrency=5, max_attempts=3) as endpoints:
        tasks = [asyncio.create_task(endpoints.post("it", {}, parse)) for _ in range(60)]
        for task in rng.sample(tasks, 30):
            await asyncio.sleep(rng.choice([0, 0, 0.002]))
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert endpoints._pool.outstanding == 0
        assert endpoints._pool.endpoints[0].outstanding == 0
        assert server.most_in_flight <= 5 + 30  # a cancelled request may still be in the server
        server.script.clear()
        assert all(await many(endpoints, 20))


def test_the_key_is_sent_and_never_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    result, server = against('{"you sent": "sk-secret"}', max_attempts=1, api_key_env="MY_KEY")
    assert server.keys == ["Bearer sk-secret"]
    assert "***" in str(result)
    assert "sk-secret" not in str(result)


@asynchronous
async def test_check_names_what_cannot_be_reached() -> None:
    server, gone = Server(), Server()
    async with gone.running():
        pass
    async with server.running():
        async with to(server) as endpoints:
            assert await endpoints.check() == {}
            server.alive = 401
            with pytest.raises(ConfigError, match=r"refuses the key \(401\); set OPENAI_API_KEY"):
                await endpoints.check()
            server.alive = 404  # it is there, though it does not know the probe
            await endpoints.check()
        async with to(server, gone) as endpoints:
            with pytest.raises(
                ConfigError, match=rf"here: {gone.url} cannot be reached.*start the server"
            ):
                await endpoints.check()


@pytest.mark.parametrize(
    "urls",
    [
        "http://h:99999/v1",
        "http://h:abc",
        "http://[::1/v1",
        "localhost:8000",
        "",
        [],
        ["http://a", "ftp://x"],
        None,
        [3],
        "http://",
        5,
    ],
)
def test_a_url_of_another_kind_is_refused(urls: Any) -> None:
    with pytest.raises(ConfigError, match="here: base_url"):
        Endpoints("here", urls, probe="")


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="environment") as error:
        Endpoints("here", "http://me:hunter2@host/v1", probe="")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_concurrency", 0), ("max_attempts", 0), ("max_attempts", "3"), ("timeout_s", 0)],
)
def test_numbers_out_of_range_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        Endpoints("here", "http://host", probe="", **{key: value})


def test_the_body_is_json_whatever_it_holds() -> None:
    async def do(endpoints: Endpoints) -> bool:
        return await endpoints.post("it", {"when": object(), "text": "ä€\ud800"}, parse)

    result, _ = against(do=do)
    assert result is True


def test_retry_after_0_is_no_reason_to_hurry() -> None:
    result, server = against(*[(429, {"Retry-After": "0"})] * 10_000, patience_s=0.3)
    assert isinstance(result, RequestError)
    assert len(server.times) < 100


@asynchronous
async def test_an_outage_leaves_nothing_behind_for_the_next_run() -> None:
    server = Server()
    async with server.running():
        pass
    endpoints = Endpoints("here", server.url, probe="alive")
    with pytest.raises(Unavailable):
        await endpoints.post("it", {}, parse)
    assert not endpoints._pool._waiting
    await endpoints.aclose()
    async with server.running():
        assert all(await many(endpoints, 3))
        await endpoints.aclose()


@pytest.mark.parametrize("is_there", [True, False])
def test_an_object_serves_one_event_loop_after_another_without_being_closed(is_there: bool) -> None:
    endpoints: list[Endpoints] = []

    async def run(server: Server) -> list[bool]:
        async with server.running():
            endpoints[:] = endpoints or [Endpoints("here", server.url, probe="alive")]
            return await many(endpoints[0], 3)

    async def fail() -> None:
        with pytest.raises(Unavailable):
            await endpoints[0].post("it", {}, parse)

    server = Server()
    assert all(wait(run(server)))
    if not is_there:
        wait(fail())
    assert all(wait(run(server)))
    assert not endpoints[0]._tasks


@asynchronous
async def test_a_server_that_leaves_the_probe_without_an_answer_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("toa_trl.models.endpoints.client.CONNECT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        endpoints = Endpoints("here", url, probe="alive")
        with pytest.raises(ConfigError, match=r"no answer within 0\.05 s"):
            await endpoints.check()
        await endpoints.aclose()


@asynchronous
async def test_requests_that_gave_up_waiting_block_no_other() -> None:
    server = Server(latency_s=0.05)
    async with server.running(), to(server, max_concurrency=1) as endpoints:
        first = asyncio.create_task(endpoints.post("it", {}, parse))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(endpoints.post("it", {}, parse)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for other in others:
            other.cancel()
        assert await first
        assert await endpoints.post("it", {}, parse)


def test_the_key_is_not_said_even_where_the_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-" + "secret" * 10)
    for before in range(480, 600, 7):
        result, _ = against("x" * before + "sk-" + "secret" * 10, max_attempts=1)
        assert "sk-s" not in str(result)


def test_what_a_server_said_instead_is_quoted() -> None:
    result, _ = against("<html><title>Login</title>", max_attempts=1)
    assert "<title>Login</title>" in str(result)


def test_a_key_with_a_line_break_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as error:
        wait(Endpoints("here", "http://127.0.0.1:1", probe="").check())
    assert "sk-one" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "retry_after", "empty"),
    [
        (b'{"error": {"code": "insufficient_quota", "message": "try again"}}', "1", True),
        (b'{"error": {"type": "billing_hard_limit", "message": ""}}', None, True),
        (b"You exceeded your current quota", None, True),
        (b"You exceeded your current quota", "20", False),
        (b"You exceeded your current quota per minute", None, False),
        (b'{"error": {"code": "rate_limit_exceeded", "message": "slow down"}}', None, False),
        (b"[" * 20_000, None, False),
    ],
)
def test_no_wait_refills_a_quota(text: bytes, retry_after: str | None, empty: bool) -> None:
    assert is_out_of_quota(text, retry_after) is empty
