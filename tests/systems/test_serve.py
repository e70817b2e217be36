"""A search behind an OpenAI-compatible endpoint, as clients see it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.alpaca_judge import judging
from tests.helpers import TextReward, wait
from toa_trl.agents import Agent
from toa_trl.agents.scripted import ScriptedAgent
from toa_trl.cli.main import main
from toa_trl.errors import AgentError, ToaError, Unavailable
from toa_trl.evaluation.alpaca import Annotator, _template
from toa_trl.systems.search_model import SearchModel, SearchSettings
from toa_trl.systems.server import listen, make_app, make_server
from toa_trl.types import Completion, Message, Sampling

KEY, BUDGET, MAX_BUDGET = "secret", 4, 6
SETTINGS = SearchSettings("toa", BUDGET, {"width": 2})
HELLO: Any = [{"role": "user", "content": "Hello?"}]
CHAT = {"model": "toa", "messages": HELLO}


class Actor(Agent):
    """Answers with its name and the seed; waits or fails where the prompt says so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sampling: list[Sampling] = []
        self.started, self.released = threading.Event(), threading.Event()
        self.cancelled = threading.Event()

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        self.sampling.append(sampling)
        text = " ".join(message.content for message in messages)
        if "FAIL" in text or ("HALF" in text and self.name == "b"):
            raise AgentError("no luck", Completion("", "error", 7, 0))
        if "WAIT" in text:
            self.started.set()
            try:
                while not self.released.is_set():
                    await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return Completion(f"{self.name} says {seed} and {'more ' * 10}.", "stop", 3, 2)


AGENTS = [Actor("a"), Actor("b")]


def search_model(**options: Any) -> SearchModel:
    return SearchModel(AGENTS, TextReward(), SETTINGS, sampling={"max_tokens": 99}, **options)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an application in a thread, and return its URL."""
    with listen("127.0.0.1", 0) as listener:
        server = make_server(app)
        thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = make_app(search_model(), "toa", KEY, MAX_BUDGET, max_requests=1)
    with running(app) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def send(url: str, path: str = "/v1/chat/completions", body: Any = None, key: str = KEY) -> Any:
    """Return the status and the JSON value of a response."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers)) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def expected(settings: SearchSettings = SETTINGS) -> list[tuple[str, float | None]]:
    """Return responses and rewards of the same search without a server, best first."""
    model = search_model()
    result = wait(model.answer(model.read(HELLO), settings))
    return [(p.completion.text, p.reward) for p in result.rollout.ranked if p.completion]


def test_a_response_is_the_best_play_and_usage_the_sum_of_all(client: Any) -> None:
    done = client.chat.completions.create(model="toa", messages=HELLO)
    assert [choice.message.content for choice in done.choices] == [expected()[0][0]]
    assert (done.choices[0].finish_reason, done.model) == ("stop", "toa")
    usage = done.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (12, 8, 20)
    assert done.object == "chat.completion"
    assert "toa" not in done.model_dump()


def test_n_responses_are_the_best_plays_of_one_search(client: Any) -> None:
    done = client.chat.completions.create(model="toa", messages=HELLO, n=2)
    assert [choice.message.content for choice in done.choices] == [t for t, _ in expected()[:2]]
    assert [choice.index for choice in done.choices] == [0, 1]
    assert done.usage.total_tokens == 20


def test_a_stream_has_the_same_texts_in_chunks(client: Any) -> None:
    texts, reasons, totals = ["", ""], ["", ""], []
    with client.chat.completions.create(
        model="toa", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
    ) as chunks:
        num_chunks = 0
        for chunk in chunks:
            num_chunks += 1
            totals += [chunk.usage.total_tokens] if chunk.usage else []
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [text for text, _ in expected()[:2]]
    assert reasons == ["stop", "stop"]
    assert num_chunks > 2 * 3
    assert totals == [20]


