"""A real vLLM, in an environment of its own.

Agents and reward behind servers, and the engine in process.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from tests.helpers import completion_of, wait
from tests.integration.conftest import ENVIRONMENT, ROOT, WEIGHTS, run
from toa_trl import Rollouts
from toa_trl.agents import make_agent
from toa_trl.rewards import make_reward
from toa_trl.types import Completion, Message, Sampling

PLACE = ROOT / ".venv-vllm"
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not (PLACE / "installed").exists(), reason="no .venv-vllm: bash scripts/test_vllm makes it"
    ),
]
VLLM_ENVIRONMENT = {
    **ENVIRONMENT,
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every server takes all cores
    "VLLM_NO_USAGE_STATS": "1",
}
# Seeds and prompts read in chunks kill vLLM 0.32 on a CPU; its blocks of 128 tokens hold none of
# our short prompts; and by default it does not start where less than 92 % of the memory is free.
ENGINE = {
    "enforce_eager": True,
    "enable_chunked_prefill": False,
    "block_size": 32,
    "gpu_memory_utilization": 0.1,
}
FLAGS = (
    "--enforce-eager",
    "--no-enable-chunked-prefill",
    "--block-size=32",
    "--gpu-memory-utilization=0.1",
)
PROMPTS = [
    json.loads(line)
    for line in (ROOT / "toa_trl/demo/data/synthesis.jsonl").read_text().splitlines()[:10]
]


def widen_heads(source: Path, folder: Path, head_dim: int = 32) -> Path:
    """The same function with wider attention heads.

    VLLM's CPU kernels know none of the demo's size, 24.

    The new dimensions are zero; the queries are scaled, and the rotary base is raised, by what the
    width changes.
    """
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    old, ratio = config["head_dim"], head_dim / config["head_dim"]
    kept = torch.cat(
        [torch.arange(old // 2), torch.arange(old // 2) + head_dim // 2]
    )  # rotary pairs (i, i + dim / 2)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "self_attn" in name:
            out = "o_proj" in name
            rows = weight.float().T if out else weight.float()  # [heads * old, hidden]
            wide = torch.zeros(len(rows) // old, head_dim, rows.shape[1])
            wide[:, kept] = rows.unflatten(0, (-1, old)) * (ratio**0.5 if "q_proj" in name else 1.0)
            weights[name] = (wide.flatten(0, 1).T if out else wide.flatten(0, 1)).contiguous()
        else:
            weights[name] = weight.float()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config["head_dim"] = head_dim
    config["rope_parameters"]["rope_theta"] **= ratio
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: widen_heads(ROOT / WEIGHTS / name, folder / name)
        for name in ("generalist", "add", "reward_hackable")
    }


IN_PROCESS = """
import asyncio, json, sys
from dataclasses import asdict
from toa_trl.agents.vllm import VLLMAgent
from toa_trl.errors import AgentError
from toa_trl.utils.config import call
from toa_trl.types import Message, Sampling

entry, texts = json.loads(sys.argv[1])
agents = [call("agent", VLLMAgent, params={"name": n, **entry}) for n in "ab"]
asked = [(Message("user", text),) for text in texts]


async def at_once(count, agent=agents[0], **sampling):
    sampling = Sampling(**{"temperature": 1.0, "max_tokens": 64, **sampling})
    plays = (agent.generate(asked[i % len(asked)], sampling=sampling, seed=i) for i in range(count))
    return [asdict(done) for done in await asyncio.gather(*plays)]


async def failure(text):
    try:
        await agents[0].generate((Message("user", text),), sampling=Sampling(), seed=0)
    except AgentError as error:
        return str(error)


async def killed():
    for process in agents[0]._engine._llm.engine_core.resources.engine_manager.processes:
        process.kill()
    return await failure("How many?")


async def cancelled():
    engine, aborted = agents[0]._engine._llm, []
    abort = engine.abort
    engine.abort = lambda *given, **named: aborted.append(given) or abort(*given, **named)
    play = asyncio.create_task(agents[0].generate(asked[0], sampling=Sampling(2.0), seed=0))
    while not engine.get_num_unfinished_requests():
        await asyncio.sleep(0)
    play.cancel()
    await asyncio.wait([play])
    while engine.get_num_unfinished_requests():
        await asyncio.sleep(0.01)
    return play.cancelled(), len(aborted)


