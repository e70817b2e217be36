"""The section on an adaptive budget agrees with figures computed by hand, and claims no more."""

from __future__ import annotations

import re
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import IDENTITY, play
from tests.report.test_report import text_of
from toa_trl.report.budget import Budget, grouped, read_budget
from toa_trl.report.page import write_report
from toa_trl.report.rollout_tables import rollout_files
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.allocation.history import Objective
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.journal.grants import write_grants
from toa_trl.types import Grant, Prompt

REWARDS = {"p": [1, 2, 3, 4, 5, 6], "q": [5, 5], "r": [0, 1, 1, 1]}
GRANTS = [
    Grant(0, 0, 0, 2),
    Grant(1, 0, 1, 2),
    Grant(2, 0, 2, 2),
    Grant(3, 1, 0, 4, 0.5),
    Grant(4, 1, 2, 4, 0.75),
    Grant(5, 2, 0, 6, 0.25),
]
SETTINGS = {"kind": "adaptive", "objective": "best", "top_k": 3, "cost": "plays"}


def write_run(
    folder: Path,
    rewards: dict[str, list[float]] = REWARDS,  # type: ignore[assignment]
    grants: list[Grant] = GRANTS,
    **settings: Any,
) -> Path:
    allocation = {**SETTINGS, **settings}
    with closing(Journal(folder / "journal.sqlite", create=True)) as journal:
        prompts = [Prompt(id, f"What is {id}?") for id in rewards]  # type: ignore[arg-type]
        journal.begin({**IDENTITY, "budget": 4, "allocation": allocation}, prompts)
        for id, own in rewards.items():
            journal.append_all([(id, play(i, float(reward))) for i, reward in enumerate(own)])
        write_grants(journal, grants, ended=True)
        Rollouts(journal).save(folder)
    run = {"search": "toa", "budget": 4, "allocation": {"kind": "adaptive"}, "plays_in_flight": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return folder


def budget_of(folder: Path) -> Budget:
    run = yaml.safe_load((folder / "run.yaml").read_text())
    budget = read_budget(folder, rollout_files(folder), run)
    assert budget is not None
    return budget


def test_a_small_run_by_hand(tmp_path: Path) -> None:
    budget = budget_of(write_run(tmp_path))
    assert budget.num_plays.tolist() == [6, 2, 4]
    assert budget.final.tolist() == [6, 5, 1]
    assert budget.num_first == 2
    assert budget.after(2).tolist() == [2, 5, 1]
    assert budget.waves is not None
    assert [(w.value, w.expected, w.came) for w in budget.waves] == [
        (2, 0.5, 1),
        (1, 0.75, 0),
        (4, 0.25, 1),
    ]
    uniform = budget.uniform()
    assert (uniform.num_plays, uniform.num_known, uniform.num_missing) == (4, 2, 2)
    assert uniform.reached.tolist() == [4, 5, 1]
    assert uniform.gains.tolist() == [2, 0, 0]
    assert uniform.usual_gain == 0.5  # p gained 1 a play after the first two, r nothing


def test_the_page_says_it(tmp_path: Path) -> None:
    text = text_of(write_report(write_run(tmp_path), results={}).read_text())
    said = "4 scored plays per prompt on average (adaptive: least 2, mean 4.0, most 6)"
    assert f"budget {said}, 1 in flight" in text
    assert "The prompts got 2 to 6 scored plays each, 4.0 on average." in text
    assert "Half of all plays went to 1 prompt (33 %)." in text
    assert "had the lowest best rewards got 4.0 plays each, those with the highest 2.0" in text
    assert "3 waves of further plays went to the prompts where they were expected to raise" in text
    assert "by 0.5 a play on average. They raised it by 0.67" in text
    assert "would have given every prompt 4." in text
    assert "67 % of the prompts have as many plays and for them its result is known" in text
    assert "a uniform budget is 3.33 or more, and that of this run 4.00" in text
    assert "the allocation gained at most +0.67" in text
    assert "if the 2 plays that those prompts did not get had gained 1 each" in text
    assert "gained 0.5 each; at that rate they would bring a uniform budget to 3.67." in text


def test_a_prompt_with_the_highest_reward_there_is_is_known(tmp_path: Path) -> None:
    budget = budget_of(write_run(tmp_path, stop_reward=5))
    uniform = budget.uniform()
    assert (uniform.num_known, uniform.num_missing, uniform.usual_gain) == (3, 0, None)
    text = text_of(write_report(tmp_path, results={}).read_text())
    assert "The run has all of them: their mean best reward is 3.33" in text
    assert "at most" not in text.split("Where the budget went")[-1].split("tree of a prompt")[0]


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        # the best 2 of 1, 2; of 0, 1; of 1, 2, 3, 4
        ({"objective": "top_k", "top_k": 2}, [(1.5, 1.0), (0.5, 0.25), (3.5, 1.0)]),
        ({"objective": "margin", "rejected_rank": None}, [(1, 1), (1, 0), (3, 1)]),
        ({"objective": "margin", "rejected_rank": 2}, [(1, 0), (1, -0.5), (1, 0)]),
    ],
)
def test_gains_are_those_of_the_objective(
    tmp_path: Path, settings: dict[str, Any], values: list[tuple[float, float]]
) -> None:
    waves = budget_of(write_run(tmp_path, **settings)).waves
    assert waves is not None
    assert [(wave.value, wave.came) for wave in waves] == values


