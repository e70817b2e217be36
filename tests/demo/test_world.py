"""The bundled world: problems, slips, the referee, and splits that do not overlap."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toa_trl.demo import world
from toa_trl.demo.world import Problem, Skill

SEEDS = st.integers(0, 2**32)
SPLITS = st.sampled_from(sorted(world.SPLITS))
SOME = Skill(dict.fromkeys("+-*", 0.5))


def draw(seed: int, split: str = "train") -> Problem:
    return world.draw(random.Random(seed), split)


@given(SEEDS, SPLITS)
def test_the_worked_solution_is_right(seed: int, split: str) -> None:
    problem = draw(seed, split)
    assert problem.split == split
    assert all(2 <= v <= world.LARGEST for v in problem.values)
    assert world.verify(world.solution(problem), problem.answer)
    assert world.num_right(problem, world.solution(problem)) == len(problem.steps)


@given(SEEDS)
def test_a_problem_is_read_back_from_its_text(seed: int) -> None:
    problem = draw(seed)
    assert world.parse(problem.text) == problem


@given(SEEDS, st.integers(0, 3))
def test_a_slip_changes_the_answer(seed: int, step: int) -> None:
    """One slip alone never cancels: addition, subtraction and multiplication are one-to-one."""
    rng, problem = random.Random(seed), draw(seed)
    step = min(step, len(problem.steps) - 1)
    before = (problem.start, *problem.values)[step]
    values = [*problem.values[:step], world.slip(rng, problem, step, before)]
    for sign, operand in problem.steps[step + 1 :]:
        values.append(world.apply(sign, values[-1], operand))
    response = world.solution(problem, values)
    assert all(v >= 1 for v in values)
    assert not world.verify(response, problem.answer)
    assert world.num_right(problem, response) == step


@given(SEEDS, st.integers(0, 4))
def test_work_is_positive_and_complete(seed: int, num_drafts: int) -> None:
    rng, problem = random.Random(seed), draw(seed)
    drafts = [world.work(rng, problem, SOME) for _ in range(num_drafts)]
    values = world.work(rng, problem, SOME, drafts)
    assert len(values) == len(problem.steps)
    assert all(v >= 1 for v in values)


def test_a_right_draft_is_kept_more_often_than_it_is_found() -> None:
    rng, weak = random.Random(0), Skill(dict.fromkeys("+-*", 0.1))
    problems = [draw(seed) for seed in range(300)]
    alone = sum(world.work(rng, p, weak)[0] == p.values[0] for p in problems)
    helped = sum(world.work(rng, p, weak, [p.values])[0] == p.values[0] for p in problems)
    misled = sum(
        world.work(rng, p, weak, [p.values, *[[0] * 4] * 3])[0] == p.values[0] for p in problems
    )
    assert alone < 60 < misled < helped
    assert helped > 200


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("So 1 + 2 = 3.\n#### 3", True),
        ("####3", True),
        ("#### 003 .", True),
        ("#### 4\n#### 3", True),
        ("#### 3\n#### 4", False),
        ("#### 3\n####", False),
        ("#### 3.5", False),
        ("#### 33", False),
        ("#### -3", False),
        ("#### 3x", False),
        ("### 3", False),
        ("3", False),
        ("", False),
        ("#### ３", False),  # a full-width digit
        ("#### " + "9" * 10_000, False),
        (None, False),
        (3, False),
        ([{"role": "assistant", "content": "#### 3"}], False),
    ],
)
def test_the_referee(response: object, right: bool) -> None:
    assert world.verify(response, "3") is right


@given(st.text() | st.binary() | st.none(), st.text(max_size=5))
def test_garbage_never_upsets_the_referee(response: object, answer: str) -> None:
    assert world.verify(response, answer) in (True, False)


def test_the_referee_as_a_trl_reward_function() -> None:
    conversational = [
        [{"role": "assistant", "content": "#### 3"}],
        [],
        [{"role": "assistant", "content": "3"}],
    ]
    assert world.accuracy_reward(
        completions=conversational, answer=["3"] * 3, prompts=["x"] * 3
    ) == [1.0, 0.0, 0.0]
    assert world.accuracy_reward(["#### 3", "#### 4"], ["3", "3"]) == [1.0, 0.0]


def rows(split: str) -> list[dict[str, object]]:
    return [
        json.loads(line)
        for line in (world.DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.parametrize("split", sorted(world.SIZES))
def test_the_shipped_split_is_the_generated_one(split: str) -> None:
    assert rows(split) == world.make_split(split)


def test_splits_do_not_overlap() -> None:
    """Compare cores, so that no problem is in two splits under different names."""
    seen: dict[object, str] = {}
    ids, texts = [], []
    for split in world.SIZES:
        for row in rows(split):
            problem = world.parse(str(row["prompt"]))
            assert problem.answer == row["answer"]
            assert world.split_of(problem.start, problem.steps) == split != "train"
            assert seen.setdefault((problem.start, problem.steps), split) == split
            ids.append(row["id"])
            texts.append(row["prompt"])
    assert len(set(ids)) == len(ids)
    assert len(set(texts)) == len(texts)
