"""Addresses of servers, redirects, proxies, quotas and keys: what is refused, and what is shown."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer, TestServer
from yarl import URL

import toa_trl.models.endpoints.client as client
from tests.helpers import wait
from toa_trl.errors import ConfigError
from toa_trl.models.endpoints import Endpoints, RequestError
from toa_trl.models.endpoints.urls import join, proxy_of, same_server
from toa_trl.utils.redaction import looks_like_key, without_secrets

KEYS = [
    "sk-proj-abcdefghijklmnopqrstuvwx",
    "hf_abcdefGHIJKLmnopQRSTuvWXyz",
    "gsk_abcdefghijklmnop12345678",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "AKIAABCDEFGHIJKLMNOP",
    "0123456789abcdef0123456789abcdef",
    "deadbeef0123456789abcdef01234567",
]


async def posted(
    handler: Any, path: str = "v1", query: str = "", **options: Any
) -> tuple[Any, list[str]]:
    """Return the result or the error of one request, and the paths that were requested."""
    seen = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(str(request.rel_url))
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        base_url = str(server.make_url(f"/{path}{query}"))
        endpoints = Endpoints("here", base_url, probe="models", **{"max_attempts": 1, **options})
        try:
            return await endpoints.post("it", {"a": 1}, lambda answer: answer["ok"]), seen
        except RequestError as error:
            return error, seen
        finally:
            await endpoints.aclose()


async def fine(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


def test_a_query_string_stays_behind_the_path() -> None:
    assert wait(posted(fine, query="?api-version=1")) == (True, ["/v1/it?api-version=1"])
    assert str(join(URL("http://h/v1/?a=1"), "b/c")) == "http://h/v1/b/c?a=1"


@pytest.mark.parametrize("name", ["key", "api_key", "api-key", "access_token", "sig", "Token"])
def test_a_key_in_the_query_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(ConfigError, match=f"holds a key in its query \\({name}\\)") as error:
        Endpoints("here", f"http://h/v1?{name}=abcdefgh", probe="")
    assert "abcdefgh" not in str(error.value)


def test_errors_show_no_query() -> None:
    async def broken(request: web.Request) -> web.Response:
        return web.Response(status=400, text="no")

    error, _ = wait(posted(broken, query="?deployment=mine"))
    assert "answered 400: no" in str(error)
    assert "mine" not in str(error)
    assert error.status == 400


def test_a_redirect_on_the_same_host_is_followed_with_the_body() -> None:
    async def moved(request: web.Request) -> web.Response:
        if request.path == "/v1/it":
            return web.Response(status=307, headers={"Location": "/v1/it/"})
        assert await request.json() == {"a": 1}
        return await fine(request)

    assert wait(posted(moved)) == (True, ["/v1/it", "/v1/it/"])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_is_refused(status: int) -> None:
    async def moved(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": "http://localhost:1/v1/it?a=b"})

    error, seen = wait(posted(moved, max_attempts=5))
    assert f"answered {status}, a redirect to http://localhost:1/v1/it; correct" in str(error)
    assert len(seen) == 1


def test_a_circle_of_redirects_ends() -> None:
    async def moved(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": str(request.url)})

    error, seen = wait(posted(moved))
    assert "a redirect to" in str(error)
    assert len(seen) == client.MAX_REDIRECTS


@pytest.mark.parametrize(
    ("url", "moved", "same"),
    [
        ("http://h/a", "http://h/b", True),
        ("http://h/a", "https://h/a", True),
        ("https://h/a", "http://h/a", False),
        ("http://h:8000/a", "http://h:8001/a", False),
        ("http://h/a", "http://h.evil/a", False),
        ("http://h/a", "http://h@evil/a", False),
    ],
)
def test_which_redirects_stay_on_a_server(url: str, moved: str, same: bool) -> None:
    assert same_server(URL(url), URL(moved)) is same


@pytest.mark.parametrize("chunked", [True, False])
def test_a_response_has_a_size_limit(monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    monkeypatch.setattr(client, "MAX_BYTES", 1000)

    async def huge(request: web.Request) -> web.StreamResponse:
        if not chunked:
            return web.Response(body=b"x" * 10_000)
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(20):
            await response.write(b"x" * 500)
        return response

    error, seen = wait(posted(huge, max_attempts=5))
    assert "a response of more than 1,000 bytes" in str(error)
    assert len(seen) == 1


def test_a_response_that_nests_too_deep_is_malformed() -> None:
    async def deep(request: web.Request) -> web.Response:
        return web.Response(text="[" * 200_000)

    error, _ = wait(posted(deep))
    assert "RecursionError" in str(error)


QUOTA = "You exceeded your current quota, please check your plan and billing details."


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"message": QUOTA, "type": "insufficient_quota", "code": "insufficient_quota"}},
        {"error": {"message": "no", "code": "insufficient_quota"}},
        {"error": {"message": "Insufficient balance", "code": 1113}},
        {"error": {"message": QUOTA, "code": 429}},
        {"message": "insufficient credits"},
    ],
)
def test_a_quota_that_is_used_up_fails_at_once_with_the_servers_words(answer: Any) -> None:
    async def refused(request: web.Request) -> web.Response:
        return web.json_response(answer, status=429)

    error, seen = wait(posted(refused, max_attempts=5))
    said = answer.get("error", answer)["message"]
    assert said in str(error)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("answer", "headers"),
    [
        ({"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}, {}),
        ({"error": {"message": f"{QUOTA} Please retry in 0.1 s."}}, {}),
        ({"error": {"message": QUOTA}}, {"Retry-After": "0.1"}),
        (["busy"], {}),
    ],
)
def test_any_other_429_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, answer: Any, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.001)
    script = [web.json_response(answer, status=429, headers=headers)]

    async def once(request: web.Request) -> web.Response:
        return script.pop() if script else await fine(request)

    result, seen = wait(posted(once))
    assert (result, len(seen)) == (True, 2)


def test_proxies_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("https_proxy", "proxy:3129")
    monkeypatch.setenv("no_proxy", "inside.example")
    proxy_of.cache_clear()
    assert proxy_of(URL("http://h/v1")) == "http://proxy:3128"
    assert proxy_of(URL("https://h/v1")) == "http://proxy:3129"
    assert proxy_of(URL("http://inside.example/v1")) is None
    for host in ("localhost", "127.0.0.1", "127.0.1.1", "[::1]"):
        assert proxy_of(URL(f"http://{host}:8000/v1")) is None
    proxy_of.cache_clear()


def test_requests_go_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stands in for the proxy: it is asked for the whole URL."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    async def through() -> tuple[Any, list[str]]:
        seen = []

        async def answer(request: web.Request) -> web.Response:
            seen.append(request.raw_path)
            return await fine(request)

        async with RawTestServer(answer) as server:  # type: ignore[arg-type]
            monkeypatch.setenv("http_proxy", str(server.make_url("")))
            endpoints = Endpoints("here", "http://model.invalid/v1", probe="", max_attempts=1)
            try:
                return await endpoints.post("it", {}, lambda answer: answer["ok"]), seen
            finally:
                await endpoints.aclose()

    assert wait(through()) == (True, ["http://model.invalid/v1/it"])
    proxy_of.cache_clear()


@pytest.mark.parametrize("key", [*KEYS, "", "TWO WORDS", None, 3])
def test_a_key_as_the_name_of_a_variable_is_refused_and_not_shown(key: Any) -> None:
    with pytest.raises(ConfigError, match="api_key_env must be the name of an env") as error:
        Endpoints("here", "http://h/v1", probe="", api_key_env=key)
    assert not key or str(key) not in str(error.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "my_key", "KEY2", "openai_key_2_for_tests"])
def test_a_name_of_a_variable_is_no_key(name: str) -> None:
    assert not looks_like_key(name)


@pytest.mark.parametrize("key", KEYS[:5])
def test_keys_are_removed_from_errors(key: str) -> None:
    assert key not in without_secrets(f"failed with {key}, again")
    assert without_secrets(f"token={key}9") == "token=***"


def test_ordinary_errors_are_left_as_they_are() -> None:
    for text in ("unexpected token: identifier", "max_tokens: 512", "key 'x' is missing, 7 of 9"):
        assert without_secrets(text) == text
