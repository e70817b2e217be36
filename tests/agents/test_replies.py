"""What servers reply: every form of content, and everything that is no answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toa_trl.models.endpoints.client
from tests.agents.conftest import Server, chat
from tests.helpers import closed
from toa_trl import TOASampler
from toa_trl.agents import completions, make_agent
from toa_trl.agents.completions import checked
from toa_trl.agents.openai import read_reply
from toa_trl.errors import AgentError, ConfigError
from toa_trl.types import CUT, WHOLE, Completion, Message, Sampling


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toa_trl.models.endpoints.client, "FIRST_PAUSE_S", 0.001)


def reply(message: dict[str, Any], finish_reason: Any = "stop") -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    return {**chat("x"), "choices": [choice]}


def answer(server: Server, *replies: Any, **entry: Any) -> Completion:
    server.script[:] = replies
    agent = make_agent(
        {
            "name": "o",
            "engine": "openai",
            "model": "m",
            "base_url": server.urls[0],
            "max_attempts": len(replies),
            **entry,
        }
    )
    asked = [Message("user", "Hi")]
    return closed(agent, completions.ask(agent, asked, sampling=Sampling(), seed=0))


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


PARTS: list[tuple[Any, str, str | None]] = [
    ([text("It "), text("is 7.")], "It is 7.", None),
    (["It ", {"type": "output_text", "text": "is 7."}], "It is 7.", None),
    ([{"type": "thinking", "thinking": [text("Half.")]}, text("It is 7.")], "It is 7.", "Half."),
    ([{"type": "thinking", "thinking": "Half."}, text("It is 7.")], "It is 7.", "Half."),
    ([{"type": "reasoning", "text": "Half."}, text("It is 7.")], "It is 7.", "Half."),
    ([text("It is 7"), {"type": "reference", "reference_ids": [1]}, text(".")], "It is 7.", None),
]


@pytest.mark.parametrize(("content", "expected", "reasoning"), PARTS)
def test_parts_of_text_are_joined_and_those_of_thinking_are_reasoning(
    server: Server, content: Any, expected: str, reasoning: str | None
) -> None:
    done = answer(server, reply({"role": "assistant", "content": content}))
    assert (done.text, done.reasoning) == (expected, reasoning)
    kept = answer(server, reply({"content": content}), keep_reasoning=True)
    assert (reasoning or "") in kept.text
    assert kept.text.endswith(expected)
    assert kept.reasoning is None


NO_ANSWER: dict[str, tuple[dict[str, Any], str]] = {
    "a refusal": ({"content": None, "refusal": "Against the rules."}, "refused: 'Against the ru"),
    "a refusal beside a text": ({"content": "I", "refusal": "No."}, "refused: 'No.'"),
    "a part that refuses": ({"content": [{"type": "refusal", "refusal": "No."}]}, "refused: 'No."),
    "tool calls": ({"content": None, "tool_calls": [{"id": "1"}]}, "calls a tool"),
    "tool calls beside a text": ({"content": "Wait.", "tool_calls": [{}]}, "calls a tool"),
    "a function call": ({"content": None, "function_call": {"name": "f"}}, "calls a tool"),
    "an image": ({"content": [text("See"), {"type": "image_url"}]}, "type 'image_url'"),
    "nothing but reasoning": ({"content": None, "reasoning_content": "7."}, "reasoning parser"),
    "an empty list of parts": ({"content": []}, "empty response"),
    "no content": ({"role": "assistant"}, "empty response"),
}


@pytest.mark.parametrize("case", NO_ANSWER)
def test_what_is_no_answer_fails_at_once_with_the_reason(server: Server, case: str) -> None:
    message, reason = NO_ANSWER[case]
    with pytest.raises(AgentError, match=f"agent 'o'.*{reason}") as failure:
        answer(server, reply(message), reply({"content": "never asked for"}))
    assert len(server.script) == 1
    assert "raise max_tokens" not in str(failure.value)
    assert failure.value.completion is not None
    assert failure.value.completion.prompt_tokens == 7


def test_empty_lists_of_tool_calls_are_no_calls(server: Server) -> None:
    message: dict[str, Any] = {
        "content": "It is 7.",
        "tool_calls": [],
        "function_call": None,
        "refusal": None,
    }
    assert answer(server, reply(message)).text == "It is 7."


@pytest.mark.parametrize(
    "message",
    [
        {"content": 7},
        {"content": [{"text": "no type"}]},
        {"content": [{"type": "text"}]},
        {"content": [7]},
        {"content": "x", "refusal": ["no"]},
        {"content": "x", "reasoning": 7},
    ],
)
def test_a_malformed_content_is_asked_for_again(server: Server, message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a chat completion"):
        read_reply(reply(message))
    assert answer(server, reply(message), reply({"content": "fine"})).text == "fine"


@pytest.mark.parametrize("reason", [*sorted(WHOLE), *sorted(CUT), "STOP", "MAX_TOKENS"])
def test_servers_have_several_words_for_two_ends(server: Server, reason: str) -> None:
    done = answer(server, reply({"content": "It is 7."}, reason))
    assert done.finish_reason == ("stop" if reason.lower() in WHOLE else "length")


@pytest.mark.parametrize(
    "reason", ["content_filter", "abort", "error", "tool_calls", "some new word", "", None]
)
def test_any_other_end_never_becomes_data(server: Server, reason: str | None) -> None:
    script = [reply({"content": f"The first half {i}"}, reason) for i in range(30)]
    server.script[:] = script
    entry = {"name": "o", "engine": "openai", "model": "m", "base_url": server.urls[0]}
    agents = [entry, {"name": "other", "engine": "scripted"}]
    sampler = TOASampler(agents, {"kind": "length"}, "parallel", 4, progress=False)
    rollouts = sampler.sample(["What is half of 14?"])
    (rollout,) = rollouts
    failed = [play for play in rollout.plays if play.action.agent == "o"]
    assert failed
    assert all(play.reward is None for play in failed)
    assert all("finish_reason" in (play.error or "") for play in failed)
    sft = rollouts.to_sft(top_k=10, keep_truncated=True)
    assert "first half" not in str(sft["completion"])


class Own:
    """A user's own agent, which returns what it was given."""

    name = "own"

    def __init__(self, done: Any) -> None:
        self.done = done

    async def generate(self, messages: Any, *, sampling: Any, seed: int) -> Any:
        return self.done


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        (Completion(""), "empty response"),
        (Completion(" \n"), "empty response"),
        (Completion("The first half", "content_filter"), "'content_filter'"),
        (Completion("The first half", None), "'none'"),  # type: ignore[arg-type]
        (Completion(7), "must return a Completion"),  # type: ignore[arg-type]
        (Completion("7", reasoning=["a"]), "must return a Completion"),  # type: ignore[arg-type]
        ("It is 7.", "must return a Completion"),
        (None, "must return a Completion"),
    ],
)
def test_completions_of_every_engine_are_checked(done: Any, reason: str) -> None:
    agents: list[Any] = [Own(done), {"name": "other", "engine": "scripted"}]
    sampler = TOASampler(agents, {"kind": "length"}, "parallel", 2, progress=False)
    (rollout,) = sampler.sample(["What is half of 14?"])
    errors = [play.error for play in rollout.plays if play.action.agent == "own"]
    assert errors
    assert all(reason in (error or "") for error in errors)


