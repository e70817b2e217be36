from __future__ import annotations

import asyncio
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.conftest import CONTEXT, END
from tests.families import make_family, save_family_model
from tests.helpers import wait
from toa_trl.agents import make_agent
from toa_trl.agents.generation import _Request, _SeededSampling
from toa_trl.agents.transformers import TransformersAgent
from toa_trl.errors import AgentError, ConfigError
from toa_trl.types import Completion, Message, Sampling, as_dicts

Ask = tuple[str, Sampling, int]  # prompt, sampling, seed


def agent(model: Path, **entry: Any) -> TransformersAgent:
    made = make_agent(
        {"name": "t", "engine": "transformers", "model": str(model), "device": "cpu", **entry}
    )
    assert isinstance(made, TransformersAgent)
    return made


def ask(it: TransformersAgent, *asks: Ask) -> list[Completion]:
    async def together() -> list[Completion]:
        return await asyncio.gather(
            *(
                it.generate([Message("user", text)], sampling=sampling, seed=seed)
                for text, sampling, seed in asks
            )
        )

    return wait(together())


def logits_after(model: Path, text: str) -> torch.Tensor:
    """Of the first token of the answer, computed directly."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.apply_chat_template(
        as_dicts([Message("user", text)]),
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        return loaded(**ids).logits[0, -1]


def mixed(count: int) -> list[Ask]:
    """Prompts of many lengths, each with its own way to sample."""
    ways = (
        Sampling(0.7, 1.0, 24),
        Sampling(0.0, 1.0, 9),
        Sampling(1.3, 0.6, 30),
        Sampling(1.0, 1.0, 1),
        Sampling(1.0, 0.9, 40, ("e", "zz")),
        Sampling(1.0, 1.0, 40, ("a", "\n", "0")),
    )
    return [("word " * (i % 7) + "x" * (i % 11), ways[i % len(ways)], i) for i in range(count)]


@pytest.mark.parametrize("variant", ["causal", "causal_no_pad"])
def test_a_play_gives_the_same_completion_alone_and_in_a_batch(
    request: pytest.FixtureRequest, variant: str
) -> None:
    model: Path = request.getfixturevalue(variant)
    asks = mixed(32)
    batch = ask(agent(model), *asks)
    alone = [ask(agent(model, max_batch_size=1), each)[0] for each in asks]
    assert batch == alone  # texts, finish reasons, token counts and FLOPs
    assert {done.finish_reason for done in batch} == {"stop", "length"}


def test_batches_are_split_at_their_limit(causal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, asks = list[int](), [("same", Sampling(1.0, 1.0, 3), seed) for seed in range(6)]

    def answers(**limits: int) -> list[Completion]:
        sizes.clear()
        it = agent(causal, **limits)
        queue = it._engine._queue
        run: Any = queue._run

        def run_seen(requests: list[_Request]) -> Any:
            sizes.append(len(requests))
            return run(requests)

        monkeypatch.setattr(queue, "_run", run_seen)
        return ask(it, *asks)

    together = answers()
    assert sizes == [6]
    assert answers(max_batch_size=4) == together
    assert sizes == [4, 2]
    assert answers(max_batch_tokens=3 * together[0].prompt_tokens + 1) == together
    assert sizes == [3, 3]
    assert ask(agent(causal, max_batch_size=5), *mixed(18)) == ask(agent(causal), *mixed(18))


def test_greedy_is_greedy(causal: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(causal)
    one, two = ask(agent(causal), *(("abc", Sampling(0.0, 1.0, 12), seed) for seed in (1, 2)))
    assert one == two
    model = AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float32).eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "abc"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**ids, do_sample=False, max_new_tokens=12)
    new = output[0, ids["input_ids"].shape[1] :]
    assert one.text == tokenizer.decode(new, skip_special_tokens=True)
    assert one.completion_tokens == len(new)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8)])
def test_the_first_token_is_distributed_as_the_model_says(
    causal: Path, temperature: float, top_p: float
) -> None:
    num, tokenizer = 3_000, AutoTokenizer.from_pretrained(causal)
    expected = torch.softmax(logits_after(causal, "Hello") / temperature, dim=-1)
    ordered, order = expected.sort(descending=True)
    if top_p < 1:
        kept = int((ordered.cumsum(0) < top_p).sum()) + 1  # the smallest set that reaches top_p
        allowed = set(order[:kept].tolist())
        expected = torch.zeros_like(expected).scatter(0, order[:kept], ordered[:kept])
        expected /= expected.sum()
    probability = Counter[str]()
    for token, p in enumerate(expected.tolist()):
        probability[tokenizer.decode([token], skip_special_tokens=True)] += p
    done = ask(
        agent(causal), *(("Hello", Sampling(temperature, top_p, 1), seed) for seed in range(num))
    )
    drawn = Counter(each.text for each in done)
    if top_p < 1:
        assert drawn.keys() <= {
            tokenizer.decode([token], skip_special_tokens=True) for token in allowed
        }
    bins = [text for text, p in probability.items() if p * num >= 20]
    assert len(bins) >= 5
    observed = [*(drawn[text] for text in bins), num - sum(drawn[text] for text in bins)]
    wanted = [
        *(probability[text] * num for text in bins),
        num * (1 - sum(probability[text] for text in bins)),
    ]
    chi2 = sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True) if w > 1)
    free = len(bins)
    # about four standard deviations; the seeds are fixed
    assert chi2 < free + 4 * math.sqrt(2 * free)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0, 1.0), [0.05, 0.5, 0.2, 0.1, 0.1, 0.05]),
        # the smallest set that reaches top_p
        (Sampling(1.0, 0.65), [0.0, 5 / 7, 2 / 7, 0.0, 0.0, 0.0]),
        (Sampling(1.0, 0.1), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
        # squared
        (Sampling(0.5, 1.0), [p / 0.315 for p in (0.0025, 0.25, 0.04, 0.01, 0.01, 0.0025)]),
        (Sampling(0.0, 1.0), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_tokens_are_drawn_as_the_probabilities_say(
    sampling: Sampling, expected: list[float]
) -> None:
    num = 20_000
    draw = _SeededSampling(
        [_Request([1], sampling, 9, seed) for seed in range(num)], torch.device("cpu")
    )
    logits = torch.tensor([0.05, 0.5, 0.2, 0.1, 0.1, 0.05]).log() + 7.0
    for _ in range(2):  # the second token of a play is drawn anew
        tokens = draw(torch.empty(num, 0), logits.expand(num, -1)).argmax(dim=-1)
        shares = torch.bincount(tokens, minlength=6) / num
        for share, p in zip(shares.tolist(), expected, strict=True):
            assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / num) + 1e-9


def test_ends_at_eos_and_counts_it(build: Callable[..., Path]) -> None:
    model = build("short", seed=1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    done = ask(agent(model), *(("Hi", Sampling(1.0, 1.0, 60), seed) for seed in range(64)))
    ended = [each for each in done if each.finish_reason == "stop"]
    assert ended
    assert len(ended) < 64
    for each in done:
        assert END not in each.text
        if each.finish_reason == "length":
            assert each.completion_tokens == 60
        else:
            assert 1 <= each.completion_tokens <= 60
        # bytes that are no UTF-8 become one sign for several tokens
        assert len(tokenizer(each.text)["input_ids"]) <= each.completion_tokens * 3


def test_stop_texts_end_the_answer_and_are_left_out(causal: Path) -> None:
    free = ask(agent(causal), ("Hello", Sampling(1.0, 1.0, 40), 7))[0]
    stop = free.text[10:13]
    at = free.text.index(stop)
    done, other = ask(
        agent(causal),
        ("Hello", Sampling(1.0, 1.0, 40, ("never there", stop)), 7),
        ("Bye", Sampling(1.0, 1.0, 40), 8),
    )
    assert done.text == free.text[:at]
    assert done.finish_reason == "stop"
    assert done.completion_tokens < free.completion_tokens
    assert other == ask(agent(causal), ("Bye", Sampling(1.0, 1.0, 40), 8))[0]


def test_tokens_are_counted_with_the_template_and_the_system_prompt(causal: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(causal)
    plain, system = agent(causal), agent(causal, system_prompt="Be brief.")
    way = Sampling(1.0, 1.0, 5)
    (one,), (two,) = ask(plain, ("Hello", way, 0)), ask(system, ("Hello", way, 0))
    assert one.prompt_tokens == len("Hello") + 3  # role, end of turn, role
    assert two.prompt_tokens == one.prompt_tokens + len(tokenizer("Be brief.")["input_ids"]) + 2
    assert one.text != two.text
    assert one.flops is not None
    assert two.flops is not None
    assert one.flops < two.flops


def test_agents_of_one_model_share_its_weights_and_queue(causal: Path) -> None:
    one = agent(causal)
    two = agent(causal, name="u", system_prompt="Be brief.", sampling={"temperature": 0.1})
    assert one._engine is two._engine
    other = agent(causal, max_batch_size=3)
    assert other._engine is not one._engine


def test_shared_agents_answer_in_one_batch_as_they_do_alone(causal: Path) -> None:
    one = agent(causal)
    two = agent(causal, name="u", system_prompt="Be brief.", sampling={"temperature": 0.0})
    way, messages = Sampling(1.0, 1.0, 10), [Message("user", "Hi")]

    async def both() -> list[Completion]:
        return await asyncio.gather(
            *(each.generate(messages, sampling=way, seed=3) for each in (one, two))
        )

    assert wait(both()) == [*ask(one, ("Hi", way, 3)), *ask(two, ("Hi", way, 3))]


def test_a_prompt_that_fills_the_context_is_a_failure_of_its_play_alone(causal: Path) -> None:
    it, way = agent(causal), Sampling(1.0, 1.0, 50)

    async def both() -> list[Completion | BaseException]:
        asks = (
            it.generate([Message("user", text)], sampling=way, seed=0)
            for text in ("x" * CONTEXT, "x")
        )
        return await asyncio.gather(*asks, return_exceptions=True)

    long, short = wait(both())
    assert isinstance(long, AgentError)
    assert f"the context holds {CONTEXT}" in str(long)
    assert short == ask(it, ("x", way, 0))[0]


def test_an_answer_ends_where_the_context_ends(causal: Path) -> None:
    # in one batch with a short prompt that goes on for longer
    long, short = ask(
        agent(causal),
        ("x" * (CONTEXT - 8), Sampling(0.0, 1.0, 50), 0),
        ("x", Sampling(0.0, 1.0, 50), 0),
    )
    assert long.completion_tokens <= 5
    assert long.prompt_tokens == CONTEXT - 5
    assert short.completion_tokens == 50 or short.finish_reason == "stop"


@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ("causal_no_template", "no chat template"),
        ("no_weights", "no model could be loaded"),
        ("nowhere", "nowhere"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    request: pytest.FixtureRequest, variant: str, named: str
) -> None:
    model = Path("/nowhere") if variant == "nowhere" else request.getfixturevalue(variant)
    with pytest.raises(ConfigError, match=rf"agent 't'.*{named}") as raised:
        agent(model)
    assert "\n" not in str(raised.value)


def test_an_unknown_dtype_is_refused(causal: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent 't'.*float31"):
        agent(causal, dtype="float31")


def test_a_batch_that_fails_fails_its_plays(causal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = agent(causal, max_batch_size=7)

    def out_of_memory(**kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(it._engine._model, "generate", out_of_memory)
    with pytest.raises((AgentError, RuntimeError), match="out of memory"):
        ask(it, ("x", Sampling(1.0, 1.0, 5), 0))
    monkeypatch.undo()
    assert ask(it, ("x", Sampling(1.0, 1.0, 5), 0)) == ask(
        agent(causal), ("x", Sampling(1.0, 1.0, 5), 0)
    )


@pytest.mark.parametrize("family", ["gemma", "mistral"])
def test_a_template_without_a_system_role_answers_a_system_prompt(
    tmp_path: Path, family: str
) -> None:
    folder = save_family_model(tmp_path, make_family(family))
    greedy = Sampling(temperature=0, max_tokens=3)
    prompted = agent(folder, system_prompt="Be brief.")
    (done,) = ask(prompted, ("How many?", greedy, 0))
    (plain,) = ask(agent(folder), ("Be brief.\n\nHow many?", greedy, 0))
    assert done == plain


def test_the_generation_config_of_a_model_does_not_change_sampling(
    causal: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(causal, folder)
    config = GenerationConfig.from_pretrained(causal)
    config.update(repetition_penalty=5.0, no_repeat_ngram_size=2, top_k=1, do_sample=True)
    config.save_pretrained(folder)
    sampling = Sampling(temperature=1.0, max_tokens=24)
    asks = [("Go on: aaaaaaaaaa", sampling, seed) for seed in range(4)]
    assert ask(agent(folder), *asks) == ask(agent(causal), *asks)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_nan_are_an_error_and_no_text(causal: Path, temperature: float) -> None:
    it = agent(causal, dtype="float32", max_batch_size=7)  # weights of its own
    model = it._engine._model
    whole = model.forward

    def broken_for_b(input_ids: torch.Tensor, **inputs: Any) -> Any:
        output = whole(input_ids=input_ids, **inputs)
        if input_ids.shape[1] > 1:  # the prompts
            rows = (input_ids == it._engine._tokenizer.encode("b")[0]).any(dim=1)
            output.logits[rows] = float("nan")
        return output

    model.forward = broken_for_b
    sampling = Sampling(temperature=temperature, max_tokens=4)

    async def together() -> list[Completion | BaseException]:
        asks = [it.generate([Message("user", text)], sampling=sampling, seed=0) for text in "abc"]
        return await asyncio.gather(*asks, return_exceptions=True)

    a, b, c = wait(together())
    assert isinstance(a, Completion)
    assert isinstance(c, Completion)
    with pytest.raises(AgentError, match=r"agent 't': the model failed: .*NaN"):
        raise b  # type: ignore[misc]


def test_a_conversation_that_the_template_refuses_is_a_failed_play(tmp_path: Path) -> None:
    it = agent(save_family_model(tmp_path, make_family("mistral")))
    twice = [Message("user", "a"), Message("user", "b")]
    with pytest.raises(AgentError, match=r"agent .t.: the chat template refuses.*alternate"):
        wait(it.generate(twice, sampling=Sampling(max_tokens=3), seed=0))
