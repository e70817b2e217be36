from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait
from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards import make_reward
from toa_trl.types import Prompt

PROMPT = Prompt("p", "What is 1 + 1?", {"answer": "2", "solution": "$2$"})  # type: ignore[arg-type]


def score(function: Any, *texts: str) -> list[float]:
    return wait(make_reward({"kind": "function", "function": function}).score(PROMPT, list(texts)))


def test_sees_what_a_reward_function_sees_in_trl() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, **columns)
        return [1, 0.5]  # whole numbers are numbers

    assert score(reward, "one", "two") == [1.0, 0.5]
    assert seen == {
        "prompts": [[{"role": "user", "content": "What is 1 + 1?"}]] * 2,
        "completions": [[{"role": "assistant", "content": text}] for text in ("one", "two")],
        "answer": ["2", "2"],
        "solution": ["$2$", "$2$"],
    }


def test_may_be_a_coroutine_function() -> None:
    async def reward(completions: Any, **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(completion[0]["content"])) for completion in completions]

    assert score(reward, "a", "abc") == [1.0, 3.0]


def test_trls_own_reward_functions_work_as_they_are() -> None:
    from trl.rewards import get_repetition_penalty_reward, think_format_reward

    good, bad = "<think>\nwell\n</think>\n2", "<think>\nwell\n2"
    assert score(think_format_reward, good, bad) == [1.0, 0.0]
    assert score("trl.rewards:think_format_reward", bad, good) == [0.0, 1.0]
    with pytest.raises(RewardError, match="completion_ids"):  # a search has texts, and no tokens
        score(get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0), "a b a b a b")


def test_trls_accuracy_reward_works_as_it_is() -> None:
    assert score("trl.rewards:accuracy_reward", r"It is \boxed{2}.", r"It is \boxed{3}.") == [
        1.0,
        0.0,
    ]


@pytest.mark.parametrize(
    "given",
    [
        [None],
        [float("nan")],
        [float("inf")],
        [],
        [1.0, 2.0],
        None,
        1.0,
        ["1"],
        [[1.0]],
        {"a": 1.0},
        [1 + 2j],
    ],
)
def test_what_is_no_number_is_an_error(given: Any) -> None:
    def reward(**columns: Any) -> Any:
        return given

    with pytest.raises(RewardError, match="reward"):
        score(reward, "x")


def test_an_exception_of_the_function_is_an_error_that_names_both() -> None:
    def broken(**columns: Any) -> Any:
        raise KeyError("gold")

    async def broken_later(**columns: Any) -> Any:
        raise ZeroDivisionError("by zero")

    with pytest.raises(RewardError, match=r"broken: KeyError: 'gold'"):
        score(broken, "x")
    with pytest.raises(RewardError, match=r"broken_later: ZeroDivisionError: by zero"):
        score(broken_later, "x")
    with pytest.raises(RewardError, match="completions"):
        score(lambda prompts: [1.0], "x")


@pytest.mark.parametrize(
    ("function", "named"),
    [
        ("no_colon", "package.module:name"),
        ("no.such.module:name", "no.such.module:name"),
        ("toa_trl.rewards.function:nothing", "nothing"),
        ("toa_trl.rewards.function:__name__", "must be a function"),
        ("", "package.module:name"),
        (3, "must be a string, not 3"),
    ],
)
def test_a_function_that_is_none_is_refused(function: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward.function: .*{named}"):
        make_reward({"kind": "function", "function": function})


def test_a_module_in_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_very_own_reward.py").write_text(
        "def mine(completions, **columns):\n    return [0.25]\n"
    )
    monkeypatch.setattr("sys.path", [p for p in sys.path if p != str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    assert score("my_very_own_reward:mine", "x") == [0.25]


def test_a_module_that_breaks_when_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_broken_reward.py").write_text("1 / 0\n")
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="my_broken_reward:mine"):
        make_reward({"kind": "function", "function": "my_broken_reward:mine"})
