"""From prompts to a better student, with real models and TRL's trainers, as users type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import load_dataset

from tests.helpers import completion_of
from tests.integration.conftest import ROOT, call, launch
from toa_trl import Rollouts

DEMO = "recipes/configs/demo"
pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def synthesis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo's agents on a few prompts."""
    folder = tmp_path_factory.mktemp("pipeline") / "synthesis"
    options = ("--num_prompts", 24, "--budget", 12, "--output_dir", folder)
    done = call("synthesize", "--config", f"{DEMO}/synthesize.yaml", *options)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def sft(synthesis: Path) -> Path:
    """The student after a short SFT."""
    folder = synthesis.parent / "sft"
    options = ("--dataset_name", synthesis / "sft", "--output_dir", folder, "--num_train_epochs", 2)
    done = launch("recipes/sft.py", "--config", f"{DEMO}/sft.yaml", *options)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_leaves_its_folder(synthesis: Path) -> None:
    assert {path.name for path in synthesis.iterdir()} >= {
        *("run.yaml", "journal.sqlite", "rollouts", "sft", "dpo", "README.md", "report.html")
    }
    rollouts = load_dataset(str(synthesis / "rollouts"), split="train")
    assert len(rollouts) == 24 * 12
    assert min(rollouts["flops"]) > 0
    assert min(rollouts["reward_flops"]) > 0
    assert {"answer", "refine"} <= set(rollouts["kind"])
    best = {
        rollout.prompt.id: completion_of(rollout.ranked[0]).text
        for rollout in Rollouts.load(synthesis)
    }
    # not through the card's configurations: datasets caches those by the folder's name, and another
    # run may have it, too
    for row in load_dataset(str(synthesis / "sft"), split="train"):
        assert row["completion"] == [{"role": "assistant", "content": best[row["prompt_id"]]}]
    for row in load_dataset(str(synthesis / "dpo"), split="train"):
        assert row["chosen_reward"] > row["rejected_reward"]
        assert row["chosen"] != row["rejected"]


def test_the_data_are_derived_again_without_sampling(synthesis: Path, tmp_path: Path) -> None:
    options = ("--policy", "same_parent", "--top_k", 2, "--output", tmp_path)
    done = call("data", synthesis, *options)
    assert done.returncode == 0, done.stderr
    parents = {
        (r.prompt.id, p.index): p.action.parent for r in Rollouts.load(synthesis) for p in r.plays
    }
    pairs = load_dataset(str(tmp_path / "dpo"), split="train")
    for row in pairs:
        assert (
            parents[row["prompt_id"], row["chosen_play"]]
            == parents[row["prompt_id"], row["rejected_play"]]
        )
    assert len(pairs) > 0
    assert len(load_dataset(str(tmp_path / "sft"), split="train")) > 24


def test_dpo_from_sft_with_lora(synthesis: Path, sft: Path, tmp_path: Path) -> None:
    options: tuple[object, ...] = (
        "--model_name_or_path",
        sft,
        "--dataset_name",
        synthesis / "dpo",
        "--output_dir",
        tmp_path,
    )
    done = launch(
        "recipes/dpo.py", "--config", f"{DEMO}/dpo.yaml", *options, "--max_steps", 2, "--use_peft"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_dpo_full(synthesis: Path, sft: Path, tmp_path: Path) -> None:
    options: tuple[object, ...] = (
        "--model_name_or_path",
        sft,
        "--dataset_name",
        synthesis / "dpo",
        "--output_dir",
        tmp_path,
    )
    done = launch("recipes/dpo.py", "--config", f"{DEMO}/dpo.yaml", *options, "--max_steps", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.safetensors").is_file()


def test_sft_with_lora(synthesis: Path, tmp_path: Path) -> None:
    options = (
        "--dataset_name",
        synthesis / "sft",
        "--output_dir",
        tmp_path,
        "--max_steps",
        2,
        "--use_peft",
    )
    done = launch("recipes/sft.py", "--config", f"{DEMO}/sft.yaml", *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("script", ["sft", "dpo"])
def test_trls_own_scripts_read_the_data(synthesis: Path, tmp_path: Path, script: str) -> None:
    options: tuple[object, ...] = (
        "--model_name_or_path",
        ROOT / "toa_trl/demo/weights/student",
        "--dataset_name",
        synthesis / script,
    )
    options += (
        "--output_dir",
        tmp_path,
        "--max_steps",
        1,
        "--use_cpu",
        "--bf16",
        "False",
        "--report_to",
        "none",
    )
    done = launch("-m", f"trl.scripts.{script}", *options)
    assert done.returncode == 0, done.stderr


def test_evaluate(sft: Path, tmp_path: Path) -> None:
    weights = "toa_trl/demo/weights"
    models = [{"name": "base", "engine": "transformers", "model": f"{weights}/student"}]
    models += [{"name": "sft", "engine": "transformers", "model": str(sft)}]
    options = ("--num_prompts", 40, "--num_samples", 2, "--results", tmp_path / "results.json")
    done = call(
        "evaluate",
        "--config",
        f"{DEMO}/evaluate.yaml",
        "--models",
        json.dumps(models),
        *options,
    )
    assert done.returncode == 0, done.stderr
    student = json.loads((tmp_path / "results.json").read_text())["student"]
    assert set(student) == {"base", "sft"}
    for row in student.values():
        assert 0 <= row["interval"][0] <= row["accuracy"] <= row["interval"][1] <= 1
        assert row["num_problems"] == 40


def test_compare_and_report(synthesis: Path, tmp_path: Path) -> None:
    options = (
        "--num_prompts",
        10,
        "--budgets",
        6,
        "--output_dir",
        tmp_path,
        "--results",
        tmp_path / "results.json",
    )
    done = call("compare", "--config", f"{DEMO}/compare.yaml", *options)
    assert done.returncode == 0, done.stderr
    searches = json.loads((tmp_path / "results.json").read_text())["searches"]
    assert [row["name"] for row in searches] == [
        "best_of_n",
        "parallel",
        "prs",
        "sequential",
        "moa",
        "toa",
    ]
    for row in searches:
        assert row["accuracy"] <= row["oracle_accuracy"]
        assert row["mean_top10_reward"] <= row["mean_best_reward"]
        assert row["flops"] > 0
    assert (tmp_path / "reward_against_flops.png").stat().st_size > 10_000
    report = tmp_path / "report.html"
    done = call(
        "report",
        synthesis,
        "--results",
        tmp_path / "results.json",
        "--output",
        report,
    )
    assert done.returncode == 0, done.stderr
    assert "sequential" in report.read_text(encoding="utf-8")
