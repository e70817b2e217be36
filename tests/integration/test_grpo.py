"""recipes/grpo.py as users type it: a reward model as the signal of TRL's online trainers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.conftest import ROOT, WEIGHTS, call, launch
from tests.training.test_reward_signal import run_of
from toa_trl.agents import make_agent
from toa_trl.training import RewardFunc, reward_func
from toa_trl.types import Message, Sampling
from toa_trl.utils.aio import LoopThread, gather_or_cancel

STUDENT = f"{WEIGHTS}/student"
LIKELIHOOD = {"kind": "likelihood", "model": f"{WEIGHTS}/base", "aggregate": "sum", "floor": -4.0}
pytestmark = pytest.mark.heavy


def options(output: Path, dataset: Path, *further: object) -> list[object]:
    config = ("--config", "recipes/configs/demo/grpo.yaml", "--model_name_or_path", STUDENT)
    return [*config, "--dataset_name", dataset, "--output_dir", output, *further]


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def problems(split: str, number: int) -> list[str]:
    lines = (ROOT / f"toa_trl/demo/data/{split}.jsonl").read_text().splitlines()[:number]
    return [json.loads(line)["prompt"] for line in lines]


def mean_reward(reward: RewardFunc, model: str, asked: Sequence[str]) -> float:
    """Return the mean reward of a model's greedy responses."""
    agent = make_agent({"name": "student", "engine": "transformers", "model": model})
    sampling = Sampling(temperature=0.0, max_tokens=64)
    loop = LoopThread("student")
    messages = [(Message("user", text),) for text in asked]
    answers = loop.run(
        gather_or_cancel(agent.generate(one, sampling=sampling, seed=0) for one in messages)
    )
    loop.run(agent.aclose())
    loop.close()
    rewards = reward(prompts=list(asked), completions=[answer.text for answer in answers])
    return sum(value for value in rewards if value is not None) / len(asked)


def test_twenty_steps_improve_the_reward_on_held_out_prompts(tmp_path: Path) -> None:
    data = tmp_path / "prompts"
    data.mkdir()
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in problems("synthesis", 160)]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--reward", json.dumps(LIKELIHOOD), "--learning_rate", 5e-4)
    done = call("grpo", *options(tmp_path / "out", data, *given))
    assert done.returncode == 0, done.stderr
    held_out = problems("validation", 100)
    with reward_func(LIKELIHOOD) as reward:
        before, after = (
            mean_reward(reward, model, held_out) for model in (STUDENT, str(tmp_path / "out"))
        )
    assert after > before + 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(
        tmp_path_factory.mktemp("grpo") / "run", {"kind": "length"}, rows=True, num_prompts=4
    )


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_training_resumes_and_names_what_rewarded_it(
    run: Path, tmp_path: Path, method: str
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    small = ("--per_device_train_batch_size", 8, "--num_generations", 4, "--max_steps", 2)
    further = ("--method", method, *small, "--save_strategy", "steps", "--save_steps", 1)
    done = launch("recipes/grpo.py", *options(whole, run, *further))
    assert done.returncode == 0, done.stderr
    assert "rewards/length/mean" in done.stdout
    shutil.copytree(whole / "checkpoint-1", resumed / "checkpoint-1")
    shutil.copy(whole / "lineage.json", resumed)  # marks the folder of a training
    again = ("--resume_from_checkpoint", "true")
    done = call("grpo", *options(resumed, run, *further, *again))
    assert done.returncode == 0, done.stderr
    first, second = weights(whole), weights(resumed)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    before = weights(ROOT / STUDENT)
    assert not all(torch.equal(first[name], before[name]) for name in before)
    lineage = json.loads((whole / "lineage.json").read_text())
    assert (lineage["method"], lineage["rewards"]) == (method.upper(), ["length"])
    assert lineage["data"][0]["rows"] == 4
    assert "rewarded by length" in (whole / "README.md").read_text()


def test_an_adapter_learns_from_two_rewards(run: Path, tmp_path: Path) -> None:
    two = json.dumps([{"kind": "length"}, {"kind": "math"}])
    given = ("--reward", two, "--reward_weights", 1.0, 0.5, "--use_peft", "--max_steps", 1)
    small = ("--per_device_train_batch_size", 4, "--num_generations", 4)
    done = call("grpo", *options(tmp_path / "out", run, *given, *small))
    assert done.returncode == 0, done.stderr
    assert "rewards/math/mean" in done.stdout
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
