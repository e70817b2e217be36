"""In-process reward models against a direct computation with transformers, one text at a time.

Small random models of the same architecture and interface replace weights that cannot be loaded
here (see tiny.py).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.conftest import CONTEXT, PAD, make_tokenizer
from tests.helpers import wait
from tests.rewards import tiny
from toa_trl.agents import make_agent
from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.types import Message, Prompt, Sampling, as_dicts

TEXTS = [
    "",
    "x",
    "a much longer answer, with 1 + 1 = 2",
    "4",
    "Zoë 🧮",
    "a much longer answer, with 1 + 1 = 3",
]
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
    return tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")[
        "input_ids"
    ]


def raw_score(model: Any, ids: torch.Tensor, position: int = -1) -> float:
    """Of the head on the hidden state: no question of padding arises."""
    with torch.inference_mode():
        return float(model.score(model.model(input_ids=ids).last_hidden_state[0, position]))


in_process = pytest.mark.parametrize(
    ("kind", "variant"), [("classifier", "classifier"), ("likelihood", "causal")]
)


@pytest.mark.parametrize("variant", ["classifier", "classifier_pad_is_eos", "classifier_no_pad"])
def test_the_classifier_is_the_raw_logit_of_the_last_token_that_is_no_padding(
    request: pytest.FixtureRequest, variant: str
) -> None:
    folder: Path = request.getfixturevalue(variant)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    # padding of the training, that is: a text that ends with it was read before
    last = -2 if model.config.pad_token_id == model.config.eos_token_id else -1
    expected = [raw_score(model, ids_of(folder, text), last) for text in TEXTS]
    assert len({round(value, 4) for value in expected}) == len(TEXTS)
    assert together(make("classifier", folder), TEXTS) == pytest.approx(expected, abs=1e-5)


def test_the_classifier_knows_what_a_score_cost(classifier: Path) -> None:
    short, long = wait(make("classifier", classifier).score_details(PROMPT, ["x", "x" * 50]))
    assert 0 < short.flops < long.flops  # type: ignore[operator]


def test_a_batch_may_hold_every_token_of_a_small_vocabulary(classifier: Path) -> None:
    model = make("classifier", classifier)
    everything = list(range(model._model.config.vocab_size))  # type: ignore[attr-defined]
    texts = [[*everything, 1], [7, 8, 9, 1]]
    texts += [[*text[:-1], end] for text in texts for end in (0, 2, 3)]  # whatever token ends them
    network = model._model  # type: ignore[attr-defined]
    expected = [raw_score(network, torch.tensor([text])) for text in texts]
    values = model._run(texts)  # type: ignore[attr-defined]
    assert values == pytest.approx(expected, abs=1e-5)


def test_a_model_may_be_spread_over_all_devices(classifier: Path) -> None:
    spread = make_reward({"kind": "classifier", "model": str(classifier), "device": "auto"})
    one = make("classifier", classifier)
    assert together(spread, TEXTS) == pytest.approx(together(one, TEXTS), abs=1e-5)


@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ("classifier_two_labels", "2 labels"),
        ("classifier_no_template", "no chat template"),
        ("causal", "no weights for score"),
        ("no_weights", "no model could be loaded"),
    ],
)
def test_a_model_that_is_no_reward_model_is_refused(
    request: pytest.FixtureRequest, variant: str, named: str
) -> None:
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
        # and the end of the turn
        num_response = len(AutoTokenizer.from_pretrained(folder)(text)["input_ids"]) + 1
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
def test_mistakes_of_the_likelihood_are_refused_by_name(
    causal: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^reward.*({named})"):
        make("likelihood", causal, **changes)


def test_a_base_model_without_template_cannot_judge(causal_no_template: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward 'likelihood'.*no chat template"):
        make("likelihood", causal_no_template)


@in_process
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


@in_process
def test_a_nan_of_the_model_is_an_error(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, variant: str
) -> None:
    model = make(kind, request.getfixturevalue(variant))
    with torch.no_grad():
        next(iter(model._model.parameters())).fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match="nan"):
        wait(model.score(PROMPT, ["x"]))


@pytest.mark.parametrize("kind", ["classifier", "gemma2"])
def test_a_classifier_scores_as_before_it_was_saved(tmp_path: Path, kind: str) -> None:
    """Skywork-Reward is a Llama or a Gemma 2 with one label."""
    model = tiny.build(kind, tmp_path)
    expected = [raw_score(model, ids_of(tmp_path, text)) for text in TEXTS]
    assert together(make("classifier", tmp_path), TEXTS) == pytest.approx(expected, abs=1e-5)


@in_process
def test_a_text_longer_than_the_context_is_an_error(
    request: pytest.FixtureRequest, kind: str, variant: str
) -> None:
    folder = request.getfixturevalue(variant)
    model = make(kind, folder)
    room = CONTEXT - ids_of(folder, "").shape[1]
    assert len(wait(model.score(PROMPT, ["x" * room]))) == 1
    with pytest.raises(RewardError, match=r"text has 257 tokens, .* context holds 256"):
        wait(model.score(PROMPT, ["x" * (room + 1)]))


# the others are classifiers
KINDS = {"ultrarm": "ultrarm", "causal": "likelihood"}
KINDS |= dict.fromkeys(("shepherd", "qwen_prm"), "process")
LETTERS = st.one_of(
    st.sampled_from(["a", "\n", "\n\n", " ", "1 + 1", "Zoë", "<|end|>", PAD]), st.characters()
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RewardModel]:
    """The reward model of one of tiny.KINDS, by padding token and padding side of its tokenizer."""

    @cache
    def made(kind: str, pad: str | None, side: str) -> RewardModel:
        folder = tmp_path_factory.mktemp("tiny") / kind
        tiny.build(kind, folder, pad=pad, padding_side=side, num_positions=1024)
        trust = {"trust_remote_code": True} if kind in tiny.OWN else {}
        return make(KINDS.get(kind, "classifier"), folder, **trust)

    return made


@pytest.mark.parametrize(
    ("kind", "pad", "side"),
    [
        each
        for each in product(tiny.KINDS, [PAD, None], ["left", "right"])
        if each[1] or each[2] == "left"
    ],
)
def test_a_batch_scores_as_its_texts_do_alone(
    models: Callable[..., RewardModel], kind: str, pad: str | None, side: str
) -> None:
    """In float32, to 1e-5, for any texts, order, batch size and padding of the tokenizer."""
    model = models(kind, pad, side)
    queue = model._queue  # type: ignore[attr-defined]

    @settings(max_examples=8)
    @given(
        st.lists(st.lists(LETTERS, max_size=20).map("".join), min_size=2, max_size=12, unique=True),
        st.randoms(use_true_random=False),
        st.integers(2, 12),
        st.sampled_from([64, 256, 32_768]),
    )
    def check(texts: list[str], random: Any, size: int, num_tokens: int) -> None:
        queue._max_size, queue._max_tokens = 1, None
        alone = dict(zip(texts, together(model, texts), strict=True))
        random.shuffle(texts)
        queue._max_size, queue._max_tokens = size, num_tokens
        assert together(model, texts) == pytest.approx([alone[text] for text in texts], abs=1e-5)

    check()


@pytest.mark.parametrize("kind", ["classifier", "causal", "shepherd", "ultrarm"])
def test_a_batch_is_as_large_as_the_entry_allows(kind: str, tmp_path: Path) -> None:
    tiny.build(kind, tmp_path, num_positions=1024)

    def batches(**limits: int) -> list[tuple[int, int]]:
        """Return the number of texts of each batch, and the length of the first."""
        model = make(KINDS.get(kind, kind), tmp_path, **limits)
        queue = model._queue  # type: ignore[attr-defined]
        seen, run = list[tuple[int, int]](), queue._run

        def run_seen(texts: list[Any]) -> Any:
            seen.append((len(texts), queue._length(texts[0])))
            return run(texts)

        queue._run = run_seen
        together(model, [f"{digit} + 1" for digit in range(6)])  # of one length
        return seen

    ((size, length),) = batches(max_batch_size=6)
    assert size == 6
    assert [size for size, _ in batches(max_batch_size=4)] == [4, 2]
    assert [size for size, _ in batches(max_batch_tokens=3 * length + 1)] == [3, 3]


def adapter(base: Path, folder: Path, task: str, **options: Any) -> Any:
    """Save a LoRA adapter on a base, as TRL's trainers do, and return the unsaved model."""
    auto_class = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    torch.manual_seed(1)
    model = auto_class.from_pretrained(base, **options)
    model = get_peft_model(
        model, LoraConfig(task_type=task, r=4, init_lora_weights=False, target_modules=["q_proj"])
    )
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("own_tokenizer", [False, True])
def test_an_adapter_of_a_classifier_is_loaded_on_its_base_with_its_score_head(
    causal: Path, tmp_path: Path, own_tokenizer: bool
) -> None:
    model = adapter(causal, tmp_path, "SEQ_CLS", num_labels=1)
    expected = [raw_score(model.base_model.model, ids_of(causal, text)) for text in TEXTS]
    if own_tokenizer:
        make_tokenizer().save_pretrained(tmp_path)
    assert together(make("classifier", tmp_path), TEXTS) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_of_a_language_model_is_loaded_on_its_base(causal: Path, tmp_path: Path) -> None:
    model = adapter(causal, tmp_path, "CAUSAL_LM")
    ids = ids_of(causal, "4")
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0].log_softmax(dim=-1)
    expected = sum(
        float(logits[at - 1, ids[0, at]]) for at in range(ids.shape[1] - 2, ids.shape[1])
    )
    (score,) = wait(make("likelihood", tmp_path, aggregate="sum").score(PROMPT, ["4"]))
    assert score == pytest.approx(expected, abs=1e-4)
    assert wait(make("likelihood", causal, aggregate="sum").score(PROMPT, ["4"]))[
        0
    ] != pytest.approx(score, abs=1e-3)
    agents = [
        make_agent({"name": "a", "engine": "transformers", "model": str(folder), "device": "cpu"})
        for folder in (tmp_path, causal)
    ]
    adapted, plain = (
        wait(
            agent.generate(PROMPT.messages, sampling=Sampling(temperature=0, max_tokens=8), seed=0)
        ).text
        for agent in agents
    )
    assert adapted != plain