def test_an_own_agent_may_use_the_words_of_servers() -> None:
    assert checked("here", Completion("7", "EOS")) == Completion("7", "stop")
    assert checked("here", Completion("7", "max_tokens")) == Completion("7", "length")


IMPLAUSIBLE = [None, 0, -1, 2**63, 10**30, 1e300, float("nan"), "12", [1], True, 0.5]


@pytest.mark.parametrize("usage", [None, [1], {}, "many"])
def test_tokens_are_estimated_without_usage(server: Server, usage: Any) -> None:
    done = answer(server, {**chat("a text of 24 characters!"), "usage": usage})
    assert (done.prompt_tokens, done.completion_tokens) == (1, 6)
    assert done.tokens_estimated


@pytest.mark.parametrize("count", IMPLAUSIBLE)
def test_implausible_counts_are_estimated(server: Server, count: Any) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": count}
    done = answer(server, json.dumps({**chat("a text of 24 characters!"), "usage": usage}))
    assert (done.prompt_tokens, done.completion_tokens) == (7, 6)
    assert done.tokens_estimated
    agents: list[Any] = [Own(Completion("a text of 24 characters!", "stop", 7, count))]
    sampler = TOASampler(agents, {"kind": "length"}, "best_of_n", 1, progress=False)
    (rollout,) = sampler.sample(["Hi"])
    (play,) = rollout.plays
    assert play.completion is not None
    assert (play.completion.prompt_tokens, play.completion.completion_tokens) == (7, 6)


def test_a_counted_usage_is_taken_as_it_is(server: Server) -> None:
    done = answer(server, {**chat("x"), "usage": {"prompt_tokens": 9, "completion_tokens": 3.0}})
    assert (done.prompt_tokens, done.completion_tokens) == (9, 3)
    assert not done.tokens_estimated


def test_tokens_are_counted_with_the_tokenizer_where_one_is_known(
    server: Server, causal: Path
) -> None:
    from transformers import AutoTokenizer

    words = "a text of 24 characters!"
    expected = len(AutoTokenizer.from_pretrained(causal)(words)["input_ids"])
    done = answer(server, {**chat(words), "usage": None}, config=str(causal))
    assert done.completion_tokens == expected != 6
    assert not done.tokens_estimated
    assert done.flops


