"""The problem is asked with a word on how to answer, and kept without it."""

from __future__ import annotations

from toa_trl.data.prompts import as_prompts
from toa_trl.tasks import make_task
from toa_trl.types import Message


def test_earlier_turns_and_the_system_prompt_are_kept() -> None:
    task = make_task("math")
    messages = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "1 + 1?"}]
    turns = [
        *messages,
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2 + 2?"},
    ]
    (prompt,) = as_prompts([("line 1", {"prompt": turns, "answer": "4"})], read=task.read)
    assert prompt.messages[:3] == (
        Message("system", "Be exact."),
        Message("user", "1 + 1?"),
        Message("assistant", "2"),
    )
    assert prompt.messages[3].content.startswith("And 2 + 2?\n\n")
    assert r"\boxed{}" in prompt.messages[3].content
    assert prompt.metadata["problem"] == "And 2 + 2?"
    assert task.judged(prompt).messages[-1] == Message("user", "And 2 + 2?")
