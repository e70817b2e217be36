"""Runs whose search weighs costs: resumed, and refused where the costs are not known."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TextReward
from tests.sampling.allocation.test_adaptive import Died, Sized
from toa_trl.errors import ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.systems.search_model import SearchModel, SearchSettings
from toa_trl.types import Play

PROMPTS = [{"id": str(i), "prompt": f"Question {i}?"} for i in range(6)]
SCRIPTED = {"engine": "scripted", "responses": ["Yes."]}
CHEAP = {"name": "a", **SCRIPTED, "price": {"prompt": 1, "completion": 1}}
DEAR = {"name": "b", **SCRIPTED, "price": {"prompt": 4, "completion": 4}}
REWARD = {"kind": "length"}


def sample(run_dir: Path | None, dies_at: int | None = None, **params: Any) -> Rollouts:
    agents = [Sized("a", lambda asked: 1.0, dies_at), Sized("b", lambda asked: 4.0)]
    sampler = TOASampler(
        agents,
        TextReward(),
        budget=16,
        search_params={"width": "anytime", "tau": 1.0, **params},
        progress=False,
    )
    return sampler.sample(PROMPTS, run_dir, export=False)


def plays(rollouts: Rollouts) -> list[tuple[Play, ...]]:
    return [rollout.plays for rollout in rollouts]


def num_dear(rollouts: Rollouts) -> int:
    return Counter(play.action.agent for made in plays(rollouts) for play in made)["b"]


def test_a_run_spends_fewer_plays_on_the_large_agent() -> None:
    assert num_dear(sample(None, cost="flops")) < 0.85 * num_dear(sample(None))


@pytest.mark.parametrize("dies_at", [3, 20])
def test_a_killed_run_ends_with_the_same_plays(tmp_path: Path, dies_at: int) -> None:
    whole = plays(sample(None, cost="flops"))
    with pytest.raises((Died, BaseExceptionGroup)):
        sample(tmp_path, dies_at, cost="flops")
    assert plays(sample(tmp_path, cost="flops")) == whole


REFUSED = [
    ("flop", [CHEAP, DEAR], r"search_params\.cost: .*flops.*"),
    ("flops", [CHEAP, DEAR], r"search_params\.cost: the FLOPs of agent 'a' are unknown; add"),
    ("price", [CHEAP, {"name": "b", **SCRIPTED}], r"search_params\.cost: agent 'b' has no price"),
]


@pytest.mark.parametrize(("cost", "agents", "message"), REFUSED)
def test_unknown_costs_are_refused_in_one_line(cost: str, agents: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        TOASampler(agents, REWARD, budget=4, search_params={"cost": cost})
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=message):
        SearchModel(agents, REWARD, SearchSettings("toa", 4, {"cost": cost}, 0))


def test_prices_belong_to_a_run_whose_search_weighs_them(tmp_path: Path) -> None:
    changed = {**DEAR, "price": {"prompt": 1, "completion": 1}}

    def run(agents: Any, **params: Any) -> Rollouts:
        sampler = TOASampler(agents, REWARD, budget=4, search_params=params, progress=False)
        return sampler.sample(PROMPTS, tmp_path / str(params), export=False)

    run([CHEAP, DEAR])
    run([CHEAP, changed])  # operational here
    run([CHEAP, DEAR], cost="price")
    with pytest.raises(ConfigError, match=r"prices\.b\.prompt: 4\.0 -> 1\.0"):
        run([CHEAP, changed], cost="price")
