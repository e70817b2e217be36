"""The training recipes as users type them.

Every method, mixtures, trackers, and a training that is killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers import wait
from tests.integration.conftest import ENVIRONMENT, ROOT, WEIGHTS, launch, launched, preloaded, run
from toa_trl.rewards import make_reward
from toa_trl.types import Message, Prompt

STUDENT = f"{WEIGHTS}/student"
pytestmark = pytest.mark.heavy


def demo(name: str, output: Path, dataset: Path, *options: object) -> tuple[object, ...]:
    config = ("--config", f"recipes/configs/demo/{name}.yaml", "--model_name_or_path", STUDENT)
    return (
        f"recipes/{name}.py",
        *config,
        "--dataset_name",
        dataset,
        "--output_dir",
        output,
        *options,
    )


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["kto", "orpo", "simpo"])
def test_methods(training_data: Path, tmp_path: Path, method: str) -> None:
    options = ("--method", method, "--max_steps", 2, "--learning_rate", 1e-3)
    done = launch(*demo("preference", tmp_path / "out", training_data / "dpo", *options))
    assert done.returncode == 0, done.stderr
    assert not same(weights(tmp_path / "out"), weights(ROOT / STUDENT))
    card = (tmp_path / "out" / "README.md").read_text()
    assert {"kto": "KTO", "orpo": "ORPO", "simpo": "SimPO"}[method] in card


def test_a_reward_model_of_the_pairs_tells_right_from_wrong(
    training_data: Path, tmp_path: Path
) -> None:
    done = launch(*demo("reward", tmp_path / "rm", training_data / "dpo", "--num_train_epochs", 12))
    assert done.returncode == 0, done.stderr
    reward = make_reward({"kind": "classifier", "model": str(tmp_path / "rm"), "device": "cpu"})
    from datasets import load_dataset

    right = 0
    for row in (rows := load_dataset(str(training_data / "dpo"), split="train")):
        prompt = Prompt(row["prompt_id"], (Message("user", row["prompt"][0]["content"]),))
        chosen, rejected = wait(
            reward.score(prompt, [row["chosen"][0]["content"], row["rejected"][0]["content"]])
        )
        right += chosen > rejected
    assert right > 0.7 * len(rows)  # of those that it has seen; a coin gets half


def test_rows_that_teach_nothing_and_responses_without_an_end_are_counted(tmp_path: Path) -> None:
    long = "1 " * 300
    chosen = [*"01234", long, long, "7"]  # the sixth is cut; the seventh is cut to be its rejected
    rejected = [*["no"] * 6, long + "no", "no"]
    prompts = [long, long, *["2 + 3?"] * 6]
    columns = {"sft": {"completion": chosen}, "dpo": {"chosen": chosen, "rejected": rejected}}
    for name, responses in columns.items():
        (tmp_path / name).mkdir()
        with (tmp_path / name / "train.jsonl").open("w") as file:
            for number, prompt in enumerate(prompts):
                row = {"prompt": [{"role": "user", "content": prompt}]}
                for column, texts in responses.items():
                    row[column] = [{"role": "assistant", "content": texts[number]}]
                file.write(json.dumps(row) + "\n")
    of_recipe: dict[str, tuple[tuple[object, ...], list[str]]] = {
        "sft": ((), ["2 of 8 rows", "2 of 6 responses"]),
        "sft packed": (("--packing", "true"), ["2 of 8 rows", "2 of 6 responses"]),
        "reward": ((), ["4 of 8 rows"]),
        "dpo": ((), ["2 of 8 rows", "1 of 8 rows", "1 of 10 responses"]),
        "preference kto": (("--method", "kto"), ["4 of 16 rows", "3 of 12 responses"]),
        "preference simpo": ((), ["1 of 8 rows", "2 of 8 rows", "1 of 10 responses"]),
        "preference orpo": (
            ("--method", "orpo"),
            ["1 of 8 rows", "2 of 8 rows", "1 of 10 responses"],
        ),
    }
    recipes = []
    for number, (name, (options, _)) in enumerate(of_recipe.items()):
        recipe = name.partition(" ")[0]
        data = tmp_path / ("sft" if recipe == "sft" else "dpo")
        recipes.append(demo(recipe, tmp_path / str(number), data, "--max_steps", 1, *options))
    done = run(*launched("single_cpu", recipes))
    assert done.returncode == 0, done.stderr
    warnings = [line.partition("WARNING: ")[2] for line in done.stderr.splitlines()]
    said = [line for line in warnings if "teach" in line]
    assert [re.findall(r"^\d+ of \d+ \w+", line)[0] for line in said] == [
        count for _, counts in of_recipe.values() for count in counts
    ], said
    prompt = "the prompt alone is longer than max_length 256"
    either = "chosen or rejected is longer than max_length 256"
    same = "chosen and rejected are the same tokens within max_length 256"
    empty = "no response is left by max_length 256"
    cut = "they have no end, and teach the student not to stop"
    reasons = [prompt, cut] * 2 + [either, prompt, same, cut, prompt, cut] + [same, empty, cut] * 2
    assert [reason in line for reason, line in zip(reasons, said, strict=True)] == [True] * 16, said
    assert all((tmp_path / str(number) / "model.safetensors").is_file() for number in range(7))


def test_a_mistake_ends_every_process_of_a_launch(training_data: Path, tmp_path: Path) -> None:
    recipe = demo("dpo", tmp_path / "out", training_data / "sft")
    done = run(*launched("ddp", [recipe], "--num_processes", 2))
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the columns chosen and rejected are needed" in errors[0]


def test_runs_are_mixed_and_trackers_know_of_them(training_data: Path, tmp_path: Path) -> None:
    for name, digits in {"first": "1", "second": "2"}.items():  # as two runs of this package
        shutil.copytree(training_data, tmp_path / name)
        (tmp_path / name / "lineage.json").write_text(
            json.dumps({"fingerprint": digits * 16, "search": "toa"})
        )
    config = yaml.safe_load((ROOT / "recipes/configs/demo/dpo.yaml").read_text())
    del config["dataset_name"]
    parts = [
        {"path": str(tmp_path / "first"), "fraction": 3},
        {"path": str(tmp_path / "second"), "fraction": 1},
    ]
    config |= {
        "datasets": parts,
        "report_to": ["tensorboard", "trackio"],
        "model_name_or_path": STUDENT,
        "beta": 0.3,
    }
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({**config, "output_dir": str(tmp_path / "out")})
    )
    options = ("--config", tmp_path / "config.yaml", "--use_peft")
    done = launch("recipes/dpo.py", *options, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert [(part["fingerprint"], part["fraction"]) for part in state["data"]] == [
        ("1" * 16, 3),
        ("2" * 16, 1),
    ]

    (database,) = (tmp_path / "trackio").glob("*.db")
    with closing(sqlite3.connect(database)) as trackio:
        ((told,),) = trackio.execute("SELECT config FROM configs").fetchall()
    told = json.loads(told)
    assert told["beta"] == 0.3
    assert [part["fingerprint"] for part in told["toa_trl"]["data"]] == ["1" * 16, "2" * 16]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "out" / "runs").iterdir()
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    (event,) = accumulator.Tensors("model_config/text_summary")
    assert "1" * 16 in event.tensor_proto.string_val[0].decode()
    assert '"toa_trl"' not in (tmp_path / "out" / "adapter_config.json").read_text()


def test_killed_at_any_step_the_same_command_goes_on(training_data: Path, tmp_path: Path) -> None:
    options = (
        "--max_steps",
        30,
        "--save_strategy",
        "steps",
        "--save_steps",
        2,
        "--per_device_train_batch_size",
        4,
        "--resume_from_checkpoint",
        "true",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = launch(*demo("sft", whole, training_data / "sft", *options))
    assert done.returncode == 0, done.stderr

    config = (
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "accelerate_configs/single_cpu.yaml",
    )
    process = subprocess.Popen(
        preloaded(*config, *demo("sft", killed, training_data / "sft", *options)),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not (killed / "checkpoint-4" / "trainer_state.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()  # until every process has ended
    assert not (killed / "model.safetensors").exists()
    last = max(int(path.name.split("-")[1]) for path in killed.glob("checkpoint-*"))
    half = killed / f"checkpoint-{last + 2}"  # as one that was being written
    shutil.copytree(
        killed / "checkpoint-4",
        half,
        ignore=shutil.ignore_patterns("trainer_state.json", "optimizer.pt"),
    )

    done = launch(*demo("sft", killed, training_data / "sft", *options))
    assert done.returncode == 0, done.stderr
    assert same(weights(whole), weights(killed))
