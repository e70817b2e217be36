"""The names that users call; design.md calls them what must not move."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import toa_trl
from toa_trl import types
from toa_trl.agents import make_agent
from toa_trl.data.preference import POLICIES
from toa_trl.rewards import make_reward
from toa_trl.search import SEARCHES, Search, make_search


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_package_exports_what_it_says() -> None:
    assert toa_trl.__all__ == sorted(toa_trl.__all__)
    assert len(toa_trl.__all__) == len(set(toa_trl.__all__))
    for name in toa_trl.__all__:
        assert getattr(toa_trl, name).__module__.startswith("toa_trl.")
    assert {
        "TOASampler",
        "Rollouts",
        "Prompt",
        "Action",
        "Completion",
        "Play",
        "Sampling",
        "ToaError",
    } <= set(toa_trl.__all__)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (make_search, ["name", "agents", "budget", "seed", "params"]),
        (Search.ask, ["n"]),
        (Search.tell, ["play", "reward", "cost"]),
        (Search.fail, ["play"]),
        (Search.restore, ["plays", "cost_of"]),
        (make_agent, ["entry"]),
        (make_reward, ["entry", "place"]),
        (toa_trl.TOASampler.sample, ["prompts", "output_dir", "extend", "export"]),
        (toa_trl.Rollouts.to_sft, ["top_k", "keep_truncated", "without"]),
        (
            toa_trl.Rollouts.to_preference,
            ["rejected_rank", "policy", "margin", "keep_truncated", "without"],
        ),
        (toa_trl.Rollouts.to_dataset, []),
        (
            toa_trl.Rollouts.push_to_hub,
            [
                *("repo_id", "private", "token", "overwrite", "sft", "preference"),
                *("without", "decontaminate", "card", "recipes", "clean", "trust"),
            ],
        ),
    ],
)
def test_signatures(function: Callable[..., Any], expected: list[str]) -> None:
    assert parameters(function) == expected


def test_the_sampler_takes_what_the_design_says() -> None:
    signature = inspect.signature(toa_trl.TOASampler)
    assert list(signature.parameters)[:4] == ["agents", "reward_model", "search", "budget"]
    assert signature.parameters["search"].default == "toa"
    assert signature.parameters["budget"].default == 160
    to_preference = inspect.signature(toa_trl.Rollouts.to_preference)
    assert to_preference.parameters["rejected_rank"].default == 30 / 160


def test_defaults_of_the_searches() -> None:
    paper = ["best_of_n", "parallel", "prs", "sequential", "moa", "toa"]
    assert list(SEARCHES) == [*paper, "greedy", "ab_mcts"]
    assert isinstance(Search.done, property)
    assert make_search("toa", ["a"], 8).ask() == [(0, types.Action("a", "answer", (), None, 0))]


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        (types.Action, ["agent", "kind", "refs", "parent", "depth"]),
        (types.Prompt, ["id", "messages", "metadata"]),
        (types.Message, ["role", "content", "tool_calls", "name", "tool_call_id"]),
        (types.Sampling, ["temperature", "top_p", "max_tokens", "stop"]),
        (
            types.Completion,
            [
                *("text", "finish_reason", "prompt_tokens", "completion_tokens", "flops"),
                *("reasoning", "tokens_estimated"),
            ],
        ),
    ],
)
def test_fields(value: Any, fields: list[str]) -> None:
    assert [field.name for field in dataclasses.fields(value)] == fields


def test_the_papers_settings_are_the_defaults() -> None:
    assert types.Sampling() == types.Sampling(0.7, 1.0, 2048, ())


def test_the_policies() -> None:
    assert POLICIES == ("rank", "worst", "margin", "same_parent", "cross_agent")
