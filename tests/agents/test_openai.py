from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import toa_trl.agents.openai
from tests.agents.conftest import Server, chat
from tests.helpers import wait
from toa_trl.agents import make_agent
from toa_trl.errors import AgentError, ConfigError
from toa_trl.types import Completion, Message, Sampling

ASKED = (Message("user", "Hi"),)


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which are not waited for."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(toa_trl.agents.openai, "asyncio", SimpleNamespace(sleep=sleep))
    return pauses


def ask(server: Server, *, times: int = 1, run: Sampling | None = None, **entry: Any) -> list[Completion]:
    agent = make_agent({"name": "o", "engine": "openai", "model": "m", "base_url": server.urls[0], **entry})

    async def all_in_turn() -> list[Completion]:
        try:
            return [await agent.generate(ASKED, sampling=run or Sampling(), seed=seed) for seed in range(times)]
        finally:
            await agent.aclose()  # type: ignore[attr-defined]

    return wait(all_in_turn())


def test_the_request_is_what_the_play_says(server: Server) -> None:
    ask(
        server,
        run=Sampling(0.4, 0.8, 17, ("END", "\n\n")),
        system_prompt="Be brief.",
        extra_body={"top_k": 20},
    )
    (request,) = server.requests
    assert request["body"] == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "temperature": 0.4,
        "top_p": 0.8,
        "max_tokens": 17,
        "seed": 0,
        "stop": ["END", "\n\n"],
        "top_k": 20,
    }


def test_no_stop_no_key_where_there_is_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ask(server)
    assert "stop" not in server.requests[0]["body"]
    assert server.requests[0]["authorization"] is None


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one")
    monkeypatch.setenv("OTHER_KEY", "sk-two")
    ask(server)
    ask(server, api_key_env="OTHER_KEY")
    assert [r["authorization"] for r in server.requests] == ["Bearer sk-one", "Bearer sk-two"]
    with pytest.raises(ConfigError, match="api_key"):
        make_agent({"name": "o", "engine": "openai", "model": "m", "base_url": server.urls[0], "api_key": "sk"})


def test_an_agents_own_sampling_wins(server: Server) -> None:
    ask(server, run=Sampling(0.4, 0.8), sampling={"temperature": 1.5})
    body = server.requests[0]["body"]
    assert (body["temperature"], body["top_p"]) == (1.5, 0.8)


@pytest.mark.parametrize("trouble", [429, 500, 502, 503, 504, 408, "reset", "{not json", "[]", '{"error": "busy"}'])
def test_tries_again_what_may_mend(server: Server, slept: list[float], trouble: Any) -> None:
    server.script[:] = [trouble, trouble, chat("fine")]
    (done,) = ask(server)
    assert done == Completion("fine", "stop", 7, 1, None)
    assert len(server.requests) == 3
    assert [r["body"]["seed"] for r in server.requests] == [0, 0, 0]
    assert len(slept) == 2
    assert 0 < slept[0] < slept[1] * 3


@pytest.mark.parametrize("trouble", [429, 500, "reset", "{not json", {"choices": []}, {}])
def test_gives_up_with_the_reason(server: Server, trouble: Any) -> None:
    server.script[:] = [trouble] * 3
    with pytest.raises(AgentError, match=r"agent 'o'.*127\.0\.0\.1"):
        ask(server, max_attempts=3)
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_does_not_repeat_what_stays_wrong(server: Server, slept: list[float], status: int) -> None:
    server.script[:] = [status]
    with pytest.raises(AgentError, match=rf"agent 'o'.*{status}.*no, {status}"):
        ask(server)
    assert len(server.requests) == 1
    assert slept == []


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_an_empty_response_is_a_failure(server: Server, text: str | None) -> None:
    answer = chat("x")
    answer["choices"][0]["message"]["content"] = text
    server.script[:] = [answer]
    with pytest.raises(AgentError, match="empty response"):
        ask(server)


def test_usage_may_be_missing_or_null(server: Server) -> None:
    null = {"prompt_tokens": None, "completion_tokens": None}
    server.script[:] = [chat("x", usage=None), {"choices": chat("x")["choices"]}, chat("x", usage=null)]
    assert ask(server, times=3) == [Completion("x", "stop", 0, 0, None)] * 3


def test_a_server_that_is_not_there_is_a_failure(server: Server) -> None:
    with pytest.raises(AgentError, match="Connect"):
        ask(server, base_url="http://127.0.0.1:1/v1", max_attempts=2)


def test_base_urls_take_turns_and_stand_in_for_one_another(server: Server) -> None:
    ask(server, times=6, base_url=server.urls)
    assert Counter(r["port"] for r in server.requests) == dict.fromkeys(server.ports, 3)
    server.requests.clear()
    (done,) = ask(server, base_url=["http://127.0.0.1:1/v1", server.urls[1] + "/"])
    assert done.text
    assert [r["port"] for r in server.requests] == [server.ports[1]]


def test_can_be_used_again_after_it_was_closed(server: Server) -> None:
    agent = make_agent({"name": "o", "engine": "openai", "model": "m", "base_url": server.urls[0]})

    async def once() -> Completion:
        try:
            return await agent.generate(ASKED, sampling=Sampling(), seed=1)
        finally:
            await agent.aclose()  # type: ignore[attr-defined]

    assert wait(once()) == wait(once())


def test_requests_in_flight_are_limited(server: Server) -> None:
    agent = make_agent(
        {"name": "o", "engine": "openai", "model": "m", "base_url": server.urls[0], "max_concurrency": 2}
    )

    async def run() -> list[Completion]:
        try:
            return await asyncio.gather(*(agent.generate(ASKED, sampling=Sampling(), seed=s) for s in range(20)))
        finally:
            await agent.aclose()  # type: ignore[attr-defined]

    assert [done.text for done in wait(run())] == [f"m {seed}" for seed in range(20)]


def test_flops_come_from_a_model_configuration(server: Server, causal: Path) -> None:
    (done,) = ask(server, config=str(causal))
    assert done.flops is not None
    assert done.flops > 0
    with pytest.raises(ConfigError, match=r"agent 'o'.*nowhere"):
        ask(server, config="/nowhere/at/all")


@pytest.mark.parametrize("base_url", ["localhost:8000/v1", "", [], ["ftp://x"]])
def test_a_url_without_http_is_refused(base_url: Any) -> None:
    with pytest.raises(ConfigError, match=r"agent 'o'.*base_url"):
        make_agent({"name": "o", "engine": "openai", "model": "m", "base_url": base_url})
