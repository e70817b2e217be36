"""A budget in words says the truth about a run whose prompts get different numbers of plays."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers import EchoAgent, TextReward
from toa_trl import TOASampler
from toa_trl.hub.lineage import read_lineage
from toa_trl.hub.model_card import write_model_card
from toa_trl.sampling.budget import PlaysPerPrompt, describe_budget, is_adaptive


def test_prompts_without_plays_count() -> None:
    assert PlaysPerPrompt.of([7]) == PlaysPerPrompt(7, 7.0, 7)
    assert PlaysPerPrompt.of([], 0) == PlaysPerPrompt(0, 0.0, 0)
    assert PlaysPerPrompt.of([2, 4], 2) == PlaysPerPrompt(2, 3.0, 4)
    assert PlaysPerPrompt.of([2, 4], 4) == PlaysPerPrompt(0, 1.5, 4)
    assert PlaysPerPrompt.of([], 3) == PlaysPerPrompt(0, 0.0, 0)


def test_uniform_and_adaptive_budgets_in_words() -> None:
    assert describe_budget(160) == "160 scored plays per prompt"
    assert describe_budget(160, PlaysPerPrompt(4, 157.25, 1280)) == (
        "160 scored plays per prompt on average (adaptive: least 4, mean 157.2, most 1,280)"
    )
    assert not is_adaptive({})
    assert not is_adaptive({"allocation": {"kind": "uniform"}})
    assert is_adaptive({"allocation": {"kind": "adaptive"}})


def test_every_card_of_an_adaptive_run_says_that_the_budget_is_a_mean(tmp_path: Path) -> None:
    sampler = TOASampler(
        [EchoAgent("a")],
        TextReward(),
        budget=6,
        progress=False,
        allocation={"kind": "adaptive", "min_plays": 2, "wave": 2, "stop_reward": 0.8},
    )
    rollouts = sampler.sample([f"What is {number}?" for number in range(8)], tmp_path / "run")
    rollouts.save(tmp_path / "run")
    numbers = [len(rollout.plays) for rollout in rollouts]
    assert min(numbers) < 6 < max(numbers)
    said = f"6 scored plays per prompt on average (adaptive: least {min(numbers)}, "
    said += f"mean {sum(numbers) / 8:.1f}, most {max(numbers)})"
    card = (tmp_path / "run/README.md").read_text()
    assert f"| budget | {said} |" in card
    assert (
        "| allocation | `adaptive`, min_plays 2, wave 2, objective best, top_k 3, "
        "cost plays, stop_reward 0.8 |" in card.replace("\\_", "_")
    )
    lineage = {"dataset": "me/data", "rows": 8, "fraction": None}
    lineage |= read_lineage(str(tmp_path / "run/sft"))
    (tmp_path / "model").mkdir()
    write_model_card(tmp_path / "model", [lineage], {"base_model": "org/base"}, "# Model\n")
    assert said in (tmp_path / "model/README.md").read_text()
    assert json.loads((tmp_path / "run/lineage.json").read_text())["plays_per_prompt"]["most"] > 6
