"""Executes the commands that README and docs/ show, as printed, in this process.

One table says what stands for what a reader has and this machine lacks: models of the Hub are
bundled ones in its cache, and the time and the devices of a GPU are one step on the CPU.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from tests.docs.snippets import ROOT
from tests.integration.test_fleet import LAUNCHER, free_ports, within
from tests.scripts.test_slurm import start as start_script
from toa_trl.cli.main import run as toa_trl
from toa_trl.data import prompts
from toa_trl.demo.world import DATA

WEIGHTS = DATA.parent / "weights"
BUNDLED = {
    "Qwen/Qwen2.5-0.5B-Instruct": "student",
    "Qwen/Qwen2.5-1.5B-Instruct": "add",
    "Qwen/Qwen2.5-32B-Instruct": "generalist",
    "HuggingFaceTB/SmolLM2-360M-Instruct": "generalist",
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": "reward_hackable",
    "meta-llama/Llama-3.1-8B-Instruct": "student",
    "meta-llama/Meta-Llama-3-8B-Instruct": "student",
}
"""Models of the Hub -> the bundled models that are in its cache in their place."""
PROMPTS = {
    "trl-lib/ultrafeedback-prompt": {"train": "prompts.jsonl", "test": "heldout.jsonl"},
    "openai/gsm8k": {"train": "questions.jsonl"},
}
"""Data sets of the Hub -> the files of their splits."""
TEXTS = {
    "device: cuda, dtype: bfloat16": "device: cpu",
    ", ...": "",
    "...": f"--model_name_or_path {WEIGHTS}/student --output_dir runs/further",
    "RANK": "0",
}
"""Further texts -> what a reader writes in their place."""
SHORTER = {
    "toa-trl synthesize --config run.yaml": ["--sampling.max_tokens", "32"],
    "toa-trl evaluate": ["--sampling", "{max_tokens: 32}"],
    "toa-trl synthesize --config demo": ["--num_prompts", "12", "--budget", "6"],
    ".venv/bin/toa-trl synthesize": ["--num_prompts", "3", "--budget", "6"],
    "toa-trl serve --config demo": ["--port", str(free_ports(1))],
    "toa-trl view": ["--port", "0"],
    "python recipes/compare.py": ["--num_prompts", "2", "--budgets", "4", "--seeds", "0"],
}
"""Beginnings of commands -> options behind it, so that it takes seconds."""


PROGRAMS = {"toa-trl", "python", "accelerate", "sbatch"}
"""What `execute` executes."""


def replaced(text: str) -> str:
    """Return a text with what stands here for its models and devices."""
    for name, here in TEXTS.items():
        text = text.replace(name, here)
    return text


@contextmanager
def bundled_world(cache: Path) -> Iterator[Path]:
    """Let bundled models, and files of this folder, stand for those of the Hub.

    Args:
        cache: folder that is the Hub's cache meanwhile.
    """
    from huggingface_hub import constants

    read = prompts._read_dataset

    def read_dataset(
        source: str, name: str, config: Any, split: str, texts: Any, **options: Any
    ) -> Any:
        if name in PROMPTS:
            here = PROMPTS[name][split]
            return read(source, "json", config, "train", texts, data_files=here)
        return read(source, name, config, split, texts, **options)

    for name, weights in BUNDLED.items():
        folder = cache / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text("0" * 40)
        shutil.copytree(WEIGHTS / weights, folder / "snapshots" / ("0" * 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(prompts, "_read_dataset", read_dataset)
        yield cache


@contextmanager
def short_trainings() -> Iterator[None]:
    """Every training of TRL makes one step on the CPU."""
    from transformers import TrainingArguments
    from trl import ModelConfig

    of_training, of_model = TrainingArguments.__post_init__, ModelConfig.__post_init__

    def one_step(self: Any) -> None:
        self.max_steps, self.gradient_accumulation_steps = 1, 1
        self.use_cpu, self.bf16, self.report_to = True, False, "none"
        of_training(self)

    def without_kernels(self: Any) -> None:
        self.attn_implementation = None
        of_model(self)

    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.setattr(TrainingArguments, "__post_init__", one_step)
        patch.setattr(ModelConfig, "__post_init__", without_kernels)
        yield


def execute(words: Sequence[str]) -> None:
    """Execute a command in this process and folder."""
    line = " ".join(words)
    for beginning, options in SHORTER.items():
        if line.startswith(beginning):
            words = [*words, *options]
    program, *arguments = words
    match program.rpartition("/")[2]:
        case "toa-trl" if arguments[0] == "serve-agents":
            serve_fleet(Path("fleet.yaml"))
        case "toa-trl":
            toa_trl(arguments)
        case "python":
            run_script(arguments)
        case "accelerate":
            run_script(launched(arguments))
        case "sbatch":
            submit(arguments)
        case _:
            pytest.fail(f"{line}: neither executed nor in NOT_EXECUTED")


def run_script(arguments: Sequence[str]) -> None:
    """Execute `python ARGUMENTS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(arguments))
        runpy.run_path(arguments[0], run_name="__main__")


def launched(arguments: Sequence[str]) -> list[str]:
    """Return the script that `accelerate ARGUMENTS` starts, and its arguments."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    assert arguments[0] == "launch"
    options = launch_command_parser().parse_args(arguments[1:])
    load_config_from_file(options.config_file)
    return [options.training_script, *options.training_script_args]


def submit(arguments: Sequence[str]) -> None:
    """Execute `sbatch ARGUMENTS`: the script runs on this machine, and its pipeline is not run."""
    script = next(number for number, word in enumerate(arguments) if word.endswith(".sbatch"))
    code, errors, seen = start_script(Path.cwd(), *arguments[script:])
    assert (code, errors) == (0, "")
    assert f"python -m toa_trl run {' '.join(arguments[script + 1 :])}" in seen


def serve_fleet(config: Path) -> None:
    """Execute `toa-trl serve-agents` with servers that are none, until all of them are healthy."""
    fleet = yaml.safe_load(config.read_text())
    port = free_ports(5)
    for number, server in enumerate(fleet["servers"]):
        server["port"] = port + 2 * number  # the first one has two replicas
    fleet["launcher"] = LAUNCHER.replace("tests/", f"{ROOT}/tests/")
    config.write_text(yaml.safe_dump(fleet))
    process = subprocess.Popen(
        [sys.executable, "-m", "toa_trl", "serve-agents", "--config", config]
    )
    try:
        within(60, Path(fleet["endpoints"]).exists)
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def run_until_parsed(arguments: Sequence[str]) -> None:
    """Execute `python ARGUMENTS` until it has read its options."""

    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def stop(*given: Any, **keys: Any) -> None:
        parse(*given, **keys)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed):
            run_script(arguments)


@contextmanager
def ctrl_c_when_ready(module: str, ask: Callable[[str], object]) -> Iterator[None]:
    """Ask a server that a command of this thread starts at the address that it prints, then end it.

    Args:
        module: whose `say` prints the address.
        ask: called with it, in another thread.
    """
    failures, threads = list[BaseException](), list[threading.Thread]()

    def ask_and_stop(url: str) -> None:
        try:
            ask(url)
        except BaseException as failure:
            failures.append(failure)
        os.kill(os.getpid(), signal.SIGINT)

    def say(text: object) -> None:
        url = re.search(r"http://[\w.:/]+", str(text))
        assert url
        threads.append(threading.Thread(target=ask_and_stop, args=[url[0]]))
        threads[-1].start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{module}.say", say)
        with suppress(KeyboardInterrupt):
            yield
    (thread,) = threads
    thread.join()
    for failure in failures:
        raise failure


def fetch(url: str) -> None:
    """Ask for a page."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert answer.status == 200


def clone(folder: Path) -> Path:
    """Return a folder that looks like a clone: its scripts and configurations are this one's."""
    for name in ("recipes", "accelerate_configs", "scripts", "toa_trl"):
        (folder / name).symlink_to(ROOT / name)
    return folder
