"""The scripted server does what it says: other tests and the benchmarks rely on it."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from tests.server import Process, serving


def post(server: Process, path: str, body: Any, timeout: float = 30) -> Any:
    with urlopen(Request(server.root + path, json.dumps(body).encode()), timeout=timeout) as answer:
        return json.load(answer)


def chat(server: Process, seed: int = 0, timeout: float = 30, **changes: Any) -> Any:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "Why?"}],
        "seed": seed,
        **changes,
    }
    return post(server, "/v1/chat/completions", body, timeout)


def text(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def outcome(server: Process, seed: int) -> str:
    """How a request ended, in a word."""
    try:
        answer = chat(server, seed, timeout=2)
    except HTTPError as error:
        return f"{error.code}{'_after' if error.headers['Retry-After'] else ''}"
    except TimeoutError:
        return "stall"
    except HTTPException:
        return "reset"
    except ValueError:
        return "refuse_body"
    return "fine" if answer["choices"] else "empty"


def test_the_body_decides_the_answer() -> None:
    with serving(words=5, model=["m", "n"]) as server, serving(words=5) as other:
        answers = [text(chat(server, seed)) for seed in range(20)]
        assert answers == [text(chat(other, seed)) for seed in range(20)]
        assert len(set(answers)) == 20
        assert text(chat(server, model="n")) != answers[0]
        assert all(len(answer.split()) == 5 for answer in answers)
        with urlopen(f"{server.url}/models") as models:
            assert [model["id"] for model in json.load(models)["data"]] == ["m", "n"]
        with urlopen(f"{server.root}/health") as health:
            assert health.status == 200


def test_tokens_are_counted_and_cut() -> None:
    with serving(words=5) as server:
        whole, cut = chat(server), chat(server, max_tokens=2)
        assert (whole["choices"][0]["finish_reason"], cut["choices"][0]["finish_reason"]) == (
            "stop",
            "length",
        )
        assert text(whole).startswith(text(cut))
        assert cut["usage"]["completion_tokens"] == 2
        stats = server.stats()
        assert stats["completion_tokens"] == 7
        assert (stats["served_distinct"], stats["served_again"]) == (1, 1)
        assert stats["requests"]["POST /v1/chat/completions"] == stats["statuses"]["200"] == 2


@pytest.mark.parametrize("option", ["reasoning", "think"])
def test_thoughts_come_first_and_may_be_all(option: str) -> None:
    options: dict[str, Any] = {option: True}
    with serving(words=5, **options) as server:
        whole, cut = (chat(server, max_tokens=limit)["choices"][0]["message"] for limit in (10, 5))
        if option == "think":
            thoughts, answer = whole["content"].removeprefix("<think>\n").split("\n</think>\n\n")
            assert cut["content"] == f"<think>\n{thoughts}"
        else:
            thoughts, answer = whole["reasoning_content"], whole["content"]
            assert cut == {"role": "assistant", "content": None, "reasoning_content": thoughts}
        assert len(thoughts.split()) == len(answer.split()) == 5


def test_scores_do_not_depend_on_their_batch() -> None:
    one, other = (
        {"prompt": [{"role": "user", "content": "Why?"}], "response": r, "metadata": {}}
        for r in "ab"
    )
    with serving() as server:
        together = post(server, "/score", {"inputs": [one, other]})["scores"]
        assert together == [
            post(server, "/score", {"inputs": [each]})["scores"][0] for each in (one, other)
        ]
        assert len(set(together)) == 2
        judged = post(server, "/classify", {"model": "r", "messages": one["prompt"]})
        assert judged["model"] == "r"
        assert 0 <= judged["data"][0]["probs"][0] < 1


@pytest.mark.parametrize("fault", ["nan", "missing", "count"])
def test_scores_that_are_none(fault: str) -> None:
    body = {
        "inputs": [
            {"prompt": [{"role": "user", "content": "Why?"}], "response": "a", "metadata": {}}
        ]
    }
    with serving(fault_rate=1, faults=fault) as server:
        scores = post(server, "/score", body)["scores"]
        probs = [each.get("probs") for each in post(server, "/classify", {"input": "a"})["data"]]
        if fault == "nan":
            assert math.isnan(scores[0])
            assert math.isnan(probs[0][0])
        elif fault == "missing":
            assert (scores, probs) == ([None], [None])
        else:
            assert len(scores) == len(probs) == 2
        assert server.stats()["served_distinct"] == 0
        assert outcome(server, 0) == "fine"  # these are faults of rewards


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (name, name)
        for name in ("reset", "refuse_body", "empty", "500", "503", "429", "429_after", "stall")
    ]
    + [("context", "400")],
)
def test_faults(fault: str, seen: str) -> None:
    with serving(fault_rate=1, faults=[fault]) as server:
        assert outcome(server, 0) == seen
        server.control(fault_rate=0)
        assert outcome(server, 0) == "fine"
        stats = server.stats()
        assert stats["faults"] == {fault: 1}
        assert (stats["served_distinct"], stats["served_again"], stats["busy"]) == (1, 0, 0)


def test_faults_are_drawn_from_body_and_attempt() -> None:
    options: dict[str, Any] = {"fault_rate": 0.4, "faults": ["500", "503"]}
    with serving(**options) as server, serving(**options) as other:
        drawn = [[outcome(server, seed) for _ in range(3)] for seed in range(60)]
        rounds = [
            [outcome(other, seed) for seed in range(60)] for _ in range(3)
        ]  # in another order
        assert drawn == [list(seen) for seen in zip(*rounds, strict=True)]
        share = sum(seen != "fine" for each in drawn for seen in each) / 180
        assert 0.25 < share < 0.55
        assert any(each[0] == "500" and "fine" in each for each in drawn)


def test_slots_are_kept_and_integrated() -> None:
    with serving(slots=2, latency_s=(0.1, 0.1)) as server, ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda seed: chat(server, seed), range(6)))
        stats = server.stats()
        assert stats["max_busy"] == 2
        assert stats["busy_s"] == pytest.approx(0.6, rel=0.5)
        assert stats["seconds"] - stats["idle_s"] >= 0.3  # three rounds of two
        time.sleep(0.2)
        later = server.stats()
        assert later["busy_s"] == stats["busy_s"]
        assert later["seconds"] - later["idle_s"] == pytest.approx(
            stats["seconds"] - stats["idle_s"], abs=0.01
        )
        assert stats["mean_busy"] <= 2


def test_what_is_too_much_is_rejected() -> None:
    with serving(reject_over=2, latency_s=(0.5, 0.5)) as server, ThreadPoolExecutor(6) as threads:
        seen = list(threads.map(lambda seed: outcome(server, seed), range(6)))
        assert seen.count("429") >= 1
        assert seen.count("fine") >= 2
        assert server.stats()["max_busy"] == 2


def test_a_client_that_goes_frees_its_slot() -> None:
    with serving(slots=1, fault_rate=1, faults="stall") as server:
        assert outcome(server, 0) == "stall"
        server.control(fault_rate=0)
        assert outcome(server, 1) == "fine"


def test_a_storm_passes() -> None:
    with serving() as server:
        server.control(status=429, for_s=0.4, retry_after=3)
        assert outcome(server, 0) == "429_after"
        time.sleep(0.5)
        assert outcome(server, 0) == "fine"
        server.control(status=503, retry_after=None)
        assert outcome(server, 0) == "503"
        server.control(status=None)
        assert outcome(server, 0) == "fine"


def test_it_can_be_killed_and_started_again_where_it_was() -> None:
    with serving() as server:
        port, before = server.port, text(chat(server))
        server.kill()
        with pytest.raises(URLError):
            chat(server)
        server.restart()
        assert (server.port, text(chat(server))) == (port, before)


def test_a_mistake_of_the_client_is_a_400_or_404() -> None:
    with serving() as server:
        for path, body, status in (
            ("/v1/chat/completions", {"messages": []}, 400),
            ("/control", {"slot": 3}, 400),
            ("/control", {"faults": "fivehundred"}, 400),
            ("/v1/nothing", {}, 404),
        ):
            with pytest.raises(HTTPError) as error:
                post(server, path, body)
            assert error.value.code == status
