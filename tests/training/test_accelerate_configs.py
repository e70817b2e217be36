"""accelerate_configs/.

What accelerate itself makes of the files, and how training in CPU processes is made ready.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from toa_trl.utils.compat import prepare_cpu_training

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
NAMES = {
    "single_cpu",
    "single_gpu",
    "ddp",
    "fsdp2",
    "zero1",
    "zero2",
    "zero3",
    "zero3_offload",
    "multi_node",
}
by_name = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_all_are_there() -> None:
    assert {path.stem for path in FILES} == NAMES


@by_name
def test_accelerate_knows_every_key(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))  # refuses unknown keys, but not within a section
    known = {action.dest for action in launch_command_parser()._actions}
    sections = {
        key: value
        for key, value in yaml.safe_load(path.read_text()).items()
        if isinstance(value, dict)
    }
    assert {key for section in sections.values() for key in section} <= known
    assert config.mixed_precision is None, "the recipe's bf16 decides, on GPUs and CPUs alike"
    assert getattr(config, "gpu_ids", None) is None, "it would override CUDA_VISIBLE_DEVICES"


@by_name
def test_the_first_line_is_a_command_that_can_be_typed(path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    first = path.read_text().splitlines()[0]
    assert first.startswith("# accelerate launch ")
    typed = launch_command_parser().parse_args(shlex.split(first)[3:])
    assert ROOT / typed.config_file == path
    assert (ROOT / typed.training_script).is_file()
    option, config = typed.training_script_args
    assert option == "--config"
    (says,) = re.findall("recipes/[a-z]+.py", (ROOT / config).read_text().splitlines()[0])
    assert says == typed.training_script


def configuration(device: str, distributed_type: str = "MULTI_CPU", plugin: Any = None) -> Any:
    from accelerate.utils import DistributedType

    state = SimpleNamespace(distributed_type=DistributedType(distributed_type))
    return SimpleNamespace(
        device=SimpleNamespace(type=device),
        distributed_state=state,
        deepspeed_plugin=plugin,
        use_cpu=device == "cpu",
    )


@pytest.mark.parametrize(("device", "then"), [("cpu", "MULTI_GPU"), ("cuda", "MULTI_CPU")])
def test_fsdp_shards_among_cpus_too(
    monkeypatch: pytest.MonkeyPatch, device: str, then: str
) -> None:
    training = configuration(device)
    prepare_cpu_training(training)
    assert training.distributed_state.distributed_type == "MULTI_CPU"  # DDP stays what it is
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    prepare_cpu_training(training)
    assert training.distributed_state.distributed_type == then


def test_deepspeed_compiles_nothing_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")  # put back afterwards
    import deepspeed.ops

    collectives = importlib.import_module(
        "deepspeed.comm.torch"
    )  # deepspeed.comm has torch itself by that name

    monkeypatch.setattr(
        deepspeed.ops, "__compatible_ops__", {"deepspeed_shm_comm": True}, raising=False
    )
    on_gpu = SimpleNamespace(deepspeed_config={})
    prepare_cpu_training(configuration("cuda", plugin=on_gpu))
    assert on_gpu.deepspeed_config == {}
    assert deepspeed.ops.__compatible_ops__ == {"deepspeed_shm_comm": True}

    plugin = SimpleNamespace(deepspeed_config={})
    prepare_cpu_training(configuration("cpu", plugin=plugin))
    assert plugin.deepspeed_config == {"zero_force_ds_cpu_optimizer": False}
    assert collectives.build_shm_op() is None  # so that it uses gloo