def test_without_its_journal_the_rest_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path)
    for file in tmp_path.glob("journal.sqlite*"):
        file.unlink()
    text = text_of(write_report(tmp_path, results={}).read_text())
    assert "is in journal.sqlite, which is not here" in text
    assert "the allocation gained at most +0.67" in text


def test_few_plays_are_described_in_words(tmp_path: Path) -> None:
    rewards: dict[str, list[float]] = {"p": [1.0], "q": [1.0]}
    write_run(tmp_path, rewards, [Grant(0, 0, 0, 1), Grant(1, 0, 1, 1)])
    page = write_report(tmp_path, results={}).read_text()
    assert "Every prompt got the same number of scored plays, 1." in text_of(page)
    assert "No plays were given for what they were expected to gain." in text_of(page)
    assert "nan" not in re.findall(r"[a-z]+", text_of(page).lower())


def test_a_uniform_run_has_no_such_section(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "journal.sqlite", create=True)) as journal:
        journal.begin({**IDENTITY, "budget": 1}, [Prompt("p", "What?")])  # type: ignore[arg-type]
        journal.append("p", play(0, 1.0))
        Rollouts(journal).save(tmp_path)
    (tmp_path / "run.yaml").write_text("search: toa\nallocation: {kind: uniform}\nbudget: 1\n")
    page = write_report(tmp_path, results={}).read_text()
    assert "Where the budget went" not in page
    assert "1 scored plays per prompt, 1 in flight" in text_of(page)


@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0]) | st.floats(-9, 9), min_size=1))
def test_groups_hold_every_value_once_and_never_split_equal_ones(values: list[float]) -> None:
    groups = grouped(np.array(values))
    assert sorted(i for group in groups for i in group.members) == list(range(len(values)))
    assert len(groups) <= 10
    for lower, upper in pairwise(groups):
        assert lower.high < upper.low


@given(
    st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=9), min_size=1, max_size=9),
    st.none() | st.floats(-9, 9),
)
def test_the_lower_bound_is_one(rewards: list[list[float]], stop_reward: float | None) -> None:
    """Whatever the missing plays would have given, a uniform budget reaches the bound."""
    best = [np.maximum.accumulate(np.array(own)) for own in rewards]
    uniform = Budget(best, Objective(), stop_reward, 1, 4, [], 0, "plays", 1).uniform()
    mean = sum(map(len, rewards)) / len(rewards)
    assert uniform.num_plays <= mean < uniform.num_plays + 1
    for own, reached in zip(rewards, uniform.reached, strict=True):
        assert reached == max(own[: uniform.num_plays])
    assert (uniform.gains >= 0).all()
