"""The commands of trainings: from which model, on which data, with which earlier rounds."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from toa_trl.cli.arguments import config_of, key_of
from toa_trl.models.sources import last_checkpoint
from toa_trl.pipeline.config import StageConfig
from toa_trl.utils.files import read_yaml, replace_text
from toa_trl.utils.subprocesses import configurations

if TYPE_CHECKING:
    from toa_trl.pipeline.plan import Plan

MARK = "# Written by a pipeline of toa_trl, and replaced when the stage starts again."
TOA_TRL = [sys.executable, "-m", "toa_trl"]


def training_identity(stage: StageConfig) -> dict[str, Any]:
    """Return what decides the result of a training as typed in a shell, on given data."""
    assert stage.command is not None
    files = {str(file): read_yaml(file) for file in configurations(stage.command)}
    data = (stage.data or "").rpartition("/")[2]
    return {"command": stage.command, "data": data, "configurations": files}


def training_command(plan: Plan, stage: StageConfig, number: int) -> list[str]:
    """Return the argv of a training of a round; writes its configuration.

    A training that was interrupted resumes from its last checkpoint that is whole.
    """
    folder = plan.folder(number, stage.folder)
    options: dict[str, Any] = {"output_dir": folder, "seed": plan.config.seed + max(number - 1, 0)}
    if (model := plan.start(stage, number)) is not None:
        options = {"model_name_or_path": model, **options}
    data, earlier = plan.data(stage, number), _replayed(plan, stage, number)
    if data is not None and not earlier:
        options["dataset_name"] = data
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        options["resume_from_checkpoint"] = checkpoint
    if stage.command:
        argv = shlex.split(stage.command)
        content = config_of(argv)[1] if earlier else {}
    else:
        argv = [*TOA_TRL, stage.run, *launch_options(stage)]
        content = plan.content(stage, number)
    if data is not None:
        content.pop("dataset_name", None)
    if earlier and data is not None:
        content["datasets"] = _mixture(plan, data, earlier)
    if content:
        file = folder.with_name(f"{stage.folder}.yaml")
        write_config(file, content)
        argv = _with_config(argv, file)
    for key, value in options.items():
        argv += [f"--{key}", str(value)]
    return argv


def write_config(file: Path, content: Mapping[str, Any]) -> None:
    """Write the configuration of a stage's command, marked as this package's."""
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, f"{MARK}\n{text}")


def is_config(file: Path) -> bool:
    """Return whether a file is a configuration that `write_config` wrote."""
    try:
        return file.read_text(encoding="utf-8").startswith(MARK)
    except (OSError, ValueError):
        return False


def launch_options(stage: StageConfig) -> list[str]:
    """Return the options of accelerate of a training, with as many processes as GPUs."""
    launch = dict(stage.launch)
    if stage.gpus and (launch or len(stage.gpus) > 1):
        launch.setdefault("num_processes", len(stage.gpus))
    options = []
    for key, value in launch.items():
        if value is not False:
            options += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return options


def replayed_rounds(plan: Plan, number: int) -> list[int]:
    """Return the earlier rounds whose data a round learns from again, the newest first."""
    replay = plan.config.replay
    if replay is None:
        return []
    return list(range(number - 1, max(number - 1 - replay.rounds, 0), -1))


def _replayed(plan: Plan, stage: StageConfig, number: int) -> list[Path]:
    """Return the folders of the data of earlier rounds that a training learns from again."""
    if not stage.trains_student or stage.run == "grpo":
        return []
    folders = [plan.data(stage, earlier) for earlier in replayed_rounds(plan, number)]
    return [folder for folder in folders if folder is not None]


def _mixture(plan: Plan, data: Path, earlier: list[Path]) -> list[dict[str, Any]]:
    """Return TRL's mixture of the data of a round and of earlier ones.

    No row is taken twice: with rounds of equal size, all rows of this one are in it.
    """
    assert plan.config.replay is not None
    share = plan.config.replay.share
    mixed = [{"path": str(data), "fraction": 1.0 - share}]
    return [*mixed, *({"path": str(path), "fraction": share / len(earlier)} for path in earlier)]


def _with_config(argv: list[str], file: Path) -> list[str]:
    """Return a command with another configuration, and without a dataset of its own."""
    kept: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif key_of(word) in ("config", "dataset_name"):
            skip = "=" not in word
        else:
            kept.append(word)
    return [*kept, "--config", str(file)]
