"""Adapters that recipes/sft.py leaves with --use_peft.

As agents, evaluated, and merged, as users type it.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.integration.conftest import ENVIRONMENT, ROOT, WEIGHTS, call, command, launch
from toa_trl import Rollouts, TOASampler
from toa_trl.data.prompts import load_prompts
from toa_trl.errors import ConfigError
from toa_trl.evaluation.harness import LmEvalConfig, run_lm_eval
from toa_trl.models.flops import flops_of

pytestmark = pytest.mark.heavy
SCRIPT = ("-m", "toa_trl", "merge-adapter")
HELDOUT = "toa_trl/demo/data/heldout.jsonl"


@pytest.fixture(scope="module")
def lora(training_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student with an adapter that changes it."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    options = (
        "--dataset_name",
        training_data / "sft",
        "--output_dir",
        folder,
        "--use_peft",
        "--learning_rate",
        1e-2,
    )
    done = launch(
        "recipes/sft.py", "--config", "recipes/configs/demo/sft.yaml", *options, "--max_steps", 8
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "adapter_config.json").is_file()
    assert not (folder / "config.json").exists()
    return folder


@pytest.fixture(scope="module")
def bare(lora: Path) -> Path:
    """The same adapter, whose tokenizer only the base has."""
    folder = lora.with_name("bare")
    shutil.copytree(lora, folder, ignore=shutil.ignore_patterns("tokenizer*", "chat_template*"))
    return folder


@pytest.fixture(scope="module")
def merged(lora: Path) -> Path:
    folder = lora.with_name("merged")
    done = call("merge-adapter", lora, folder)
    assert done.returncode == 0, done.stderr
    assert f"{lora} on {WEIGHTS}/student, merged (float32); logits differ by" in done.stdout
    return folder


def test_an_adapter_is_evaluated_as_the_model_that_it_makes(
    lora: Path, bare: Path, merged: Path, tmp_path: Path
) -> None:
    models = {"base": ROOT / WEIGHTS / "student", "lora": lora, "bare": bare, "merged": merged}
    entries = [
        {"name": name, "engine": "transformers", "model": str(folder)}
        for name, folder in models.items()
    ]
    settings = (
        "--num_prompts",
        60,
        "--num_samples",
        1,
        "--reward",
        "{}",
        "--results",
        tmp_path / "results.json",
    )
    options = (
        "--config",
        "recipes/configs/demo/evaluate.yaml",
        "--models",
        json.dumps(entries),
        *settings,
    )
    done = call("evaluate", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["student"]
    assert found["lora"] == found["bare"] == found["merged"] != found["base"]


def test_adapters_of_one_base_are_agents_beside_it(lora: Path, bare: Path, tmp_path: Path) -> None:
    models = {"base": ROOT / WEIGHTS / "student", "lora": lora, "bare": bare}
    agents = [
        {"name": name, "engine": "transformers", "model": str(folder), "device": "cpu"}
        for name, folder in models.items()
    ]
    settings = {
        "search": "parallel",
        "budget": 3,
        "sampling": {"temperature": 0.0, "max_tokens": 64},
        "progress": False,
    }
    sampler = TOASampler(agents, {"kind": "length"}, **settings)  # type: ignore[arg-type]
    prompts = load_prompts(str(ROOT / HELDOUT), limit=20)
    answers: dict[str, list[Any]] = {name: [] for name in models}
    for rollout in sampler.sample(prompts, output_dir=tmp_path / "run"):
        for play in rollout.plays:
            answers[play.action.agent].append(play.completion)
    assert [len(found) for found in answers.values()] == [20, 20, 20]
    assert answers["lora"] == answers["bare"]  # greedy: the same texts, tokens and FLOPs
    assert answers["lora"] != answers["base"]
    flops = flops_of(AutoConfig.from_pretrained(models["base"]))
    for found in answers.values():
        assert [one.flops for one in found] == [
            flops(one.prompt_tokens + one.completion_tokens) for one in found
        ]
    assert Rollouts.load(tmp_path / "run").unfinished == 0


def test_what_needs_a_whole_model_names_the_script(lora: Path) -> None:
    gsm8k = LmEvalConfig(tasks="gsm8k")
    with pytest.raises(ConfigError, match=r"merge it into its base with toa-trl merge-adapter"):
        run_lm_eval({"name": "l", "engine": "vllm", "model": str(lora)}, gsm8k)


def test_a_full_disk_leaves_nothing(lora: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(*SCRIPT, lora, tmp_path / "merged"),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"stopped: {tmp_path}/merged could not be written: "
    )
    assert "File too large" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(lora: Path, tmp_path: Path) -> None:
    for arguments, message in {
        (f"{WEIGHTS}/student", tmp_path / "m"): "has no adapter_config.json",
        (lora, lora.with_name("lora")): "exists already",
    }.items():
        done = call("merge-adapter", *arguments)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
        assert message in done.stderr
    shown = call("merge-adapter", "--help").stdout
    assert "toa-trl merge-adapter runs/my-lora runs/my-model" in shown
