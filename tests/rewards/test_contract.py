"""What every kind of reward model does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import closed, wait
from tests.own_parts import load_example
from tests.rewards import tiny
from tests.rewards.test_remote import answered
from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards import KINDS, RewardModel, make_reward
from toa_trl.types import Message, Prompt

RATINGS = ["Rating: [[2]]", "Rating: [[9]]"]
TEXTS = [("word " * (i % 9) + "x" * (i % 5) + str(i)).strip() for i in range(40)]
COLUMNS = {"answer": "0", "reference": "word word xx20"}
PROMPT = Prompt("p", (Message("system", "Be kind."), Message("user", "How many coins?")), COLUMNS)


@pytest.fixture(params=[*KINDS, load_example("Reward")])
def entry(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A working configuration entry of every kind; a new kind needs one here."""
    length = {"kind": "length", "target": 3}
    entries: dict[str, Callable[[], dict[str, Any]]] = {
        "classifier": lambda: {
            "model": str(request.getfixturevalue("classifier")),
            "device": "cpu",
        },
        "ultrarm": lambda: {"model": str(ultrarm_folder(request)), "device": "cpu"},
        "likelihood": lambda: {"model": str(request.getfixturevalue("causal")), "device": "cpu"},
        "process": lambda: {"model": str(request.getfixturevalue("shepherd")), "device": "cpu"},
        "vllm": lambda: {"model": "m", "base_url": request.getfixturevalue("scores").url},
        "http": lambda: {"url": f"{request.getfixturevalue('scores').root}/score"},
        "function": lambda: {"function": "toa_trl.rewards.function:length_reward"},
        "math": dict,
        "chrf": dict,
        "bleu": dict,
        "length": dict,
        "judge": lambda: {"agent": {"name": "judge", "engine": "scripted", "responses": RATINGS}},
        "weighted_sum": lambda: {
            "rewards": [{"reward": length, "weight": 0.5}, {"reward": {"kind": "chrf"}, "std": 9}]
        },
        "minimum": lambda: {
            "rewards": [{"reward": length, "mean": 2}, {"reward": {"kind": "chrf"}, "std": 9}]
        },
        "held_out": lambda: {"reward": length, "second": {"kind": "bleu"}},
        load_example("Reward"): lambda: {"word": "word"},
    }
    return {"kind": request.param, **entries[request.param]()}


def ultrarm_folder(request: pytest.FixtureRequest) -> Path:
    factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    folder = factory.mktemp("models") / "ultrarm"
    tiny.build("ultrarm", folder)
    return folder


