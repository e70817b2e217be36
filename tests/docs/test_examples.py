"""Examples in Python of README and docs/ run as printed, and configurations sample."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.shell import WEIGHTS, short_trainings
from tests.docs.snippets import PAGES, ROOT, Block, at, of, page_of
from tests.judge_server import judging
from tests.server import serving
from toa_trl import TOASampler
from toa_trl.cli.main import run as toa_trl
from toa_trl.rollouts import is_complete

ELSEWHERE = {
    "docs/own_parts.md": "test_own_parts.py",  # and the contract tests
    "docs/guides/search_as_a_system.md": "docs/test_commands.py",  # asks the server that it starts
}
"""Pages whose examples other tests run."""
HEAVY = {"README.md", "docs/guides/reward_signal.md"}
"""Pages whose examples load models."""


def parameters() -> list[Any]:
    """Return the pages whose examples run here."""
    heavy = [pytest.mark.heavy, pytest.mark.xdist_group("docs")]
    pages = [page for page in PAGES if of("python", [page])]
    names = [str(page.relative_to(ROOT)) for page in pages]
    return [
        pytest.param(name, marks=heavy if name in HEAVY else [])
        for name in names
        if name not in ELSEWHERE
    ]


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_:FutureWarning",  # GRPO and distillation of TRL
)
@pytest.mark.parametrize("name", parameters())
def test_the_examples_of_a_page_run(name: str, place: Path) -> None:
    with short_trainings() if name in HEAVY else nullcontext():
        for example in of("python", [ROOT / name]):
            found: dict[str, Any] = {"__name__": "page"}
            exec(compile(example.text, example.place, "exec"), found)
    if name == "README.md":
        assert [len(rollout.scored) for rollout in found["rollouts"]] == [4, 4]
        assert len(found["rollouts"].to_sft()) == 2


def test_the_task_of_the_guide_asks_for_its_columns(place: Path) -> None:
    (example,) = of("python", [ROOT / "docs/guides/tasks_and_rewards.md"])
    Path("summaries.py").write_text(example.text)
    agents = [{"name": "a", "engine": "scripted"}]
    sampler = TOASampler(agents, {"kind": "length"}, task="summaries:Summary", budget=3)
    (rollout,) = sampler.sample([{"document": "A long story.", "words": 5}])
    sys.modules.pop("summaries")
    assert "In at most 5 words" in rollout.prompt.messages[-1].content
    assert len(rollout.scored) == 3


SAMPLED = {f"docs/guides/{n}.md" for n in ("allocation", "api_keys", "own_prompts")}
SAMPLED.add("docs/guides/whole_tree_data.md")
"""Pages whose configurations of a run are sampled."""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    """Addresses of a server of agents and of a judge."""
    with serving() as agents, judging() as judge:
        yield agents.url, judge.url


@pytest.mark.heavy
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize(
    "block", [b for b in of("yaml") if str(page_of(b).relative_to(ROOT)) in SAMPLED], ids=at
)
def test_a_configuration_samples(
    block: Block, place: Path, servers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, judge = servers
    for name in ("FIRST_KEY", "SECOND_KEY"):
        monkeypatch.setenv(name, "none")
    text = block.text.replace(
        'model-c, base_url: "https://api.example.com/v1', f'model-c, base_url: "{judge}'
    )
    shown = yaml.safe_load(re.sub(r"https://api\.example\.\w+/v1", server, text))
    lines = [json.dumps({"question": f"What is {n} and 2?"}) for n in range(9)]
    Path("questions.jsonl").write_text("\n".join(lines))
    names = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-32B-Instruct")
    agents = [
        {"name": name[:4], "engine": "openai", "model": name, "config": name, "base_url": server}
        for name in names
    ]
    config = {**yaml.safe_load(Path("run.yaml").read_text()), "agents": agents, **shown}
    config |= {"budget": 8, "output_dir": "runs/shown"}
    Path("shown.yaml").write_text(yaml.safe_dump(config))
    toa_trl(["synthesize", "--config", "shown.yaml"])
    assert is_complete("runs/shown")


@pytest.mark.heavy
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("block", of("yaml", [ROOT / "docs/training.md"]), ids=at)
def test_options_of_a_training_train(block: Block, place: Path) -> None:
    config = {"model_name_or_path": str(WEIGHTS / "student"), "output_dir": "runs/trained"}
    shown = yaml.safe_load(block.text.replace("0.05", "0.3"))  # of 20 prompts
    if "datasets" not in shown:
        config["dataset_name"] = "runs/my-run"
    Path("sft.yaml").write_text(yaml.safe_dump({**config, **shown}))
    with short_trainings():
        toa_trl(["sft", "--config", "sft.yaml"])
    assert Path("runs/trained/model.safetensors").is_file()


@pytest.mark.heavy
@pytest.mark.xdist_group("docs")
def test_the_run_of_the_guide_is_evaluated(place: Path, servers: tuple[str, str]) -> None:
    block = of("yaml", [ROOT / "docs/guides/search_as_a_system.md"])[0]
    lines = [json.dumps({"prompt": f"What is {n} and 2?", "answer": str(n + 2)}) for n in range(3)]
    Path("prompts.jsonl").write_text("\n".join(lines))
    texts = [f"It is \\boxed{{{number}}}." for number in range(9)]
    agents = json.dumps([{"name": "a", "engine": "scripted", "responses": texts}])
    options = ["--task", "math", "--budget", "160", "--agents", agents, "--reward", "{kind: math}"]
    toa_trl(["synthesize", "--config", "run.yaml", *options, "--output_dir", "runs/toa"])
    Path("evaluate.yaml").write_text(block.text.replace("http://gpu1:8000/v1", servers[0]))
    toa_trl(["evaluate", "--config", "evaluate.yaml"])
    rows = json.loads(Path("evaluations/toa/results.json").read_text())["student"]
    assert {name: row["accuracy"] for name, row in rows.items()} == {
        "llama": 0.0,
        "toa@16": 1.0,
        "toa@64": 1.0,
        "toa@160": 1.0,
    }
