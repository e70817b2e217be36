"""A user's mistakes end in one clear line with the remedy and exit code 2, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, WEIGHTS

PROMPTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is empty"),
    "not JSON": ('{"prompt": "a"}\n{"prompt": \n', "line 2"),
    "no prompt": (
        '{"prompt": "a"}\n\n{"question": "b"}\n',
        "line 3: the column 'prompt' is missing; columns: question",
    ),
    "empty prompt": ('{"prompt": "  "}\n', "line 1: the column 'prompt' is empty"),
    "wrong type": ('{"prompt": 3}\n', "line 1"),
    "not an object": ("[1]\n", "line 1"),
    "assistant last": (
        '{"prompt": [{"role": "assistant", "content": "x"}]}\n',
        "line 1: the last message",
    ),
    "no content": ('{"prompt": [{"role": "user"}]}\n', "line 1: 'prompt' must be"),
    "two of one id": (
        '{"id": 7, "prompt": "a"}\n{"id": "7", "prompt": "b"}\n',
        "line 2: the id '7' is already used",
    ),
    "not text": (b"\xff\xfe\x00", "line 1: not JSON"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts(
    recipe: Callable[..., str], write_config: Callable[..., Path], tmp_path: Path, case: str
) -> None:
    content, said = PROMPTS[case]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = recipe("synthesize", "--config", write_config(), "--prompts", path)
    assert str(path) in error
    assert said in error
    assert not (tmp_path / "run").exists()


def agent(**entry: Any) -> dict[str, Any]:
    return {"agents": [{"name": "a", **entry}]}


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "engine": (
        agent(engine="vlmm"),
        "unknown engine 'vlmm'; choose one of transformers, openai, vllm, recorded, scripted",
    ),
    "vllm": (agent(engine="vllm", model="x"), "vLLM cannot be imported"),
    "no engine": (agent(), "agents[0]: the key 'engine' is missing"),
    "agent key": (agent(engine="transformers", modell="x"), "unknown key 'modell'"),
    "agent without model": (agent(engine="transformers"), "agents[0]: the key 'model' is missing"),
    "two of one name": (
        {"agents": [{"name": "a", "engine": "scripted"}] * 2},
        "names must be different",
    ),
    "no agents": ({"agents": []}, "agents: must have at least 1 entries"),
    "agents not a list": ({"agents": {"name": "a"}}, "agents: must be a list"),
    "base_url": (
        agent(engine="openai", model="m", base_url="localhost:8000"),
        "base_url must begin with http",
    ),
    "base_url not reached": (
        agent(engine="openai", model="m", base_url=["http://127.0.0.1:1/v1"]),
        "agent 'a': http://127.0.0.1:1/v1 cannot be reached",
    ),
    "reward not reached": (
        {"reward": {"kind": "http", "url": "http://127.0.0.1:1/score"}},
        "reward 'http': http://127.0.0.1:1/score cannot be reached",
    ),
    "reward url": (
        {"reward": {"kind": "vllm", "model": "m", "base_url": "gpu1:8000"}},
        "must begin with http://",
    ),
    "key in the entry": (
        agent(engine="openai", model="m", base_url="http://x", api_key="sk"),
        "unknown key 'api_key'",
    ),
    "endpoints": ({"endpoints": "no/such.yaml"}, "toa-trl serve-agents"),
    "limit": ({"limits": {"max_token": 5}}, "did you mean 'max_tokens'"),
    "cost": ({"limits": {"max_cost": 5}}, "limits.max_cost: needs an agent with a price"),
    "price": (
        agent(engine="scripted", price={"prompt": "low"}),
        "agents[0].price.prompt: must be a number",
    ),
    "limits no mapping": ({"limits": 5}, "limits"),
    "search_params no mapping": ({"search_params": [1]}, "search_params"),
    "seed": ({"seed": -1}, "seed: must be >= 0, not -1"),
    "agent no mapping": (
        {"agents": ["a"]},
        "agents[0]: must be a mapping with the key 'engine', not 'a'",
    ),
    "port": (
        agent(engine="openai", model="m", base_url="http://gpu1:99999/v1"),
        "agent 'a': base_url",
    ),
    "patience": ({"patience_s": -1}, "patience_s: must be >= 0"),
    "sampling": (
        agent(engine="scripted") | {"sampling": {"temprature": 1}},
        "did you mean 'temperature'",
    ),
    "top_p": ({"sampling": {"top_p": 0}}, "sampling.top_p: must be > 0, not 0"),
    "search": ({"search": "mcts"}, "unknown search 'mcts'"),
    "search key": ({"search_params": {"witdh": 3}}, "witdh"),
    "width": ({"search_params": {"width": 1}}, "width: must be >= the number of agents (2)"),
    "tau": ({"search_params": {"tau": 0}}, r"search_params.tau: must be > 0"),
    "tau as text": ({"search_params": {"tau": "low"}}, "tau"),
    "budget": ({"budget": 0}, "budget: must be >= 1, not 0"),
    "task": ({"task": "poetry"}, "task: unknown name 'poetry'"),
    "reward kind": ({"reward": {"kind": "clasifier"}}, "did you mean 'classifier'"),
    "no reward": ({"reward": {}}, "reward: the key 'kind' is missing"),
    "reward function": (
        {"reward": {"kind": "function", "function": "no.such:f"}},
        "'no.such:f' cannot be imported",
    ),
    "reward path": ({"reward": {"kind": "function", "function": "f"}}, "package.module:name"),
    "prompts": ({"prompts": "no/such.jsonl"}, "no/such.jsonl does not exist"),
    "prompts folder": ({"prompts": "docs-of-nobody"}, "cannot read docs-of-nobody"),
    "no prompts": ({"prompts": ""}, "prompts: the key is missing"),
    "no output_dir": ({"output_dir": ""}, "output_dir: must not be empty"),
    "unknown key": ({"budegt": 3}, "unknown key 'budegt'"),
    "policy": ({"preference": {"policy": "best"}}, "preference.policy: must be one of"),
    "rank": (
        {"preference": {"rejected_rank": 1}},
        "preference.rejected_rank: must be an integer >= 2",
    ),
    "sft key": ({"sft": {"topk": 2}}, "did you mean 'top_k'"),
    "plays_in_flight": ({"plays_in_flight": 0}, "plays_in_flight: must be >= 1, not 0"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configuration(
    recipe: Callable[..., str], write_config: Callable[..., Path], tmp_path: Path, case: str
) -> None:
    changes, said = CONFIGS[case]
    assert said in recipe("synthesize", "--config", write_config(**changes))
    assert not (tmp_path / "run").exists(), (
        "a mistake that can be seen before the first play leaves nothing behind"
    )


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ("model.safetensors", "no model could be loaded"),
        ("chat_template.jinja", "has no chat template"),
    ],
)
def test_model_folder(
    recipe: Callable[..., str],
    write_config: Callable[..., Path],
    tmp_path: Path,
    removed: str,
    said: str,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (ROOT / WEIGHTS / "base").iterdir():
        if file.name != removed:
            (folder / file.name).write_bytes(file.read_bytes())
    error = recipe(
        "synthesize", "--config", write_config(**agent(engine="transformers", model=str(folder)))
    )
    assert said in error
    assert str(folder) in error


def test_files(recipe: Callable[..., str], tmp_path: Path) -> None:
    assert "cannot be read" in recipe("synthesize", "--config", tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,\nb: }")
    assert "is not YAML" in recipe("synthesize", "--config", tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    assert "keys and values" in recipe("synthesize", "--config", tmp_path / "list.yaml")


def test_command_line(recipe: Callable[..., str], write_config: Callable[..., Path]) -> None:
    assert "did you mean '--budget'" in recipe(
        "synthesize", "--config", write_config(), "--budgett", 3
    )
    assert "neither YAML nor JSON" in recipe(
        "synthesize", "--config", write_config(), "--agents", "[{"
    )
    assert "num_prompts" in recipe("synthesize", "--config", write_config(), "--num_prompts", 0)


def test_evaluate_and_compare(recipe: Callable[..., str]) -> None:
    demo = "recipes/configs/demo"
    assert "models: must have at least 1 entries" in recipe(
        "evaluate", "--config", f"{demo}/evaluate.yaml", "--models", "[]"
    )
    missing = json.dumps([{"name": "base", "engine": "transformers", "model": "runs/none"}])
    assert "runs/none" in recipe(
        "evaluate", "--config", f"{demo}/evaluate.yaml", "--models", missing
    )
    assert "nobody" in recipe(
        "compare", "--config", f"{demo}/compare.yaml", "--searches", "{prs: {agent: nobody}}"
    )
    assert "mcts" in recipe(
        "compare", "--config", f"{demo}/compare.yaml", "--searches", "{mcts: {}}"
    )