def test_a_stream_ends_with_done(url: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    data = json.dumps({**CHAT, "stream": True, "tree": True}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, headers)
    with urllib.request.urlopen(request) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = reply.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert len(json.loads(events[-3].removeprefix("data: "))["toa"]["plays"]) == BUDGET


def test_models_and_health(client: Any, url: str) -> None:
    assert [model.id for model in client.models.list()] == ["toa"]
    assert send(url, "/health", key="none") == (200, {"status": "ok", "searching": 0})


def test_a_request_may_choose_the_search_and_the_budget_and_see_the_tree(client: Any) -> None:
    extra = {"search": "best_of_n", "budget": 6, "tree": True}
    done = client.chat.completions.create(model="toa", messages=HELLO, extra_body=extra)
    tree = done.toa
    assert (tree["search"], tree["budget"], len(tree["plays"])) == ("best_of_n", 6, 6)
    assert {play["kind"] for play in tree["plays"]} == {"answer"}
    best = max(tree["plays"], key=lambda play: play["reward"])
    assert done.choices[0].message.content == best["text"]
    alone = expected(SearchSettings("best_of_n", 6))
    assert sorted(((p["text"], p["reward"]) for p in tree["plays"]), key=lambda p: -p[1]) == alone


def test_the_default_search_refines(url: str) -> None:
    _, body = send(url, body={**CHAT, "tree": True})
    plays = body["toa"]["plays"]
    assert any(play["kind"] == "refine" and play["parent"] is not None for play in plays)


def test_the_seed_decides_the_plays(url: str) -> None:
    bodies = [send(url, body={**CHAT, "seed": seed})[1] for seed in (0, 1, 1)]
    texts = [body["choices"][0]["message"]["content"] for body in bodies]
    assert texts[0] == expected()[0][0]
    assert texts[1] == texts[2] == expected(replace(SETTINGS, seed=1))[0][0] != texts[0]


@pytest.mark.parametrize(
    ("changes", "sampling"),
    [
        ({}, Sampling(max_tokens=99)),
        ({"max_tokens": 5, "stop": "END"}, Sampling(max_tokens=5, stop=("END",))),
        ({"max_completion_tokens": 7, "stop": ["x", "y"]}, Sampling(max_tokens=7, stop=("x", "y"))),
        # what lm-eval sends
        ({"temperature": 0, "top_p": 0.5, "stop": [], "seed": 1234}, Sampling(max_tokens=99)),
        ({"tools": [], "logprobs": False, "n": None, "user": "u"}, Sampling(max_tokens=99)),
        ({"response_format": {"type": "text"}}, Sampling(max_tokens=99)),
    ],
)
def test_how_agents_sample(url: str, changes: Any, sampling: Sampling) -> None:
    for agent in AGENTS:
        agent.sampling.clear()
    assert send(url, body={**CHAT, **changes})[0] == 200
    assert {s for agent in AGENTS for s in agent.sampling} == {sampling}


def test_lm_eval_asks_the_search(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = LocalChatCompletion(base_url=f"{url}/v1/chat/completions", model="toa", seed=1)
    asked = (model.apply_chat_template(HELLO), {"until": ["END"], "max_gen_toks": 50})
    request = Instance("generate_until", {}, asked, 0)
    (text,) = model.generate_until([request], disable_tqdm=True)
    assert AGENTS[0].sampling[-1] == Sampling(max_tokens=50, stop=("END",))
    assert text == expected(replace(SETTINGS, seed=1))[0][0]


# alpaca_eval's own way to evaluate a model behind an endpoint: it asks the model, then the judge
FROM_MODEL = """
import json, sys
from alpaca_eval import evaluate_from_model
evaluate_from_model(
    **json.loads(sys.argv[1]), precomputed_leaderboard=None, is_return_instead_of_print=True
)
"""
ALPACA = Path(__file__).parents[2] / ".venv-alpaca/bin/python"


@pytest.mark.heavy
@pytest.mark.skipif(
    not ALPACA.is_file(), reason="no .venv-alpaca: bash scripts/alpaca_environment makes it"
)
def test_alpaca_eval_asks_the_search(url: str, tmp_path: Path) -> None:
    references = {"Hello?": "Hi.", "Who?": "w" * 1000, "Why?": "Because."}
    rows = [{"instruction": key, "output": references[key], "dataset": "d"} for key in references]
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    (tmp_path / "prompt.txt").write_text("<|im_start|>user\n{instruction}\n<|im_end|>")
    request = {"model_name": "toa", "max_tokens": 50, "num_procs": 3}
    entry = {
        "prompt_template": str(tmp_path / "prompt.txt"),
        "fn_completions": "openai_completions",
        "completions_kwargs": request,
    }
    arguments = {
        "model_configs": {"toa": entry},
        "evaluation_dataset": str(tmp_path / "dataset.json"),
        "annotators_config": str(tmp_path / "annotator"),
        "output_path": str(tmp_path / "output"),
        "sort_by": "win_rate",
        "fn_metric": "get_winrate",  # the length control is made for its own 805 instructions
    }
    with judging() as judge:
        judged = Annotator(model="judge", base_url=judge.url).alpaca_eval_config()
        (tmp_path / "annotator").mkdir()
        judged["prompt_template"] = _template(str(ALPACA))
        (tmp_path / "annotator/configs.yaml").write_text(yaml.safe_dump({"judge": judged}))
        clients = {
            "toa": [{"base_url": f"{url}/v1", "api_key": KEY}],
            "default": [{"base_url": judge.url, "api_key": "none"}],
        }
        (tmp_path / "clients.yaml").write_text(yaml.safe_dump(clients))
        environment = {**os.environ, "OPENAI_CLIENT_CONFIG_PATH": str(tmp_path / "clients.yaml")}
        subprocess.run(
            [ALPACA, "-c", FROM_MODEL, json.dumps(arguments)],
            env={**environment, "HF_HUB_OFFLINE": "1"},
            cwd=tmp_path,
            check=True,
        )
    model = search_model()
    best = {}
    for text in references:
        prompt = model.read([{"role": "user", "content": text}])
        (best[text], *_) = wait(model.answer(prompt)).rollout.ranked
    outputs = json.loads((tmp_path / "output/model_outputs.json").read_text())
    assert {row["instruction"]: row["output"] for row in outputs} == {
        text: play.completion.text for text, play in best.items() if play.completion
    }
    annotations = json.loads((tmp_path / "output/annotations.json").read_text())
    wins = {row["instruction"]: row["preference"] > 1.5 for row in annotations}
    assert wins == {"Hello?": True, "Who?": False, "Why?": True}  # the longer one


def test_a_conversation_may_have_parts_and_further_keys(url: str) -> None:
    part = {"type": "text", "text": "Hello?"}
    messages = [{"role": "user", "content": [part], "type": "text"}]
    assert send(url, body={**CHAT, "messages": messages})[1]["choices"][0]["message"] == {
        "role": "assistant",
        "content": expected()[0][0],
    }
    developer = [{"role": "developer", "content": "Be brief."}, *HELLO]
    assert send(url, body={**CHAT, "messages": developer})[0] == 200


@pytest.mark.parametrize(
    ("changes", "status", "param", "message"),
    [
        ({"messages": None}, 400, "messages", "messages: the key is missing"),
        ({"messages": []}, 400, "messages", "at least 1 entries"),
        ({"messages": "Hello?"}, 400, "messages", "must be a list"),
        ({"messages": [{"role": "user"}]}, 400, "messages", "content"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "user"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages",
            r"messages\[0\].content: a part is not a text",
        ),
        ({"model": "gpt"}, 404, "model", "'gpt' does not exist; this server has 'toa'"),
        ({"model": None}, 400, "model", "the key is missing"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "tools: not supported"),
        ({"logprobs": True}, 400, "logprobs", "not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
        ({"budgets": 3}, 400, "budgets", r"did you mean 'budget'"),
        ({"n": 0}, 400, "n", "n: must be >= 1, not 0"),
        ({"n": 5}, 400, "n", "n: must be <= the budget of 4, not 5"),
        ({"max_tokens": -1}, 400, "max_tokens", "must be >= 1"),
        ({"stop": [""]}, 400, "stop", "must not be empty"),
        ({"budget": 7}, 400, "budget", "budget: must be <= 6 on this server, not 7"),
        ({"budget": True}, 400, "budget", "must be an integer"),
        ({"search": "mcts"}, 400, "search", "did you mean 'ab_mcts'"),
        ({"search": "this:s"}, 400, "search", "search: must be one of best_of_n"),
        ({"tree": "yes"}, 400, "tree", "must be true or false"),
        ({"stream_options": {"usage": 1}}, 400, "stream_options", "unknown key 'usage'"),
    ],
)
def test_an_invalid_request(url: str, changes: Any, status: int, param: str, message: str) -> None:
    got, body = send(url, body={**CHAT, **changes})
    error = body["error"]
    assert (got, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert error["code"]
    assert re.search(message, error["message"])


def test_a_module_path_imports_nothing(url: str) -> None:
    sys.modules.pop("this", None)
    assert send(url, body={**CHAT, "search": "this:s"})[0] == 400
    assert "this" not in sys.modules


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff", b"", b"[" * 100_000])
def test_a_body_that_is_no_json_object(url: str, body: bytes) -> None:
    status, answer = send(url, body=body)
    assert status == 400
    assert answer["error"]["message"].startswith("the body ")


def test_paths_and_methods_that_do_not_exist(url: str) -> None:
    assert send(url, "/v1/embeddings", CHAT)[0] == 404
    status, body = send(url, "/v1/chat/completions")
    assert (status, body["error"]["type"]) == (405, "invalid_request_error")


def test_a_wrong_key_is_refused(url: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
        for call in (
            client.models.list,
            lambda: client.chat.completions.create(model="toa", messages=HELLO),
        ):
            with pytest.raises(openai.AuthenticationError) as raised:
                call()
            assert raised.value.code == "invalid_api_key"
    assert send(url, body=CHAT, key="wröng")[0] == 401


def test_a_search_whose_plays_all_fail_is_an_error(url: str) -> None:
    messages = [{"role": "user", "content": "FAIL"}]
    status, body = send(url, body={**CHAT, "messages": messages})
    assert (status, body["error"]["code"]) == (502, "no_response")
    assert body["error"]["message"] == "every play failed, most often with: no luck"


def test_failed_plays_count_towards_usage(url: str) -> None:
    messages = [{"role": "user", "content": "HALF"}]
    status, body = send(url, body={**CHAT, "messages": messages, "tree": True})
    plays = body["toa"]["plays"]
    failed = [play for play in plays if play["error"]]
    assert status == 200
    assert len(plays) - len(failed) == BUDGET
    assert failed
    assert failed[0]["text"] is not None
    assert body["usage"]["prompt_tokens"] == 3 * BUDGET + 7 * len(failed)


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (Unavailable("the reward model is away"), 503, "the reward model is away"),
        (ToaError("no agent has answered for 900 s"), 503, "no agent has answered for 900 s"),
        (ValueError("private"), 500, "internal error; the log of the server has the reason"),
    ],
)
def test_a_search_that_cannot_continue(
    raised: Exception, status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(*_: Any) -> Any:
        raise raised

    model = search_model()
    monkeypatch.setattr(model, "answer", answer)
    with running(make_app(model)) as url:
        got, body = send(url, body=CHAT, key="")
    assert (got, body["error"]["message"]) == (status, message)
    assert body["error"]["type"] == "server_error"


@contextmanager
def waiting(url: str) -> Iterator[Any]:
    """Have one request in progress; yield its connection."""
    for agent in AGENTS:
        for event in (agent.started, agent.released, agent.cancelled):
            event.clear()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": "WAIT"}]})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
    try:
        assert AGENTS[0].started.wait(60)
        yield connection
    finally:
        for agent in AGENTS:
            agent.released.set()
        connection.close()


def test_too_many_requests_are_refused_and_later_ones_answered(url: str, client: Any) -> None:
    import openai

    with waiting(url) as connection:
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model="toa", messages=HELLO)
        assert raised.value.code == "rate_limit_exceeded"
        assert "rate limit" in str(raised.value)  # what alpaca_eval looks for
        assert send(url, "/health")[1]["searching"] == 1
        assert send(url, body={**CHAT, "n": 0})[0] == 400  # a mistake is not worth a repetition
        for agent in AGENTS:
            agent.released.set()
        reply = connection.getresponse()
        assert reply.status == 200
        reply.read()
    assert client.chat.completions.create(model="toa", messages=HELLO).choices


def test_a_search_ends_when_its_client_goes(url: str) -> None:
    with waiting(url) as connection:
        connection.close()
        assert AGENTS[0].cancelled.wait(60)
    assert not AGENTS[1].started.is_set()  # no further play was made
    assert send(url, body=CHAT)[0] == 200  # its place is free


def test_many_requests_at_once_do_not_disturb_each_other() -> None:
    model = search_model()
    conversations = [[{"role": "user", "content": f"Question {i}?"}] for i in range(8)]
    prompts = [model.read(messages) for messages in conversations]
    assert len({prompt.id for prompt in prompts}) == 8  # from which everything random comes
    assert [model.read(messages) for messages in conversations] == prompts

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(model.answer(prompt) for prompt in prompts))

    for prompt, result in zip(prompts, wait(all_at_once()), strict=True):
        assert result.rollout == wait(model.answer(prompt)).rollout


def test_what_was_given_as_an_object_is_left_open() -> None:
    class Closing(Actor):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    agent = Closing("c")
    wait(SearchModel([agent], TextReward(), SETTINGS).aclose())
    assert not agent.closed


def test_limits_are_those_of_a_request() -> None:
    model = search_model(limits={"max_tokens": 10})
    for _ in range(2):
        result = wait(model.answer(model.read(HELLO)))
        assert len(result.rollout.plays) == 2
        assert "max_tokens of 10 is reached" in (result.limit or "")


RUN = [
    "serve",
    *("--agents", "[{name: a, engine: scripted}]"),
    *("--reward", "{kind: length}"),
    *("--budget", "4"),
]
AWAY = "[{name: a, engine: openai, model: m, base_url: 'http://127.0.0.1:9/v1', max_attempts: 1}]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--api_key_env", "NOT_SET_HERE"], "api_key_env: the variable NOT_SET_HERE is not set"),
        (["--max_budget", "3"], "max_budget: must be at least the budget of 4, not 3"),
        (["--port", "0"], "port: must be >= 1, not 0"),
        (["--host", "192.0.2.1"], "host: 192.0.2.1:"),
        (["--search", "mcts"], "unknown search 'mcts'"),
        (["--task", "translation"], "task: 'translation' needs the columns"),
        (["--agents", AWAY], "http://127.0.0.1:9/v1"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with pytest.raises(SystemExit) as stopped:
        main([*RUN, "--port", str(port), *options])
    error = capsys.readouterr().err
    assert (stopped.value.code, len(error.splitlines())) == (2, 1)
    assert message in error


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as used:
        port = used.getsockname()[1]
        with pytest.raises(SystemExit) as stopped:
            main([*RUN, "--port", str(port)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: port: {port} is in use; choose another\n"


@pytest.mark.parametrize("library", ["fastapi", "uvicorn"])
def test_a_missing_library_names_the_extra(
    library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with pytest.raises(SystemExit) as stopped:
        main([*RUN, "--port", str(port)])
    assert stopped.value.code == 2
    assert f"{library} is not installed; pip install 'toa_trl[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_the_command_serves_until_a_signal(
    signal_name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    async def aclose(agent: ScriptedAgent) -> None:
        await asyncio.sleep(0)
        closed.append(agent.name)

    monkeypatch.setattr(ScriptedAgent, "aclose", aclose)
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    url, statuses = f"http://127.0.0.1:{port}", []

    def ask_and_stop() -> None:
        for _ in range(600):
            try:
                statuses.append(send(url, "/health", key="")[0])
                statuses.append(send(url, body=CHAT, key="")[0])
                break
            except OSError:
                time.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, signal_name))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=ask_and_stop)
    thread.start()
    main([*RUN, "--port", str(port)])
    thread.join()
    assert (statuses, closed) == ([200, 200], ["a"])
    assert signal.getsignal(signal.SIGTERM) == before
    assert f"model toa at {url}/v1" in capsys.readouterr().out