# every asyncio.run has a loop of its own, as every TOASampler.sample has
print("RESULT", json.dumps({
    "shared": agents[0]._engine is agents[1]._engine,
    "first": asyncio.run(at_once(16)),
    "again": asyncio.run(at_once(16, agents[1])),
    "one": asyncio.run(at_once(1)),
    "short": asyncio.run(at_once(2, max_tokens=3)),
    "stopped": asyncio.run(at_once(1, temperature=0.0, stop=("=",))),
    "greedy": asyncio.run(at_once(len(asked), temperature=0.0, max_tokens=2048)),
    "too_long": asyncio.run(failure("How many? " * 200)),
    "cancelled": asyncio.run(cancelled()),
    "killed": asyncio.run(killed()),
    "restarted": asyncio.run(at_once(1)),
}))
asyncio.run(agents[0].aclose())
"""


def test_the_engine_in_process(models: dict[str, Path]) -> None:
    texts = [row["prompt"] for row in PROMPTS[:4]]
    entry = {"model": str(models["generalist"]), "dtype": "float32", "engine_args": ENGINE}
    done = subprocess.run(
        [PLACE / "bin/python", "-c", IN_PROCESS, json.dumps([entry, texts])],
        cwd=ROOT,
        env=VLLM_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).split(" ", 1)[
            1
        ]
    )
    assert result["shared"]
    assert result["first"] == result["again"]
    assert result["one"] == result["first"][:1], "the batch changed the text"
    assert len({answer["text"] for answer in result["first"]}) > 4, "the seed changed nothing"
    assert [(a["finish_reason"], a["completion_tokens"]) for a in result["short"]] == [
        ("length", 3)
    ] * 2
    assert result["stopped"][0]["finish_reason"] == "stop"
    assert "=" not in result["stopped"][0]["text"]
    assert "the context holds 512" in result["too_long"]
    assert result["cancelled"] == [True, 1]
    assert "EngineDeadError" in result["killed"]
    assert result["restarted"] == result["one"]

    own = make_agent(
        {
            "name": "own",
            "engine": "transformers",
            "model": f"{WEIGHTS}/generalist",
            "dtype": "float32",
            "device": "cpu",
        }
    )

    async def greedy() -> list[Completion]:
        sampling = Sampling(temperature=0.0)
        return await asyncio.gather(
            *(own.generate([Message("user", t)], sampling=sampling, seed=0) for t in texts)
        )

    for there, here in zip(result["greedy"], wait(greedy()), strict=True):
        assert there["text"].strip() == here.text.strip()
        for field in ("finish_reason", "prompt_tokens", "completion_tokens"):
            assert there[field] == getattr(here, field)


@contextmanager
def serving(model: Path, *options: str) -> Iterator[str]:
    """A vLLM server of a model, under its folder's name, not yet up; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (
        "--model",
        model,
        "--served-model-name",
        model.name,
        "--dtype",
        "float32",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    )
    command = [
        PLACE / "bin/python",
        "-m",
        "vllm.entrypoints.openai.api_server",
        *arguments,
        *FLAGS,
        *options,
    ]
    with open(f"{model}.log", "w") as log:
        server = subprocess.Popen(
            [*map(str, command)],
            env=VLLM_ENVIRONMENT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        for sent in (
            signal.SIGTERM,
            signal.SIGKILL,
        ):  # the second one for what the server has left behind
            with suppress(ProcessLookupError):
                os.killpg(server.pid, sent)
            with suppress(subprocess.TimeoutExpired):
                server.wait(20)


def wait_until_up(url: str, log: Path) -> None:
    for _ in range(300):
        with suppress(URLError, ConnectionError):
            urlopen(f"{url}/health", timeout=5).close()
            return
        time.sleep(1)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def servers(models: dict[str, Path]) -> Iterator[dict[str, str]]:
    """The URLs of two agents and a reward model."""
    options = {"reward_hackable": ("--runner", "pooling")}
    with ExitStack() as stack:
        urls = {
            name: stack.enter_context(serving(model, *options.get(name, ())))
            for name, model in models.items()
        }
        for name, url in urls.items():
            wait_until_up(url, models[name].with_suffix(".log"))
        yield urls


def metric(url: str, name: str) -> float:
    """One of vLLM's own counters."""
    with urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    (value,) = (line.split()[-1] for line in lines if line.startswith(f"vllm:{name}{{"))
    return float(value)


def test_a_run_over_servers(servers: dict[str, str], tmp_path: Path) -> None:
    def agent(name: str) -> dict[str, str]:
        url = f"{servers[name]}/v1"
        return {
            "name": name,
            "engine": "openai",
            "model": name,
            "base_url": url,
            "config": f"{WEIGHTS}/{name}",
        }

    config = {
        "prompts": "toa_trl/demo/data/synthesis.jsonl",
        "num_prompts": len(PROMPTS),
        "task": "toa_trl/demo/templates",
        "search": "toa",
        "search_params": {"alpha": 0.05, "tau": 0.5},
        "budget": 12,
        "plays_in_flight": 2,
        "sampling": {"temperature": 0.7, "max_tokens": 64},
        "agents": [agent("generalist"), agent("add")],
        "reward": {
            "kind": "vllm",
            "model": "reward_hackable",
            "base_url": f"{servers['reward_hackable']}/v1",
        },
        "preference": {"rejected_rank": 0.5},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = run("recipes/synthesize.py", "--config", tmp_path / "run.yaml")
    assert done.returncode == 0, done.stderr

    rollouts = list(Rollouts.load(tmp_path / "run"))
    assert [len(rollout.scored) for rollout in rollouts] == [12] * len(PROMPTS)
    plays = [play for rollout in rollouts for play in rollout.plays]
    assert not [play.error for play in plays if play.error]
    for name in ("generalist", "add"):
        completions = [completion_of(play) for play in plays if play.action.agent == name]
        read = sum(c.prompt_tokens or 0 for c in completions)
        assert read == metric(servers[name], "prompt_tokens_total") > 0
        written = sum(c.completion_tokens or 0 for c in completions)
        assert written == metric(servers[name], "generation_tokens_total")
        assert all((c.flops or 0) > 0 for c in completions)
        # refinements of one prompt share its beginning, and the server need not read it again
        hits, queries = (
            metric(servers[name], f"prefix_cache_{count}_total") for count in ("hits", "queries")
        )
        assert hits > 0.2 * queries, f"{hits:.0f} of {queries:.0f} prompt tokens"

    classifier = make_reward(
        {"kind": "classifier", "model": f"{WEIGHTS}/reward_hackable", "device": "cpu"}
    )
    for rollout in rollouts:
        rewards = wait(
            classifier.score(rollout.prompt, [completion_of(play).text for play in rollout.scored])
        )
        assert [play.reward for play in rollout.scored] == pytest.approx(rewards, abs=1e-3)
