"""Reward models over HTTP: what they ask, and every way in which an answer can be no score."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import toa_trl.models.endpoints.client
from tests.families import make_family, save_family_model
from tests.helpers import closed, wait
from tests.server import serving
from toa_trl.errors import ConfigError, RewardError, Unavailable
from toa_trl.rewards import make_reward
from toa_trl.rewards.spending import listening
from toa_trl.types import Message, Prompt, Spending
from toa_trl.utils.aio import gather_or_cancel

PROMPT = Prompt("p", (Message("system", "Be kind."), Message("user", "How many?")), {"answer": 3})
ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How many?"}]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toa_trl.models.endpoints.client, "FIRST_PAUSE_S", 0.001)


async def answered(
    entry: dict[str, Any], answers: list[Any], texts: list[str]
) -> tuple[Any, list[Any]]:
    """Return the scores or the error for a server's successive answers, and the requests."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(await request.json())
        given = answers.pop(0) if len(answers) > 1 else answers[0]
        return web.Response(text=given) if isinstance(given, str) else web.json_response(given)

    app = web.Application()
    app.router.add_post("/classify", answer)
    app.router.add_post("/score", answer)
    async with TestServer(app) as server:
        key, path = ("base_url", "/v1/") if entry["kind"] == "vllm" else ("url", "/score")
        async with aclosing(make_reward({**entry, key: str(server.make_url(path))})) as model:
            try:
                return await model.score(PROMPT, texts), asked
            except RewardError as error:
                return error, asked


VLLM: dict[str, Any] = {"kind": "vllm", "model": "m"}
HTTP: dict[str, Any] = {"kind": "http"}


def logit(value: Any) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [{"index": 0, "label": "LABEL_0", "probs": [value], "num_classes": 1}],
    }


def test_vllm_is_asked_for_the_raw_logit_of_the_conversation() -> None:
    scores, asked = wait(answered(VLLM, [logit(-2.5)], ["Three."]))
    assert scores == [-2.5]
    messages = [*ASKED, {"role": "assistant", "content": "Three."}]
    assert asked == [{"model": "m", "messages": messages, "use_activation": False}]


def test_vllm_is_sent_what_the_tokenizer_of_a_folder_needs(tmp_path: Path) -> None:
    """Folded system messages, and token ids where the last token is not the one to be read."""
    folded = "Be kind.\n\nHow many?"
    gemma = save_family_model(tmp_path / "gemma", make_family("gemma"), labels=1)
    _, asked = wait(answered({**VLLM, "model": str(gemma)}, [logit(0.0)], ["Three."]))
    answer = {"role": "assistant", "content": "Three."}
    assert asked[0]["messages"] == [{"role": "user", "content": folded}, answer]
    tokenizer = make_family("mistral", pad="</s>")
    mistral = save_family_model(tmp_path / "mistral", tokenizer, labels=1)
    _, asked = wait(answered({**VLLM, "tokenizer": str(mistral)}, [logit(0.0)], ["Three."]))
    assert asked[0].keys() == {"model", "input", "use_activation"}
    assert tokenizer.decode(asked[0]["input"]) == f"<s>[INST] {folded} [/INST]Three."