@pytest.fixture(scope="module")
def shepherd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model that judges steps as Math-Shepherd does."""
    folder = tmp_path_factory.mktemp("shepherd")
    tiny.build("shepherd", folder)
    return folder


def score(model: RewardModel, texts: Sequence[str]) -> list[float]:
    return closed(model, model.score(PROMPT, texts))


def test_one_finite_number_per_response(entry: dict[str, Any]) -> None:
    scores = score(make_reward(entry), TEXTS[:5])
    assert len(scores) == 5
    assert all(isinstance(score, float) and math.isfinite(score) for score in scores)
    assert len(set(scores)) > 1
    assert score(make_reward(entry), []) == []


def test_a_score_does_not_depend_on_its_batch(entry: dict[str, Any]) -> None:
    model: RewardModel = make_reward(entry)

    async def in_every_way() -> tuple[list[float], ...]:
        one_by_one = [await model.score(PROMPT, [text]) for text in TEXTS]
        at_once = await asyncio.gather(*(model.score(PROMPT, [text]) for text in TEXTS))
        return (
            list(chain.from_iterable(one_by_one)),
            list(chain.from_iterable(at_once)),
            await model.score(PROMPT, TEXTS),
        )

    one_by_one, at_once, together = closed(model, in_every_way())
    assert together == pytest.approx(one_by_one, abs=1e-5)
    assert together == pytest.approx(at_once, abs=1e-5)


@pytest.mark.parametrize("changes", [{"modle": "x"}, {"temperature": 1.0}])
def test_unknown_keys_are_refused_by_name(entry: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"reward: unknown key '{next(iter(changes))}'"):
        make_reward({**entry, **changes})


def test_mistakes_in_entries_name_the_place() -> None:
    with pytest.raises(
        ConfigError, match=r"reward: unknown kind 'clasifier'.*did you mean 'classifier'"
    ):
        make_reward({"kind": "clasifier"})
    needed = {"function": "function", "http": "url", "judge": "agent", "held_out": "reward"}
    needed |= dict.fromkeys(("classifier", "likelihood", "process", "vllm"), "model")
    needed |= dict.fromkeys(("weighted_sum", "minimum"), "rewards")
    for kind, key in needed.items():
        with pytest.raises(ConfigError, match=rf"reward: the key '{key}' is missing"):
            make_reward({"kind": kind})
    for entry in ({}, {"model": "x"}):
        with pytest.raises(ConfigError, match="reward: the key 'kind' is missing"):
            make_reward(entry)
    for wrong in ("classifier", None):
        with pytest.raises(ConfigError, match=r"reward: a reward model.*is needed"):
            make_reward(wrong)  # type: ignore[arg-type]


def test_scores_are_the_values_of_the_details(entry: dict[str, Any]) -> None:
    model = make_reward(entry)

    async def both() -> tuple[list[float], list[float]]:
        details = await model.score_details(PROMPT, TEXTS[:5])
        return await model.score(PROMPT, TEXTS[:5]), [score.value for score in details]

    scores, values = closed(model, both())
    assert scores == pytest.approx(values, abs=1e-5)


NO_COLUMNS = Prompt("p", "How many coins?")  # type: ignore[arg-type]
WITHOUT_REFERENCE = {"kind": "chrf"}
# how each kind is made to fail: changes of its entry, the prompt, and the response
FAILURES: dict[str, tuple[dict[str, Any], Prompt, str]] = {
    "classifier": ({}, PROMPT, "x"),  # its model raises an error
    "ultrarm": ({}, PROMPT, "x"),
    "likelihood": ({}, PROMPT, "x"),
    "process": ({}, PROMPT, "x"),
    "vllm": ({"max_attempts": 1}, PROMPT, "x"),  # its server sends no JSON
    "http": ({"max_attempts": 1}, PROMPT, "x"),
    "function": ({"function": "builtins:len"}, PROMPT, "x"),
    "math": ({}, NO_COLUMNS, "x"),
    "chrf": ({}, NO_COLUMNS, "x"),
    "bleu": ({}, NO_COLUMNS, "x"),
    "judge": (
        {"agent": {"name": "judge", "engine": "scripted", "responses": ["It is good."]}},
        PROMPT,
        "x",
    ),
    "weighted_sum": ({}, NO_COLUMNS, "x"),  # its chrf fails
    "minimum": ({}, NO_COLUMNS, "x"),
    "held_out": ({"reward": WITHOUT_REFERENCE}, NO_COLUMNS, "x"),
    load_example("Reward"): ({}, PROMPT, " "),
}


def test_every_kind_that_can_fail_has_a_failure() -> None:
    assert FAILURES.keys() == {*KINDS, load_example("Reward")} - {"length"}


@pytest.mark.parametrize("entry", FAILURES, indirect=True)
def test_a_failure_is_an_error_and_never_a_number(
    entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = entry["kind"]
    changes, prompt, response = FAILURES[kind]
    if kind in ("vllm", "http"):
        outcome, _ = wait(answered({**entry, **changes}, ["{"], [response]))
        assert isinstance(outcome, RewardError)
        return
    model: Any = make_reward({**entry, **changes})
    if kind in ("classifier", "ultrarm", "likelihood", "process"):

        def out_of_memory(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(model._model, "forward", out_of_memory)
    with pytest.raises(RewardError):
        closed(model, model.score(prompt, [response]))


@pytest.mark.parametrize("kind", KINDS.targets)
def test_every_kind_has_a_json_schema(kind: str) -> None:
    schema = KINDS.model(kind).model_json_schema()
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