def test_folders_without_a_model_say_what_is_there_and_what_was_looked_for(
    causal: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint-100").mkdir()
    with pytest.raises(
        ConfigError, match=r"neither config\.json nor adapter_config\.json; it holds checkpoint-100"
    ):
        make("classifier", tmp_path)
    with pytest.raises(ConfigError, match=r"it holds nothing"):
        make_agent(
            {
                "name": "a",
                "engine": "transformers",
                "model": str(tmp_path / "checkpoint-100"),
                "device": "cpu",
            }
        )
    base = tmp_path / "base"
    shutil.copytree(causal, base)
    adapter(base, tmp_path / "adapter", "SEQ_CLS", num_labels=1)
    shutil.rmtree(base)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/adapter', an adapter on the base '{base}'"):
        make("classifier", tmp_path / "adapter")


def test_an_adapter_without_a_score_head_is_no_reward_model(causal: Path, tmp_path: Path) -> None:
    adapter(causal, tmp_path / "causal", "CAUSAL_LM")
    with pytest.raises(ConfigError, match=r"has no weights for score\.weight"):
        make("classifier", tmp_path / "causal")
    adapter(causal, tmp_path / "labels", "SEQ_CLS", num_labels=2)
    with pytest.raises(ConfigError, match=r"adapter on the base.*size"):
        make("classifier", tmp_path / "labels")
