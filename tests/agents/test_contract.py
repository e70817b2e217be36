"""What every engine does, whichever it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.agents.conftest import Server
from tests.helpers import closed
from tests.own_parts import load_example
from toa_trl.agents import ENGINES, Agent, as_agent, make_agent, make_sampling
from toa_trl.agents.completions import with_system
from toa_trl.errors import ConfigError
from toa_trl.types import Completion, Message, Sampling
from toa_trl.utils.aio import gather_or_cancel

ASKED = (Message("user", "Say something long, and then something longer."),)


# vllm: tests/integration/test_vllm.py
@pytest.fixture(params=[*(name for name in ENGINES if name != "vllm"), load_example("Agent")])
def entry(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A working configuration entry of every engine; a new engine needs one here."""
    recorded = tmp_path / "recorded.jsonl"
    recorded.write_text(
        json.dumps({"prompt": ASKED[0].content, "response": ["One.", "Two.", "Three words now."]})
    )
    causal: Path = request.getfixturevalue("causal")
    server: Server = request.getfixturevalue("server")
    entries: dict[str, dict[str, Any]] = {
        "transformers": {"model": str(causal), "device": "cpu"},
        "openai": {"model": "some model", "base_url": server.urls[0]},
        "recorded": {"path": str(recorded)},
        "scripted": {},
        load_example("Agent"): {},
    }
    return {"name": "it", "engine": request.param, **entries[request.param]}


def ask(
    agent: Agent, *, sampling: Sampling | None = None, seeds: tuple[int, ...] = (1,)
) -> list[Completion]:
    sampled = sampling or Sampling(temperature=1.0, max_tokens=12)
    asked = (agent.generate(ASKED, sampling=sampled, seed=seed) for seed in seeds)
    return closed(agent, gather_or_cancel(asked))


def test_gives_a_completion_with_its_costs(entry: dict[str, Any]) -> None:
    agent = make_agent(entry)
    assert agent.name == "it"
    (done,) = ask(agent)
    assert type(done) is Completion
    assert done.text
    assert done.finish_reason in ("stop", "length")
    assert done.prompt_tokens > 0
    assert 0 < done.completion_tokens <= 12


def test_the_seed_decides_the_text(entry: dict[str, Any]) -> None:
    seeds = (1, 2, 1, 3, 1)
    first = ask(make_agent(entry), seeds=seeds)
    again = ask(make_agent(entry), seeds=seeds[::-1])[::-1]
    assert first == again
    assert first[0] == first[2] == first[4]
    assert len({done.text for done in first}) == 3


def test_max_tokens_cuts_and_says_so(entry: dict[str, Any]) -> None:
    if entry["engine"] == "recorded":
        pytest.skip("what is recorded is there already, as long as it is")
    (done,) = ask(make_agent(entry), sampling=Sampling(temperature=1.0, max_tokens=1), seeds=(4,))
    assert (done.finish_reason, done.completion_tokens) == ("length", 1)


@pytest.mark.parametrize("changes", [{"modle": "x"}, {"temperature": 1.0}])
def test_unknown_keys_are_refused_by_name(entry: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"agent 'it'.*{next(iter(changes))}"):
        make_agent({**entry, **changes})


def test_mistakes_in_entries_name_the_place() -> None:
    with pytest.raises(
        ConfigError, match=r"agent 'it'.*unknown engine 'transformer'.*did you mean 'transformers'"
    ):
        make_agent({"name": "it", "engine": "transformer"})
    with pytest.raises(ConfigError, match=r"agent 'it'.*'engine' is missing"):
        make_agent({"name": "it"})
    with pytest.raises(ConfigError, match=r"agent 'it'.*'model' is missing"):
        make_agent({"name": "it", "engine": "openai"})
    for entry in (
        {},
        {"engine": "scripted"},
        {"name": "", "engine": "scripted"},
        {"name": 3},
        "it",
        None,
    ):
        with pytest.raises(ConfigError, match="needs a name and an engine"):
            make_agent(entry)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temprature": 1}, "temprature.*did you mean 'temperature'"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": None}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"stop": 3}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": [""]}, "stop"),
        ([], "mapping"),
    ],
)
def test_sampling_out_of_range_is_refused_by_name(changes: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"here.*{named}"):
        make_sampling("here", Sampling(), changes)


def test_sampling_changes_only_what_it_names() -> None:
    base = Sampling(temperature=0.3, stop=("x",))
    assert make_sampling("here", base, {}) == base
    assert make_sampling("here", base, {"top_p": 0.5}) == Sampling(0.3, 0.5, 2048, ("x",))
    assert make_sampling("here", base, {"stop": "END"}).stop == ("END",)
    assert make_sampling("here", base, {"stop": ["a", "b"]}).stop == ("a", "b")


def test_a_system_prompt_goes_in_front_or_joins_the_one_there() -> None:
    user, system = Message("user", "Hi"), Message("system", "Be kind.")
    assert with_system([user], None) == (user,)
    assert with_system([user], "Be brief.") == (Message("system", "Be brief."), user)
    assert with_system([system, user], "Be brief.") == (
        Message("system", "Be brief.\n\nBe kind."),
        user,
    )


def test_an_object_with_all_capabilities_is_used_as_it_is() -> None:
    class Whole:
        name, identity, away, can_be_away, compute = "whole", "1", None, False, None

        async def generate(self, messages: Any, *, sampling: Any, seed: int) -> Completion:
            return Completion("text")

        async def check(self) -> None:
            return

        async def aclose(self) -> None:
            return

    whole = Whole()
    assert as_agent(whole) is whole