def test_a_run_without_usage_is_limited_and_warns(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.script[:] = [{**chat("word " * 20), "usage": None}] * 50
    entry = {"name": "o", "engine": "openai", "model": "m", "base_url": server.urls[0]}
    sampler = TOASampler(
        [entry],
        {"kind": "length"},
        "best_of_n",
        10,
        limits={"max_tokens": 60},
        prompts_in_flight=1,
        progress=False,
    )
    rollouts = sampler.sample(["Hi"])
    assert sum(len(rollout.plays) for rollout in rollouts) < 10
    assert caplog.text.count("agent 'o': its server reports no usage") == 1


def test_errors_are_stored_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct horse battery")

    class Leaking(Own):
        async def generate(self, messages: Any, *, sampling: Any, seed: int) -> Any:
            raise KeyError("correct horse battery, Bearer abcdefgh1234, password=hunter2x")

    agents: list[Any] = [Leaking(None), {"name": "other", "engine": "scripted"}]
    sampler = TOASampler(agents, {"kind": "length"}, "parallel", 2, progress=False)
    (rollout,) = sampler.sample(["Hi"])
    (error,) = {play.error for play in rollout.plays if play.error}
    assert error == "KeyError: '***, Bearer ***, password=***'"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"fields": {"seed": None}}, {"temperature", "top_p", "max_tokens"}),
        (
            {"fields": {"max_tokens": "max_completion_tokens"}},
            {"temperature", "top_p", "max_completion_tokens", "seed"},
        ),
        (
            {"extra_body": {"top_p": None, "temperature": None, "top_k": 3}},
            {"max_tokens", "seed", "top_k"},
        ),
        (
            {"extra_body": {"max_tokens": None, "max_completion_tokens": 9}},
            {"temperature", "top_p", "max_completion_tokens", "seed"},
        ),
    ],
)
def test_fields_are_renamed_or_left_out(
    server: Server, entry: dict[str, Any], expected: set[str]
) -> None:
    answer(server, chat("fine"), **entry)
    body = server.requests[0]["body"]
    neutral = set() if "top_k" in expected else {"top_k"}
    expected |= neutral | {"min_p", "repetition_penalty", "model", "messages"}
    assert set(body) == expected
    if "max_completion_tokens" in expected:
        assert body["max_completion_tokens"] == entry.get("extra_body", {}).get(
            "max_completion_tokens", Sampling().max_tokens
        )


REFUSED = {
    "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.": (
        "fields: {max_tokens: max_completion_tokens}"
    ),
    "Extra inputs are not permitted: body, seed": "fields: {seed: null}",
    "temperature does not support 0.7; only the default (1)": "fields: {temperature: null}",
    "Unknown field top_p and unknown field seed": "fields: {top_p: null, seed: null}",
}


@pytest.mark.parametrize("said", REFUSED)
@pytest.mark.parametrize("status", [400, 422])
def test_an_error_that_names_a_field_says_how_to_leave_it_out(
    server: Server, said: str, status: int
) -> None:
    with pytest.raises(AgentError) as failure:
        answer(server, (status, {"error": {"message": said}}))
    assert REFUSED[said] in str(failure.value)


@pytest.mark.parametrize(
    "said", ["max_tokens is too large: the maximum context length is 10", "Invalid messages."]
)
def test_other_errors_get_no_such_advice(server: Server, said: str) -> None:
    with pytest.raises(AgentError) as failure:
        answer(server, (400, {"error": {"message": said}}))
    assert "fields:" not in str(failure.value)


def test_the_base_url_may_come_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.urls[1])
    assert answer(server, chat("fine"), base_url=None).text == "fine"
    assert server.requests[0]["port"] == server.ports[1]
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(ConfigError, match="base_url is missing, and OPENAI_BASE_URL is not set"):
        answer(server, chat("x"), base_url=None)


@pytest.mark.parametrize(
    ("limits", "price"),
    [({"max_tokens": 100}, {}), ({"max_cost": 1.0}, {"price": {"prompt": 5e4, "completion": 0}})],
)
def test_the_calls_of_a_judge_count_towards_the_limits_also_after_a_resume(
    server: Server, tmp_path: Path, limits: dict[str, float], price: dict[str, Any]
) -> None:
    server.script[:] = [chat("Rating: [[7]]")] * 40
    judge = {"name": "j", "engine": "openai", "model": "m", "base_url": server.urls[0], **price}
    sampler = TOASampler(
        [{"name": "a", "engine": "scripted", "responses": ["x"]}],
        {"kind": "judge", "agent": judge},
        "best_of_n",
        20,
        limits=limits,
        prompts_in_flight=1,
        progress=False,
    )
    first = sum(len(rollout.plays) for rollout in sampler.sample(["Hi"], tmp_path))
    again = sum(len(rollout.plays) for rollout in sampler.sample(["Hi"], tmp_path))
    assert 0 < first == again < 20


def test_an_agent_without_a_usable_play_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    agents: list[Any] = [Own(Completion("")), {"name": "other", "engine": "scripted"}]
    TOASampler(agents, {"kind": "length"}, "parallel", 2, progress=False).sample(["Hi"])
    assert "NO USABLE PLAY of own" in caplog.text
