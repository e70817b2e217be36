"""The classifier and the likelihood against a direct computation with transformers, one text at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.helpers import wait
from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.types import Message, Prompt, Score, as_dicts

TEXTS = ["", "x", "a much longer answer, with 1 + 1 = 2", "4", "Zoë 🧮", "a much longer answer, with 1 + 1 = 3"]
PROMPT = Prompt("p", (Message("user", "What is 1 + 1?"),))


def make(kind: str, model: Path, **entry: Any) -> RewardModel:
    return make_reward({"kind": kind, "model": str(model), "device": "cpu", **entry})


def together(model: RewardModel, texts: list[str]) -> list[float]:
    async def score() -> list[list[float]]:
        return await asyncio.gather(*(model.score(PROMPT, [text]) for text in texts))

    return [score for (score,) in wait(score())]


def ids_of(model: Path, text: str) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [*as_dicts(PROMPT.messages), {"role": "assistant", "content": text}]
    return tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("variant", ["classifier", "classifier_pad_is_eos", "classifier_no_pad"])
def test_the_classifier_is_the_raw_logit_of_the_last_token(request: pytest.FixtureRequest, variant: str) -> None:
    folder: Path = request.getfixturevalue(variant)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for text in TEXTS:
        with torch.inference_mode():  # head on the last hidden state: no question of padding arises
            hidden = model.model(input_ids=ids_of(folder, text)).last_hidden_state[0, -1]
            expected.append(float(model.score(hidden)))
    assert len({round(value, 4) for value in expected}) == len(TEXTS)
    assert together(make("classifier", folder), TEXTS) == pytest.approx(expected, abs=1e-5)


def test_the_classifier_knows_what_a_score_cost(classifier: Path) -> None:
    short, long = wait(make("classifier", classifier).score(PROMPT, ["x", "x" * 50]))
    assert isinstance(short, Score)
    assert isinstance(long, Score)
    assert 0 < short.flops < long.flops  # type: ignore[operator]


def test_a_batch_may_hold_every_token_of_a_small_vocabulary(classifier: Path) -> None:
    model = make("classifier", classifier)
    everything = list(range(model._model.config.vocab_size))  # type: ignore[attr-defined]
    texts = [[*everything, 1], [7, 8, 9, 1]]
    texts += [[*text[:-1], end] for text in texts for end in (0, 2, 3)]  # whatever token ends them
    network, expected = model._model, []  # type: ignore[attr-defined]
    for text in texts:
        with torch.inference_mode():
            hidden = network.model(input_ids=torch.tensor([text])).last_hidden_state[0, -1]
            expected.append(float(network.score(hidden)))
    assert model._run(texts) == pytest.approx(expected, abs=1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ("classifier_two_labels", "2 labels"),
        ("classifier_no_template", "no chat template"),
        ("causal", "no weights for score"),
        ("no_weights", "no model could be loaded"),
    ],
)
def test_a_model_that_is_no_reward_model_is_refused(request: pytest.FixtureRequest, variant: str, named: str) -> None:
    folder: Path = request.getfixturevalue(variant)
    with pytest.raises(ConfigError, match=rf"reward 'classifier'.*{named}"):
        make("classifier", folder)


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
@pytest.mark.parametrize("floor", [None, -6.0])
@pytest.mark.parametrize("variant", ["causal", "causal_no_pad"])
def test_the_likelihood_is_that_of_the_response_and_its_end(
    request: pytest.FixtureRequest, aggregate: str, floor: float | None, variant: str
) -> None:
    folder: Path = request.getfixturevalue(variant)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for text in TEXTS:
        ids = ids_of(folder, text)
        num_response = len(AutoTokenizer.from_pretrained(folder)(text)["input_ids"]) + 1  # and the end of the turn
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0]
        values = []
        for at in range(ids.shape[1] - num_response, ids.shape[1]):
            value = float(logits[at - 1, ids[0, at]] - logits[at - 1].logsumexp(0))
            values.append(value if floor is None else max(value, floor))
        expected.append(sum(values) / (len(values) if aggregate == "mean" else 1))
    entry = {"aggregate": aggregate, **({} if floor is None else {"floor": floor})}
    assert together(make("likelihood", folder, **entry), TEXTS) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"aggregate": "median"}, "aggregate"),
        ({"floor": 0.0}, "floor"),
        ({"floor": 2.0}, "floor"),
        ({"floor": float("nan")}, "floor"),
    ],
)
def test_mistakes_of_the_likelihood_are_refused_by_name(causal: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward 'likelihood'.*({named})"):
        make("likelihood", causal, **changes)


def test_a_base_model_without_template_cannot_judge(causal_no_template: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward 'likelihood'.*no chat template"):
        make("likelihood", causal_no_template)


@pytest.mark.parametrize(("kind", "variant"), [("classifier", "classifier"), ("likelihood", "causal")])
def test_a_model_that_fails_is_an_error_and_no_number(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, variant: str
) -> None:
    model = make(kind, request.getfixturevalue(variant))

    def out_of_memory(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model._model, "forward", out_of_memory)  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match="out of memory"):
        wait(model.score(PROMPT, ["x"]))
    monkeypatch.undo()
    assert len(wait(model.score(PROMPT, ["x"]))) == 1  # and the queue goes on


@pytest.mark.parametrize(("kind", "variant"), [("classifier", "classifier"), ("likelihood", "causal")])
def test_a_nan_of_the_model_is_an_error(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, variant: str
) -> None:
    model = make(kind, request.getfixturevalue(variant))
    with torch.no_grad():
        next(iter(model._model.parameters())).fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match="nan"):
        wait(model.score(PROMPT, ["x"]))
