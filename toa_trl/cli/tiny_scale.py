"""A command of an experiment, scaled down: the same search, files and steps without its models.

Agents answer from a script, rewards measure lengths, prompts are bundled rows with the columns of
the public data sets, and trainings take two steps of the demo's student.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from toa_trl.cli.arguments import find_config
from toa_trl.cli.options import read_config
from toa_trl.cli.schema import CONFIGURATIONS
from toa_trl.errors import ConfigError
from toa_trl.utils.files import load_yaml, map_leaves, read_yaml, replace_text
from toa_trl.utils.registry import load_object

# data set -> bundled rows with its columns
PROMPTS = {
    "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json": "alpaca_eval",
    "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json": "alpaca_eval",
    "lmarena-ai/arena-hard-auto-v0.1": "arena_hard",
    "haoranxu/WMT22-Test": "wmt22",
    "HuggingFaceH4/MATH-500": "math",
    "princeton-nlp/llama3-ultrafeedback-armorm": "ultrafeedback",
    "Magpie-Align/Magpie-Pro-300K-Filtered": "magpie",
}
TRAININGS = ("sft", "dpo")
STUDENT = "demo/weights/student"
# what a training of two steps on a CPU needs
TINY_TRAINING = {
    "dtype": "float32",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "packing": False,
    "max_steps": 2,
    "max_length": 256,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}
VERDICTS = {"pairwise": "Verdict: [[A]]", "arena": "Verdict: [[A>B]]"}
RESPONSES = [
    "It is \\boxed{5}.",
    "The answer is \\boxed{15}.",
    "One half of it, which is \\boxed{18}.",
    "Good morning to everybody here.",
    "Where can I find the station, please?",
    "It is a long story, which begins on a rainy day and ends well for all.",
]
REWARD = {"kind": "length", "target": 8}
NUM_PROMPTS = 2
FEWEST_PLAYS = 10  # two of each of five agents
SHRINK = 32  # a budget of 768 becomes 24


def tiny_command(argv: Sequence[str], folder: Path) -> list[str]:
    """Return a command with a configuration of its own in `folder`, scaled down.

    Args:
        argv: command and options, as after toa-trl.
        folder: takes the place of runs/paper.

    Raises:
        ConfigError: the full configuration is invalid.
    """
    name, *options = argv
    if name in TRAININGS:
        content = _training(options)
    elif name in CONFIGURATIONS:
        config = read_config(load_object("schema", CONFIGURATIONS[name][0]), options)
        content = _sampled(config.model_dump(exclude_unset=True))
    else:
        return [name, *(_moved(folder, option) for option in options)]
    content = map_leaves(partial(_moved, folder), content)
    target = re.sub(r"\W+", "-", str(content.get("output_dir") or content["results"]))
    path = folder / "configs" / f"{name}{target}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return [name, "--config", str(path)]


def _moved(folder: Path, value: Any) -> Any:
    """Return a path in runs/paper moved into the folder; any other value as it is.

    A run of a comparison is named by its search and its budget, such as toa-160.
    """
    if not isinstance(value, str):
        return value
    path = re.sub(r"(?<=/compare/)(\w+-)(\d+)$", _named_by_budget, value)
    return re.sub(r"^runs/paper(?=/)", str(folder), path)


def _named_by_budget(match: re.Match[str]) -> str:
    return f"{match[1]}{_budget(int(match[2]))}"


def _budget(full: int) -> int:
    return max(FEWEST_PLAYS, full // SHRINK)


def _training(options: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a training with its options, scaled down."""
    given = dict(zip(options[::2], options[1::2], strict=True))
    content = read_yaml(find_config(given.pop("--config")))
    given.pop("--accelerate_config", None)
    settings = content | {key.removeprefix("--"): load_yaml(text) for key, text in given.items()}
    for key in ("attn_implementation", "packing_strategy", "precompute_ref_batch_size"):
        settings.pop(key, None)
    known = dict(TINY_TRAINING)
    if "packing" not in settings:  # an option of SFT alone
        known.pop("packing")
    if not str(settings["model_name_or_path"]).startswith("runs/"):
        settings["model_name_or_path"] = _bundled(STUDENT)
    return settings | known


def _sampled(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of synthesize, compare or evaluate, scaled down."""
    tiny = dict(settings)
    tiny["prompts"] = _rows(tiny["prompts"], tiny.pop("prompts_config", None))
    tiny["num_prompts"] = NUM_PROMPTS
    tiny.pop("flops_context", None)  # agents without a model have no FLOPs
    for key in ("reward", "second_reward", "comet"):
        if tiny.get(key):
            tiny[key] = REWARD
    if "agents" in tiny:
        tiny["agents"] = [
            {"name": entry["name"], "engine": "scripted", "responses": RESPONSES}
            for entry in tiny["agents"]
        ]
        if "budget" in tiny:
            tiny["budget"] = _budget(tiny["budget"])
        if "budgets" in tiny:
            tiny["budgets"] = list(dict.fromkeys(map(_budget, tiny["budgets"])))
    if (tiny.get("preference") or {}).get("rejected_rank"):
        tiny["preference"] = {**tiny["preference"], "rejected_rank": 2}
    if tiny.pop("alpaca_eval", None):  # asks GPT-4, from an environment of its own
        tiny.setdefault("judge", {})
    if "judge" in tiny:
        mode = tiny["judge"].get("mode", "pairwise")
        agent = {"name": "judge", "engine": "scripted", "responses": [VERDICTS[mode]]}
        tiny["judge"] = {"agent": agent, "mode": mode}
    if "models" in tiny:
        tiny["models"] = [_model(entry) for entry in tiny["models"]]
        tiny["sampling"] = {**tiny.get("sampling", {}), "max_tokens": 16}
    return tiny


def _model(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of an evaluated model, scaled down."""
    if entry["engine"] == "recorded" and not entry["path"].startswith("runs/"):
        return {**entry, "path": _rows(entry["path"], None)}
    if entry["engine"] in ("vllm", "transformers"):
        model = entry["model"] if entry["model"].startswith("runs/") else _bundled(STUDENT)
        return {"name": entry["name"], "engine": "transformers", "model": model, "device": "cpu"}
    return entry


def _rows(source: str, config: str | None) -> str:
    if source not in PROMPTS:
        raise ConfigError(f"prompts: {source!r} has no bundled rows for --scale tiny")
    suffix = f"_{config}" if config else ""
    return _bundled(f"demo/data/paper_{PROMPTS[source]}{suffix}.jsonl")


def _bundled(path: str) -> str:
    return str(files("toa_trl").joinpath(path))
