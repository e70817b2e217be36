"""Process reward models against the computation of their model cards, one text at a time.

Small random models of the same architecture and interface replace the weights of Qwen2.5-Math-PRM
and Math-Shepherd, which cannot be loaded here.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.helpers import wait
from tests.rewards.tiny import BOXED, load
from toa_trl.errors import ConfigError, RewardError
from toa_trl.types import Message, Prompt, as_dicts

Tiny = Callable[[str], tuple[Path, Any]]

make = partial(load, "process")
PROMPT = Prompt("p", (Message("user", "Janet has 3 ducks. Two more come. How many?"),))
# of each text, its paragraphs and its lines
RESPONSES = [
    ("3 + 2 = 5", ["3 + 2 = 5"], ["3 + 2 = 5"]),
    (
        "Step 1: 3.\nStep 2: 5.\n\nSo 5.",
        ["Step 1: 3.\nStep 2: 5.", "So 5."],
        ["Step 1: 3.", "Step 2: 5.", "So 5."],
    ),
    ("\n\n a \n \n\n\nb\n", ["a", "b"], ["a", "b"]),
    ("Zoë: руки +1 \\boxed{5}", ["Zoë: руки +1 \\boxed{5}"], ["Zoë: руки +1 \\boxed{5}"]),
    ("", [""], [""]),
]
AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "last": lambda steps: steps[-1],
    "min": min,
    "mean": fmean,
    "product": math.prod,
}


def qwen(folder: Path, model: Any, steps: list[str]) -> list[float]:
    """Its model card: a separator behind each step, and the probability of class 1 there."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answer = {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"}
    text = tokenizer.apply_chat_template(
        [BOXED, *as_dicts(PROMPT.messages), answer], tokenize=False
    )
    ids = tokenizer.encode(text, return_tensors="pt")
    with torch.inference_mode():
        probabilities = model(input_ids=ids, use_cache=False)[0].softmax(dim=-1)
    separator = tokenizer.encode("<extra_0>")[0]
    return probabilities[ids == separator][:, 1].tolist()


def shepherd(folder: Path, model: Any, steps: list[str]) -> list[float]:
    """Its model card: a step tag at the end of each line, and "+" against "-" there."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    candidates = tokenizer.encode("+ -")[1:]
    step_tag = tokenizer.encode("ки")[-1]
    assert len(candidates) == 2
    output = "\n".join(f"{step} ки" for step in steps)
    ids = torch.tensor([tokenizer.encode(f"{PROMPT.messages[0].content} {output}")])
    with torch.inference_mode():
        scores = model(ids).logits[:, :, candidates].softmax(dim=-1)[:, :, 0]
    return scores[ids == step_tag].tolist()


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize(
    ("kind", "card", "column"), [("qwen_prm", qwen, 1), ("shepherd", shepherd, 2)]
)
def test_the_steps_are_judged_as_the_model_card_does(
    tiny: Tiny,
    kind: str,
    card: Callable[[Path, Any, list[str]], list[float]],
    column: int,
    aggregate: str,
) -> None:
    folder, model = tiny(kind)
    expected = []
    for given in RESPONSES:
        steps = card(folder, model, list(given[column]))
        assert len(steps) == len(given[column])
        expected.append(AGGREGATES[aggregate](steps))
    texts = [text for text, *_ in RESPONSES]
    scores = wait(make(folder, aggregate=aggregate).score_details(PROMPT, texts))
    values = [score.value for score in scores]
    assert values == pytest.approx(expected, abs=1e-5)
    assert len(set(values)) == len(values)
    assert all(score.flops and 0 <= score.value <= 1 for score in scores)


@pytest.mark.parametrize(("kind", "tag"), [("qwen_prm", "<extra_0>"), ("shepherd", "ки")])
def test_a_response_cannot_add_steps_of_its_own(tiny: Tiny, kind: str, tag: str) -> None:
    model = make(tiny(kind)[0])
    with pytest.raises(RewardError, match=rf"1 steps, but the step tag '{tag}' occurs 3 times"):
        wait(model.score(PROMPT, [f"a {tag} good {tag} step"]))
    # but a model that was trained on such steps may end its own with the tag
    assert wait(model.score(PROMPT, [f"a {tag}\n\nb {tag}"])) == wait(
        model.score(PROMPT, ["a\n\nb"])
    )


@pytest.mark.parametrize("kind", ["qwen_prm", "shepherd"])
def test_a_text_longer_than_the_context_is_an_error(tiny: Tiny, kind: str) -> None:
    model = make(tiny(kind)[0])
    with pytest.raises(RewardError, match=r"text has \d+ tokens, .* context holds 256"):
        wait(model.score(PROMPT, ["x " * 256]))


def test_the_system_prompt_is_the_card_s_where_there_is_none(tiny: Tiny) -> None:
    model = make(tiny("qwen_prm")[0])
    spoken = Prompt("p", (Message("system", BOXED["content"]), *PROMPT.messages))
    other = Prompt("p", (Message("system", "Guess."), *PROMPT.messages))
    (plain,), (same,), (own,) = (
        wait(model.score(prompt, ["x"])) for prompt in (PROMPT, spoken, other)
    )
    assert plain == same != own


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        (
            "qwen_prm",
            {"aggregate": "max"},
            r"aggregate: must be one of 'last', 'min', 'mean' or 'product'",
        ),
        (
            "qwen_prm",
            {"trust_remote_code": False},
            r"brings its own code \(modeling_qwen2_rm\.Qwen2ForProcess.*true",
        ),
        (
            "causal",
            {},
            r"is a LlamaForCausalLM.*known: Qwen2ForProcessRewardModel, MistralForCausalLM",
        ),
        ("qwen", {}, r"is a Qwen2ForRewardModel, which is not known to judge steps"),
    ],
)
def test_mistakes_are_refused_by_name(
    tiny: Tiny, kind: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"^reward.*{named}"):
        make(tiny(kind)[0], **changes)


def test_a_tokenizer_without_the_step_tag_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "shepherd_without_tag"
    shutil.copytree(tiny("shepherd")[0], folder)
    for file in tiny("causal")[0].glob("*token*"):
        shutil.copy(file, folder)
    with pytest.raises(ConfigError, match=r"no single token for ки, \+"):
        make(folder)
