"""scripts/serve_comet.py with a fake model: the contract, missing scores, and shared batches.

With a real unbabel-comet: tests/integration/test_comet.py.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

import toa_trl.models.endpoints.client
from tests.helpers import wait
from toa_trl.errors import RewardError
from toa_trl.rewards import make_reward
from toa_trl.types import Message, Prompt

SCRIPT = Path(__file__).parents[2] / "scripts/serve_comet.py"
spec = importlib.util.spec_from_file_location("serve_comet", SCRIPT)
assert spec is not None
assert spec.loader is not None
serve_comet = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serve_comet)

Samples = list[dict[str, str]]
NEEDS, NEEDS_REFERENCE = ("src", "mt"), ("src", "mt", "ref")


def lengths(samples: Samples) -> list[float]:
    """A stand-in for the model."""
    return [len(sample["mt"]) / 10 for sample in samples]


@asynccontextmanager
async def serving(
    predict: Callable[[Samples], Any] = lengths, needs: tuple[str, ...] = NEEDS
) -> AsyncIterator[str]:
    """The server's URL."""
    async with TestServer(serve_comet.make_app("stand-in", predict, needs)) as server:
        yield str(server.make_url(""))


async def post(url: str, body: Any) -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/score", data=data) as response,
    ):
        return response.status, await response.text()


def given_as(response: str, **metadata: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": "Das Haus."}],
        "response": response,
        "metadata": metadata,
    }


async def scores(
    inputs: list[dict[str, Any]],
    predict: Callable[[Samples], Any] = lengths,
    needs: tuple[str, ...] = NEEDS,
) -> list[float | None]:
    async with serving(predict, needs) as url:
        status, text = await post(url, {"inputs": inputs})
    assert status == 200, text
    found = json.loads(text)["scores"]
    assert isinstance(found, list)
    return found


def test_what_the_model_is_given() -> None:
    asked: list[Samples] = []

    def predict(samples: Samples) -> list[float]:
        asked.append(samples)
        return lengths(samples)

    conversation = [
        {"role": "system", "content": "Translate."},
        {"role": "user", "content": "Der Baum."},
        {"role": "assistant", "content": "The tree."},
        {"role": "user", "content": "Das Haus."},
        {"role": "assistant", "content": "The"},
    ]
    inputs = [
        given_as("The house.", source="Ein Haus.", reference="A house.", source_language="German"),
        given_as("A house.", source=None),
        {"prompt": conversation, "response": "House."},
    ]
    assert wait(scores(inputs, predict)) == [1.0, 0.8, 0.6]
    assert asked == [
        [
            {"src": "Ein Haus.", "mt": "The house.", "ref": "A house."},
            {"src": "Das Haus.", "mt": "A house."},
            {"src": "Das Haus.", "mt": "House."},
        ]
    ]


@pytest.mark.parametrize(
    "bad",
    [
        given_as(""),
        given_as(" \n\t"),
        given_as("half \ud800"),
        given_as("A house.", source=""),
        given_as("A house.", source=42),
        {"prompt": [], "response": "A house.", "metadata": {}},
        {
            "prompt": [{"role": "system", "content": "Translate."}],
            "response": "A house.",
            "metadata": {},
        },
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}]}],
            "response": "A house.",
            "metadata": {},
        },
    ],
)
def test_where_there_is_nothing_to_score_there_is_no_score(bad: dict[str, Any]) -> None:
    assert wait(scores([given_as("A house."), bad, given_as("House.")])) == [0.8, None, 0.6]
    assert wait(scores([bad])) == [None]


def test_a_reference_that_is_needed_and_missing_is_no_score() -> None:
    inputs = [given_as("A house.", reference=text) for text in ("A house.", " ", None, 3)] + [
        given_as("House.")
    ]
    assert wait(scores(inputs, needs=NEEDS_REFERENCE)) == [0.8, None, None, None, None]
    assert wait(scores(inputs)) == [0.8, 0.8, 0.8, 0.8, 0.6]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf"), None])
def test_what_is_no_finite_number_is_null(score: float | None) -> None:
    assert wait(scores([given_as("a"), given_as("b")], lambda samples: [score, 0.5])) == [None, 0.5]


