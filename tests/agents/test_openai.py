from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import toa_trl.models.endpoints.client
from tests.agents.conftest import Server, chat
from tests.helpers import wait
from tests.test_types import CALL, CONVERSATION
from toa_trl.agents import completions, make_agent
from toa_trl.agents.openai import as_openai
from toa_trl.errors import AgentError, ConfigError, Unavailable
from toa_trl.types import Completion, Message, Sampling, as_messages

ASKED = (Message("user", "Hi"),)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts are not waited for."""
    monkeypatch.setattr(toa_trl.models.endpoints.client, "FIRST_PAUSE_S", 0.001)


def ask(
    server: Server, *, times: int = 1, run: Sampling | None = None, **entry: Any
) -> list[Completion]:
    agent = make_agent(
        {"name": "o", "engine": "openai", "model": "m", "base_url": server.urls[0], **entry}
    )

    async def all_in_turn() -> list[Completion]:
        try:
            return [
                await completions.ask(agent, ASKED, sampling=run or Sampling(), seed=seed)
                for seed in range(times)
            ]
        finally:
            await agent.aclose()

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
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


def test_neutral_values_are_sent_unless_the_server_refuses_them(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    ask(server)
    sent = server.requests[0]["body"]
    assert (sent["top_k"], sent["min_p"], sent["repetition_penalty"]) == (-1, 0.0, 1.0)
    server.requests.clear()
    server.refuses = ("top_k",)
    dones = ask(server, times=2, extra_body={"n": 1})
    assert len(dones) == 2
    bodies = [request["body"] for request in server.requests]
    assert ["min_p" in body for body in bodies] == [True, False, False]
    assert all(body["n"] == 1 for body in bodies)
    assert caplog.text.count("the server refuses top_k, min_p, repetition_penalty") == 1


def test_tool_calls_are_sent_as_servers_take_them(server: Server) -> None:
    call = {"function": {"name": "add", "arguments": {"a": 3}}}
    asked = as_messages(
        [
            {"role": "user", "content": "3 + 4?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "7", "name": "add"},
            {"role": "user", "content": "Twice?"},
        ]
    )
    agent = make_agent({"name": "o", "engine": "openai", "model": "m", "base_url": server.urls[0]})

    async def generate() -> None:
        try:
            await agent.generate(asked, sampling=Sampling(), seed=0)
        finally:
            await agent.aclose()

    wait(generate())
    sent = server.requests[0]["body"]["messages"]
    function = {"name": "add", "arguments": '{"a": 3}'}
    assert sent[1]["tool_calls"] == [{"id": "call_1", "type": "function", "function": function}]
    assert sent[2]["tool_call_id"] == "call_1"


@pytest.mark.parametrize(
    "error",
    [
        "System role not supported",
        "Only user and assistant roles are supported!",
        "Conversation roles must alternate user/assistant/user/assistant/...",
    ],
)
def test_a_system_prompt_is_folded_where_the_servers_template_refuses_it(
    server: Server, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    server.no_system = error
    assert len(ask(server, times=2, system_prompt="Be brief.")) == 2
    asked = [request["body"]["messages"] for request in server.requests]
    folded = [{"role": "user", "content": "Be brief.\n\nHi"}]
    assert asked[1:] == [folded, folded]
    assert caplog.text.count("the chat template has no system role") == 1


def test_no_stop_no_key_where_there_is_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ask(server)
    assert "stop" not in server.requests[0]["body"]
    assert server.requests[0]["authorization"] is None


def test_the_key_comes_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one")
    monkeypatch.setenv("OTHER_KEY", "sk-two")
    ask(server)
    ask(server, api_key_env="OTHER_KEY")
    assert [r["authorization"] for r in server.requests] == ["Bearer sk-one", "Bearer sk-two"]
    with pytest.raises(ConfigError, match="api_key"):
        make_agent(
            {
                "name": "o",
                "engine": "openai",
                "model": "m",
                "base_url": server.urls[0],
                "api_key": "sk",
            }
        )


def test_an_agents_own_sampling_wins(server: Server) -> None:
    ask(server, run=Sampling(0.4, 0.8), sampling={"temperature": 1.5})
    body = server.requests[0]["body"]
    assert (body["temperature"], body["top_p"]) == (1.5, 0.8)


@pytest.mark.parametrize(
    "trouble", [429, 503, "reset", "{not json", "[]", '{"error": "busy"}', {"choices": []}, {}]
)
def test_tries_again_what_may_mend(server: Server, trouble: Any) -> None:
    """Every fault and its rule: tests/test_endpoints.py."""
    server.script[:] = [trouble, trouble, chat("fine")]
    (done,) = ask(server)
    assert done == Completion("fine", "stop", 7, 1, None)
    assert [r["body"]["seed"] for r in server.requests] == [0, 0, 0]


@pytest.mark.parametrize("trouble", [500, "reset", "{not json", {"choices": []}])
def test_gives_up_with_the_reason(server: Server, trouble: Any) -> None:
    server.script[:] = [trouble] * 3
    with pytest.raises(AgentError, match=r"agent 'o'.*127\.0\.0\.1.*attempt 3 of 3"):
        ask(server, max_attempts=3)


def test_does_not_repeat_what_stays_wrong(server: Server) -> None:
    server.script[:] = [400]
    with pytest.raises(AgentError, match=r"agent 'o'.*400.*no, 400"):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_an_empty_response_is_a_failure(server: Server, text: str | None) -> None:
    answer = chat("x")
    answer["choices"][0]["message"]["content"] = text
    server.script[:] = [answer]
    with pytest.raises(AgentError, match="empty response"):
        ask(server)


def test_a_server_that_is_not_there_is_no_failure_of_a_play(server: Server) -> None:
    with pytest.raises(Unavailable, match=r"agent 'o'.*127\.0\.0\.1:1"):
        ask(server, base_url="http://127.0.0.1:1/v1")


REASONED = {"content": "4", "reasoning_content": "2 + 2 is 4"}


@pytest.mark.parametrize(
    "message",
    [
        REASONED,
        {"content": "4", "reasoning": "2 + 2 is 4"},
        {"content": "<think>2 + 2 is 4</think>\n\n4"},
        {"content": "\n2 + 2 is 4\n</think>\n4"},
    ],
)
def test_reasoning_is_kept_apart(server: Server, message: dict[str, str]) -> None:
    answer = chat("x", 99)
    answer["choices"][0]["message"] = message
    server.script[:] = [answer]
    (done,) = ask(server)
    assert (done.text, done.reasoning) == ("4", "2 + 2 is 4")


def test_reasoning_stays_in_the_text_where_it_is_asked_for(server: Server) -> None:
    answer = chat("x", 99)
    answer["choices"][0]["message"] = REASONED
    tagged = chat("<think>2 + 2 is 4</think> 4", 99)
    server.script[:] = [answer, tagged]
    first, second = ask(server, times=2, keep_reasoning=True)
    assert (first.text, first.reasoning) == ("<think>\n2 + 2 is 4\n</think>\n\n4", None)
    assert (second.text, second.reasoning) == ("<think>2 + 2 is 4</think> 4", None)


def test_nothing_but_reasoning_is_a_failure_that_was_paid_for(server: Server) -> None:
    answer = chat("<think>2 + 2 could be", 99)
    answer["choices"][0]["finish_reason"] = "length"
    server.script[:] = [answer]
    with pytest.raises(AgentError, match=r"nothing but reasoning.*raise max_tokens") as failure:
        ask(server)
    assert failure.value.completion is not None
    assert failure.value.completion.completion_tokens == 5


def test_a_model_that_the_server_does_not_list_is_said(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    agent = make_agent({"name": "o", "engine": "openai", "model": "m", "base_url": server.urls[0]})

    async def check() -> None:
        await agent.check()
        await agent.aclose()

    wait(check())
    assert "lists no model 'm'; it has ['served']" in caplog.text


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
            await agent.aclose()

    assert wait(once()) == wait(once())


def test_requests_in_flight_are_limited(server: Server) -> None:
    agent = make_agent(
        {
            "name": "o",
            "engine": "openai",
            "model": "m",
            "base_url": server.urls[0],
            "max_concurrency": 2,
        }
    )

    async def run() -> list[Completion]:
        try:
            return await asyncio.gather(
                *(agent.generate(ASKED, sampling=Sampling(), seed=s) for s in range(20))
            )
        finally:
            await agent.aclose()

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


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": [{"message": {"content": "x"}, "finish_reason": ["stop"]}]},
        {"choices": [{"message": {"content": "x", "reasoning_content": {"a": 1}}}]},
        {"choices": [{"message": "x"}]},
        {"choices": {"0": 1}},
    ],
)
def test_an_answer_with_parts_of_another_type_is_asked_for_again(
    server: Server, changes: dict[str, Any]
) -> None:
    server.script[:] = [chat("x", **changes), chat("fine")]
    assert ask(server)[0].text == "fine"


@pytest.mark.parametrize("model", [None, "", 3])
def test_a_model_without_a_name_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"agent 'o'\.model"):
        make_agent({"name": "o", "engine": "openai", "model": model, "base_url": "http://x"})


def test_a_server_gets_arguments_as_text_and_ids_that_belong_together() -> None:
    user, assistant, first, second, last = as_openai(CONVERSATION)
    assert [call["id"] for call in assistant["tool_calls"]] == ["call_1", "given"]
    for call in assistant["tool_calls"]:
        assert json.loads(call["function"]["arguments"]) == {"a": [3, 4]}
    assert (first["tool_call_id"], second["tool_call_id"]) == ("call_1", "given")
    assert (user, last) == (CONVERSATION[0], CONVERSATION[4])
    assert isinstance(CALL["function"]["arguments"], dict)  # what was given is unchanged
