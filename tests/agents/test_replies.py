"""What servers reply: every form of content, and everything that is no answer."""

from __future__ import annotations

from typing import Any

import pytest

import toa_trl.models.endpoints.client
from tests.agents.conftest import Server, chat
from tests.helpers import wait
from toa_trl import TOASampler
from toa_trl.agents import make_agent
from toa_trl.agents.completions import checked
from toa_trl.agents.replies import read_reply
from toa_trl.errors import AgentError
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

    async def ask() -> Completion:
        try:
            return await agent.generate((Message("user", "Hi"),), sampling=Sampling(), seed=0)
        finally:
            await agent.aclose()

    return wait(ask())


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
