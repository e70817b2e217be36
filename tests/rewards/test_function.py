from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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


class Calls:
    """A reward function that waits in its first call until the event loop has asked for more."""

    def __init__(self) -> None:
        self.answers: list[list[Any]] = []
        self.threads: set[int] = set()
        self.asked = threading.Event()

    def __call__(self, completions: Any, **columns: Any) -> list[float]:
        self.threads.add(threading.get_ident())
        self.answers.append(columns.get("answer", []))
        assert self.asked.wait(60), "the function blocks the event loop"
        return [float(completion[0]["content"]) for completion in completions]


def test_a_function_is_called_in_batches_and_off_the_event_loop() -> None:
    calls = Calls()
    model = make_reward({"kind": "function", "function": calls, "max_batch_size": 10})
    prompts = [Prompt(str(i), "q", {"answer": i}) for i in range(25)]  # type: ignore[arg-type]
    other = Prompt("other", "q", {})  # type: ignore[arg-type]

    async def together() -> list[list[float]]:
        first = asyncio.create_task(model.score(other, ["-1"]))
        while not calls.answers:
            await asyncio.sleep(0.01)
        tasks = [asyncio.create_task(model.score(p, [str(i)])) for i, p in enumerate(prompts)]
        tasks.append(asyncio.create_task(model.score(other, ["-2"])))
        await asyncio.sleep(0)
        calls.asked.set()
        return await asyncio.gather(first, *tasks)

    assert wait(together()) == [[-1.0], *([float(i)] for i in range(25)), [-2.0]]
    # the columns of a prompt are those of its own: another set of columns is another call
    answers = [list(range(10)), list(range(10, 20)), list(range(20, 25)), []]
    assert calls.answers == [[], *answers]
    assert len(calls.threads) == 1
    assert threading.get_ident() not in calls.threads


def test_one_bad_reward_fails_no_other_of_its_batch() -> None:
    def reward(completions: Any, **columns: Any) -> list[float | None]:
        texts = [completion[0]["content"] for completion in completions]
        if "raises" in texts:
            raise StopIteration
        return [None if text == "none" else 1.0 for text in texts]

    model = make_reward({"kind": "function", "function": reward})

    async def together() -> list[Any]:
        asked = (model.score(PROMPT, [text]) for text in ("a", "raises", "none", "b"))
        return await asyncio.gather(*asked, return_exceptions=True)

    a, raises, none, b = wait(together())
    assert a == b == [1.0]
    assert "StopIteration" in str(raises)
    assert "not None" in str(none)
    assert isinstance(raises, RewardError)
    assert isinstance(none, RewardError)


def test_calls_of_a_coroutine_function_overlap() -> None:
    running = asyncio.Semaphore(0)

    async def reward(completions: Any, **columns: Any) -> list[float]:
        if completions[0][0]["content"] == "waits":
            await running.acquire()
        else:
            running.release()
        return [1.0] * len(completions)

    model = make_reward({"kind": "function", "function": reward})

    async def together() -> list[list[float]]:
        first = asyncio.create_task(model.score(PROMPT, ["waits"]))
        for _ in range(3):
            await asyncio.sleep(0)
        return list(await asyncio.gather(first, model.score(PROMPT, ["wakes it"])))

    assert wait(together()) == [[1.0], [1.0]]


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
        torch.tensor([0.5, 1.0]),
        [torch.tensor(0.5), torch.tensor(1.0, dtype=torch.bfloat16)],
        np.array([0.5, 1.0], dtype=np.float32),
        [np.float32(0.5), np.int64(1)],
        [np.array(0.5), np.bool_(True)],
        (0.5, 1),
    ],
    ids=repr,
)
def test_numbers_of_torch_and_numpy_are_numbers(given: Any) -> None:
    found = score(lambda **columns: given, "a", "b")
    assert found == [0.5, 1.0]
    assert [type(value) for value in found] == [float, float]


@pytest.mark.parametrize(
    "given",
    [
        [torch.tensor([0.5])],
        [torch.tensor(float("nan"))],
        torch.tensor(0.5),
        [np.array([0.5, 1.0])],
        [None],
        [float("nan")],
        [-sys.float_info.max],  # a sum of such scores, or the square of one, is infinite
        [10**400],
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
        (3, "must be a string or a function, not 3"),
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
