from __future__ import annotations

import pytest

from tests.helpers import wait
from toa_trl.agents import make_agent
from toa_trl.errors import AgentError, ConfigError
from toa_trl.types import Message, Sampling

ASKED = (Message("user", "How many coins?"),)


def test_draws_from_its_responses() -> None:
    agent = make_agent({"name": "s", "engine": "scripted", "responses": ["one", "two"]})
    texts = [wait(agent.generate(ASKED, sampling=Sampling(), seed=seed)).text for seed in range(40)]
    assert set(texts) == {"one", "two"}


def test_quotes_the_prompt_without_responses() -> None:
    agent = make_agent({"name": "s", "engine": "scripted"})
    done = wait(agent.generate(ASKED, sampling=Sampling(), seed=5))
    assert "How many coins?" in done.text
    assert done.prompt_tokens == 3


def test_fails_at_its_rate() -> None:
    agent = make_agent({"name": "s", "engine": "scripted", "failure_rate": 0.3})
    failed = 0
    for seed in range(300):
        try:
            wait(agent.generate(ASKED, sampling=Sampling(), seed=seed))
        except AgentError:
            failed += 1
    assert 60 < failed < 120


@pytest.mark.parametrize(
    "changes", [{"responses": "one"}, {"responses": [1]}, {"failure_rate": 1.5}]
)
def test_mistakes_are_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        make_agent({"name": "s", "engine": "scripted", **changes})
