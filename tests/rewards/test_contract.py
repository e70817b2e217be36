"""What every kind of reward model does, whichever it is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest

from tests.helpers import wait
from toa_trl.errors import ConfigError
from toa_trl.rewards import KINDS, RewardModel, make_reward
from toa_trl.types import Message, Prompt

TEXTS = [("word " * (i % 9) + "x" * (i % 5) + str(i)).strip() for i in range(40)]
PROMPT = Prompt("p", (Message("system", "Be kind."), Message("user", "How many coins?")))


@pytest.fixture(params=KINDS)
def entry(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A working configuration entry of every kind; a new kind needs one here."""
    entries: dict[str, dict[str, Any]] = {
        "classifier": {"model": str(request.getfixturevalue("classifier")), "device": "cpu"},
        "likelihood": {"model": str(request.getfixturevalue("causal")), "device": "cpu"},
        "vllm": {"model": "m", "base_url": request.getfixturevalue("scores").url},
        "http": {"url": f"{request.getfixturevalue('scores').root}/score"},
        "function": {"function": "toa_trl.rewards.function:length_reward"},
    }
    return {"kind": request.param, **entries[request.param]}


def score(model: RewardModel, texts: Sequence[str]) -> list[float]:
    async def once() -> list[float]:
        try:
            return await model.score(PROMPT, texts)
        finally:
            if hasattr(model, "aclose"):
                await model.aclose()

    return wait(once())


def test_one_finite_number_per_response(entry: dict[str, Any]) -> None:
    scores = score(make_reward(entry), TEXTS[:5])
    assert len(scores) == 5
    assert all(isinstance(score, float) and math.isfinite(score) for score in scores)
    assert len(set(scores)) > 1
    assert score(make_reward(entry), []) == []


def test_a_score_does_not_depend_on_its_batch(entry: dict[str, Any]) -> None:
    model: RewardModel = make_reward(entry)

    async def batched() -> list[list[float]]:
        try:
            return await asyncio.gather(*(model.score(PROMPT, [text]) for text in TEXTS))
        finally:
            if hasattr(model, "aclose"):
                await model.aclose()

    together = [one for (one,) in wait(batched())]
    assert together == pytest.approx([score(model, [text])[0] for text in TEXTS], abs=1e-5)
    assert together == pytest.approx(score(model, TEXTS), abs=1e-5)


@pytest.mark.parametrize("changes", [{"modle": "x"}, {"temperature": 1.0}])
def test_unknown_keys_are_refused_by_name(entry: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"reward '{entry['kind']}'.*{next(iter(changes))}"):
        make_reward({**entry, **changes})


def test_mistakes_in_entries_name_the_place() -> None:
    with pytest.raises(ConfigError, match=r"reward.*'clasifier' is not known.*did you mean 'classifier'"):
        make_reward({"kind": "clasifier"})
    needed = {"classifier": "model", "likelihood": "model", "function": "function", "vllm": "model", "http": "url"}
    for kind, key in needed.items():
        with pytest.raises(ConfigError, match=rf"reward '{kind}'.*'{key}' is missing"):
            make_reward({"kind": kind})
    for entry in ({}, {"model": "x"}, "classifier", None):
        with pytest.raises(ConfigError, match="needs a kind"):
            make_reward(entry)  # type: ignore[arg-type]