def test_it_is_there_at_its_root_and_where_the_client_looks() -> None:
    async def answers() -> list[int]:
        async with serving() as url, aiohttp.ClientSession() as session:
            reward = make_reward({"kind": "http", "url": f"{url}/score"})
            await reward.check()
            await reward.aclose()
            return [
                (await session.get(f"{url}{path}")).status for path in ("/", "/score", "/other")
            ]

    assert wait(answers()) == [200, 200, 404]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"[" * 100_000, "recursion"),
        ([], 'the body must be {"inputs": [...]}'),
        ({"input": []}, 'the body must be {"inputs": [...]}'),
        ({"inputs": {}}, 'the body must be {"inputs": [...]}'),
        ({"inputs": [given_as("a"), "b"]}, 'inputs[1]: "prompt" must be a list of messages'),
        (
            {"inputs": [{**given_as("a"), "prompt": "Das Haus."}]},
            'inputs[0]: "prompt" must be a list of messages',
        ),
        (
            {"inputs": [{**given_as("a"), "prompt": ["Das Haus."]}]},
            'inputs[0]: "prompt" must be a list of messages',
        ),
        ({"inputs": [{"prompt": []}]}, 'inputs[0]: "response" must be a text'),
        (
            {"inputs": [{**given_as("a"), "response": ["a"]}]},
            'inputs[0]: "response" must be a text',
        ),
        (
            {"inputs": [{**given_as("a"), "metadata": "none"}]},
            'inputs[0]: "metadata" must be an object',
        ),
    ],
)
def test_what_is_not_the_contract_is_refused_in_one_line(body: Any, said: str) -> None:
    async def answer() -> tuple[int, str]:
        async with serving() as url:
            return await post(url, body)

    status, text = wait(answer())
    assert status == 400
    assert said in text
    assert text.count("\n") == 1


def test_no_inputs_have_no_scores() -> None:
    assert wait(scores([])) == []


def test_what_is_asked_for_during_a_batch_is_the_next_one() -> None:
    go, sizes = threading.Event(), []

    def predict(samples: Samples) -> list[float]:
        sizes.append(len(samples))
        assert go.wait(60)
        return lengths(samples)

    async def ask() -> list[list[float]]:
        queue = serve_comet.Queue(predict)
        asked = [
            asyncio.create_task(queue.submit([{"mt": "x" * (i + 1)}] * (i + 1))) for i in range(5)
        ]
        while not sizes:
            await asyncio.sleep(0)
        asked += [asyncio.create_task(queue.submit([{"mt": "xx"}])) for _ in range(3)]
        asked[1].cancel()  # its asker is gone, and nobody else may notice
        await asyncio.sleep(0)
        go.set()
        return [await task for i, task in enumerate(asked) if i != 1]

    assert wait(ask()) == [[0.1], [0.3] * 3, [0.4] * 4, [0.5] * 5, [0.2], [0.2], [0.2]]
    assert sizes == [15, 3]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=8))
def test_every_request_gets_its_own_scores(requests: list[list[int]]) -> None:
    def predict(samples: Samples) -> list[float]:
        if any(sample["mt"] == "13" for sample in samples):
            raise RuntimeError("unlucky")
        return [float(sample["mt"]) for sample in samples]

    async def ask() -> list[Any]:
        queue = serve_comet.Queue(predict)
        asked = (queue.submit([{"mt": str(number)} for number in request]) for request in requests)
        return await asyncio.gather(*asked, return_exceptions=True)

    for request, answer in zip(requests, wait(ask()), strict=True):
        if 13 in request:
            assert isinstance(answer, RuntimeError), (
                "the others of its batch are no reason to hide it"
            )
        else:
            assert answer == request


def test_a_model_that_fails_is_a_failure_of_that_text_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toa_trl.models.endpoints.client, "FIRST_PAUSE_S", 0.001)

    def predict(samples: Samples) -> list[float]:
        if any("bad" in sample["mt"] for sample in samples):
            raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB.")
        return lengths(samples)

    async def ask() -> list[Any]:
        async with serving(predict) as url:
            assert await post(url, {"inputs": [given_as("bad")]}) == (
                500,
                "RuntimeError: CUDA out of memory.\n",
            )
            reward = make_reward({"kind": "http", "url": f"{url}/score", "max_attempts": 2})
            prompt = Prompt("p", (Message("user", "Das Haus."),))
            try:
                texts = ["good", "bad", "better"]
                asked = (reward.score(prompt, [text]) for text in texts)
                return await asyncio.gather(*asked, return_exceptions=True)
            finally:
                await reward.aclose()

    good, bad, better = wait(ask())
    assert (good, better) == ([0.4], [0.6])
    assert isinstance(bad, RewardError)
    assert "CUDA out of memory." in str(bad)


def test_the_checkpoint_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"exactly one file .*, not 0"):
        serve_comet.find_checkpoint(str(tmp_path))
    first = tmp_path / "checkpoints/model.ckpt"
    first.parent.mkdir()
    first.touch()
    assert (
        serve_comet.find_checkpoint(str(tmp_path))
        == serve_comet.find_checkpoint(str(first))
        == first
    )
    (tmp_path / "checkpoints/other.ckpt").touch()
    with pytest.raises(ValueError, match=r"exactly one file .*, not 2"):
        serve_comet.find_checkpoint(str(tmp_path))


def test_help_needs_no_model() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "wmt22-cometkiwi-da" in done.stdout