async def checked(root: Any, entry: dict[str, Any]) -> list[Any]:
    """Return what is asked for a text, once a server has listed the root of its model."""
    asked = []

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", **({"root": root} if root else {})}]})

    async def classify(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response(logit(0.0))

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/classify", classify)
    async with TestServer(app) as server:
        where = {"base_url": str(server.make_url("/v1"))}
        async with aclosing(make_reward({**VLLM, **entry, **where})) as model:
            await model.check()
            await model.score(PROMPT, ["Three."])
    return asked


def test_the_tokenizer_of_the_model_that_a_server_lists_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_family("mistral", pad="</s>")
    mistral = str(save_family_model(tmp_path / "mistral", tokenizer, labels=1))
    (body,) = wait(checked(mistral, {}))
    assert tokenizer.decode(body["input"]).endswith("[/INST]Three.")
    assert not caplog.records
    for root in (None, str(tmp_path / "elsewhere"), "no/such-model"):
        caplog.clear()
        (body,) = wait(checked(root, {}))
        assert "messages" in body
        (warning,) = [record.getMessage() for record in caplog.records]
        assert "reward 'vllm': the tokenizer of 'm' is not known" in warning
        assert "`tokenizer`" in warning
    caplog.clear()
    wait(checked(None, {"tokenizer": mistral}))
    assert not caplog.records


def test_the_contract() -> None:
    scores, asked = wait(answered(HTTP, [{"scores": [1, -0.5]}], ["Three.", "Four."]))
    assert scores == [1.0, -0.5]
    inputs = [
        {"prompt": ASKED, "response": text, "metadata": {"answer": 3}}
        for text in ("Three.", "Four.")
    ]
    assert asked == [{"inputs": inputs}]


MODEL_PRICE = {"prompt": 100.0}  # per million tokens
ESTIMATED = -(-len("Be kind.\nHow many?\nThree.") // 4)  # tokens of the conversation


def spent_on(entry: dict[str, Any], answer: dict[str, Any], texts: list[str]) -> Spending:
    total = Spending()

    def add(spent: Spending) -> None:
        nonlocal total
        total += spent

    with listening(add):
        wait(answered({**entry, "price": MODEL_PRICE}, [answer], texts))
    return total


@pytest.mark.parametrize(
    ("usage", "num_tokens", "num_estimated"),
    [
        ({"prompt_tokens": 12, "total_tokens": 12}, 12, 0),
        ({"prompt_tokens": -1}, ESTIMATED, ESTIMATED),
        (None, ESTIMATED, ESTIMATED),
        ("none", ESTIMATED, ESTIMATED),
    ],
)
@pytest.mark.parametrize("entry", [VLLM, HTTP], ids=["vllm", "http"])
def test_tokens_are_counted_and_have_a_price(
    entry: dict[str, Any], usage: Any, num_tokens: int, num_estimated: int
) -> None:
    answer = {**(logit(0.5) if entry is VLLM else {"scores": [0.5]}), "usage": usage}
    spent = spent_on(entry, answer, ["Three."])
    assert (spent.tokens, spent.num_estimated) == (num_tokens, num_estimated)
    assert spent.cost == pytest.approx(num_tokens / 10_000)


def test_a_scorer_without_a_model_reports_that_it_spends_nothing() -> None:
    answer = {"scores": [0.5], "usage": {"prompt_tokens": 0}}
    assert spent_on(HTTP, answer, ["Three."]) == Spending()


def test_tokens_of_a_known_tokenizer_are_no_estimate(tmp_path: Path) -> None:
    tokenizer = make_family("gemma")
    folder = save_family_model(tmp_path / "gemma", tokenizer, labels=1)
    folded = [
        {"role": "user", "content": "Be kind.\n\nHow many?"},
        {"role": "assistant", "content": "Three."},
    ]
    num_tokens = len(tokenizer.apply_chat_template(folded, return_dict=True)["input_ids"])
    spent = spent_on({**VLLM, "tokenizer": str(folder)}, logit(0.5), ["Three."])
    assert (spent.tokens, spent.num_estimated) == (num_tokens, 0)


NO_SCORE = {
    "NaN": (logit(float("nan")), {"scores": [float("nan")]}),
    "infinity": ('{"data": [{"probs": [Infinity]}]}', '{"scores": [-Infinity]}'),
    "missing": ({"data": [{"index": 0}]}, {"scores": [None]}),
    "none": ({"data": []}, {"scores": []}),
    "too many": ({"data": [{"probs": [0.1, 0.9]}]}, {"scores": [0.1, 0.9]}),
    "a text": (logit("high"), {"scores": ["high"]}),
    "a truth": ({"data": True}, {"scores": True}),
    "no object": ([1.0], [1.0]),
    "no JSON": ("{", "{"),
}


@pytest.mark.parametrize("case", NO_SCORE)
@pytest.mark.parametrize("entry", [VLLM, HTTP], ids=["vllm", "http"])
def test_what_is_no_score_is_retried_and_then_a_failure(entry: dict[str, Any], case: str) -> None:
    bad, good = NO_SCORE[case][entry is HTTP], [logit(0.25), {"scores": [0.25]}][entry is HTTP]
    scores, asked = wait(answered(entry, [bad, bad, good], ["Three."]))
    assert scores == [0.25]
    assert len(asked) == 3
    error, asked = wait(answered({**entry, "max_attempts": 2}, [bad], ["Three."]))
    assert isinstance(error, RewardError)
    assert f"reward {entry['kind']!r}" in str(error)
    assert len(asked) == 2


def test_one_missing_score_costs_the_others_of_its_batch_nothing() -> None:
    answers = [{"scores": [0.1, None, 0.3]}, {"scores": [0.2]}]
    scores, asked = wait(answered(HTTP, answers, ["a", "b", "c"]))
    assert scores == [0.1, 0.2, 0.3]
    assert [[each["response"] for each in body["inputs"]] for body in asked] == [
        ["a", "b", "c"],
        ["b"],
    ]


def test_responses_of_many_prompts_share_requests() -> None:
    with serving(latency_s=(0.02, 0.02)) as server:
        model = make_reward(
            {
                "kind": "http",
                "url": f"{server.root}/score",
                "max_concurrency": 2,
                "max_batch_size": 10,
            }
        )

        asked = (model.score(PROMPT, [str(i)]) for i in range(100))
        scores = closed(model, gather_or_cancel(asked))
        assert len({score for (score,) in scores}) == 100
        stats = server.stats()
        assert stats["requests"]["POST /score"] <= 12
        assert stats["max_busy"] == 2


@pytest.mark.parametrize("kind", ["vllm", "http"])
def test_a_server_that_is_gone_is_waited_for(kind: str) -> None:
    with serving() as server:
        where = {
            "vllm": {"base_url": server.url, "model": "m"},
            "http": {"url": f"{server.root}/score"},
        }[kind]

        async def restarted() -> Any:
            model: Any = make_reward({"kind": kind, **where})
            first = await model.score(PROMPT, ["x"])
            server.kill()
            waiting = asyncio.create_task(model.score(PROMPT, ["x"]))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            await asyncio.to_thread(server.restart)
            assert await waiting == first
            server.kill()
            await model.aclose()
            model = make_reward({"kind": kind, "wait_s": 0.1, **where})
            with pytest.raises(Unavailable, match=str(server.port)):
                await model.score(PROMPT, ["x"])
            with pytest.raises(ConfigError, match=rf"{server.port}.* cannot be reached"):
                await model.check()
            await model.aclose()

        wait(restarted())


def test_one_input_that_the_scorer_refuses_fails_alone() -> None:
    async def answer(request: web.Request) -> web.Response:
        texts = [each["response"] for each in (await request.json())["inputs"]]
        return web.json_response(
            {"scores": [0.5] * len(texts)}, status=400 if "poison" in texts else 200
        )

    async def run() -> list[Any]:
        app = web.Application()
        app.router.add_post("/score", answer)
        async with TestServer(app) as server:
            model: Any = make_reward({"kind": "http", "url": str(server.make_url("/score"))})
            asked = (model.score(PROMPT, [text]) for text in ["a", "b", "poison", *"cdefgh"])
            scores = await asyncio.gather(*asked, return_exceptions=True)
            await model.aclose()
        return scores

    failed = [isinstance(score, RewardError) for score in wait(run())]
    assert failed == [False, False, True, *[False] * 6]
