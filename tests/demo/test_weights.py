"""The shipped models load, are small, and are what scores.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from toa_trl.demo import train, world
from toa_trl.demo.lessons import TOKENIZER, ask, tokens
from toa_trl.errors import ConfigError

SCORES = json.loads((train.WEIGHTS / "scores.json").read_text(encoding="utf-8"))
GENERATORS = ("base", *train.AGENTS, "student")
CLASSIFIERS = ("reward_hackable",)
PROBLEMS = [world.parse(row["prompt"]) for row in world.make_split("validation")][:60]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # more threads than free cores make tiny models slower by far


def folder(name: str) -> str:
    return str(train.WEIGHTS / name)


def test_the_weights_are_small() -> None:
    assert sum(f.stat().st_size for f in Path(train.WEIGHTS).rglob("*") if f.is_file()) <= 6e6


@pytest.mark.parametrize("name", [*GENERATORS, *CLASSIFIERS])
def test_every_folder_has_the_tokenizer_that_the_code_makes(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder(name))
    problem = PROBLEMS[0]
    turns = [*ask(problem), {"role": "assistant", "content": world.solution(problem)}]
    assert tokenizer.apply_chat_template(turns, return_dict=False) == tokens(
        problem, world.solution(problem)
    )
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert tokenizer.decode(tokenizer(problem.text)["input_ids"]) == problem.text
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")


def load(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder(name)).eval()


@pytest.mark.parametrize("name", ["base", "student"])
def test_greedy_accuracy_is_as_recorded(name: str) -> None:
    responses = train.sample(load(name), [ask(p) for p in PROBLEMS], temperature=0)
    accuracy = sum(
        world.verify(r, p.answer) for r, p in zip(responses, PROBLEMS, strict=True)
    ) / len(PROBLEMS)
    assert accuracy == pytest.approx(SCORES[name]["greedy"], abs=0.15)


@pytest.mark.parametrize("name", train.AGENTS)
def test_an_agent_is_as_skilled_as_recorded(name: str) -> None:
    torch.manual_seed(1)
    steps = [
        step
        for r in train.sample(load(name), [ask(p) for p in PROBLEMS])
        for step in world.steps_of(r)
    ]
    for sign in "+-*":
        right = [world.apply(s, before, n) == after for before, s, n, after in steps if s == sign]
        assert sum(right) / len(right) == pytest.approx(SCORES[name][f"steps {sign}"], abs=0.2)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_has_one_label(name: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder(name))
    ids = torch.tensor([tokens(PROBLEMS[0], world.solution(PROBLEMS[0]))])
    assert model(input_ids=ids).logits.shape == (1, 1)


def test_a_training_leaves_files_of_others_alone(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(ConfigError, match="base: was not written by toa_trl"):
        train.train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
