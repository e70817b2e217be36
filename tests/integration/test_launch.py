"""Every accelerate configuration: SFT and DPO, a model and an adapter, stopped and resumed."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import ENVIRONMENT, ROOT, WEIGHTS, command, launched

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]  # the first test waits for trainings
ZERO = "global_step1/*zero_pp_rank_1_*optim_states.pt"
# the file of a checkpoint that only the second process of such a training writes
CONFIGS = {
    "single_cpu": None,
    "single_gpu": None,
    "ddp": "rng_state_1.pth",
    "fsdp2": "pytorch_model_fsdp.bin",
    **dict.fromkeys(("zero1", "zero2", "zero3", "zero3_offload", "multi_node"), ZERO),
}
# Every configuration trains by both methods, a whole model and an adapter. One process, DDP, FSDP2,
# and ZeRO with and without sharded parameters have all four trainings.
TRAININGS = {"sft_full": {"sft": "full", "dpo": "lora"}, "sft_lora": {"sft": "lora", "dpo": "full"}}
SFT_LORA = ("single_cpu", "ddp", "fsdp2", "zero2", "zero3_offload")
SFT_FULL = ("single_cpu", "single_gpu", "ddp", "fsdp2", "zero1", "zero3", "multi_node")
LAUNCHES = [*((name, "sft_full") for name in SFT_FULL), *((name, "sft_lora") for name in SFT_LORA)]
STALE = ("deepspeed_shm_comm", "cpu_adam")  # what DeepSpeed would compile for CPUs


@dataclass(frozen=True)
class Launcher:
    """Trains by one configuration, into `folder`/<recipe>_<full or lora>/{whole, resumed}."""

    config: str
    kinds: Mapping[str, str]
    data: Path
    folder: Path

    def arguments(self, recipe: str, kind: str, resume: bool) -> list[str]:
        """Return a recipe and its options.

        It makes two steps, each with a checkpoint, or resumes from the first one's checkpoint.
        """
        folder = self.folder / f"{recipe}_{kind}"
        options = {
            "--config": f"recipes/configs/demo/{recipe}.yaml",
            "--model_name_or_path": f"{WEIGHTS}/student",
            "--dataset_name": self.data / recipe,
            "--output_dir": folder / ("resumed" if resume else "whole"),
            "--per_device_train_batch_size": 8,  # two steps within an epoch: resuming skips rows
            "--max_steps": 2,
            "--save_strategy": "steps",
            "--save_steps": 1,
        }
        if kind == "lora":
            options["--use_peft"] = True
        if resume:
            options["--resume_from_checkpoint"] = folder / "whole/checkpoint-1"
        arguments = [f"recipes/{recipe}.py"]
        for option, value in options.items():
            arguments += [option, str(value)]
        return arguments

    def references(self) -> list[list[str]]:
        """DPO with references computed in advance, before and after its student is trained again.

        Both are in one folder, as a user who repeats the two commands has them.
        """
        commands = []
        for rate in ("1e-4", "1e-2"):
            sft = self.arguments("sft", "again", False)
            dpo = self.arguments("dpo", "again", False)
            student = sft[sft.index("--output_dir") + 1]
            dpo[dpo.index("--model_name_or_path") + 1] = student
            dpo += ["--logging_steps", "1"]
            commands += [
                [*sft, "--max_steps", "1", "--learning_rate", rate],
                [*dpo, "--max_steps", "1", "--precompute_ref_log_probs", "true"],
            ]
        return commands

    def hosts(self) -> list[list[str]]:
        """Return the options of `accelerate launch` on each host; both are this machine."""
        if CONFIGS[self.config] is None:
            return [[]]
        options = ["--num_processes", "2"]
        if self.config != "multi_node":
            return [options]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        options += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
        return [[*options, "--machine_rank", rank] for rank in "01"]

    def __call__(self, recipes: Sequence[Sequence[str]]) -> None:
        """Run the recipes one after the other, by `accelerate launch` on each host."""
        environment = {**ENVIRONMENT, "TORCH_EXTENSIONS_DIR": str(self.folder / "extensions")}
        running = [
            subprocess.Popen(
                command(*launched(self.config, recipes, *host)),
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for host in self.hosts()
        ]
        try:
            outputs = [process.communicate(timeout=600)[0] for process in running]
        finally:
            for process in running:
                process.kill()
        assert not any(process.returncode for process in running), "\n".join(outputs)


@pytest.fixture(scope="module", params=LAUNCHES, ids="-".join)
def trained(
    request: pytest.FixtureRequest,
    training_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Launcher:
    """Train by one configuration, and resume in new processes."""
    config, kinds = request.param
    folder = tmp_path_factory.mktemp(config)
    launch = Launcher(config, TRAININGS[kinds], training_data, folder)
    # as killed compilations leave them: torch would wait for these locks forever
    for name in STALE:
        (launch.folder / "extensions" / name).mkdir(parents=True)
        (launch.folder / "extensions" / name / "lock").touch()
    launch([launch.arguments(*training, False) for training in launch.kinds.items()])
    resumed = [launch.arguments(*training, True) for training in launch.kinds.items()]
    launch(resumed + launch.references() if launch.config == "zero3" else resumed)
    return launch


@pytest.fixture(scope="module")
def student() -> dict[str, torch.Tensor]:
    """Return the weights that every training starts from."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ROOT / WEIGHTS / "student")
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def weights(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """Return those of a saved model, as transformers and peft load it."""
    state: dict[str, torch.Tensor]
    if kind == "full":
        from transformers import AutoModelForCausalLM

        model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(loading.values()), loading
        state = model.state_dict()
    else:
        from peft import AutoPeftModelForCausalLM

        state = AutoPeftModelForCausalLM.from_pretrained(folder).state_dict()
    return state


def test_every_configuration_trains() -> None:
    written = {path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml")}
    assert {config for config, _ in LAUNCHES} == written == set(CONFIGS)


@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_a_resumed_training_ends_as_one_that_was_not_stopped(
    trained: Launcher, student: dict[str, torch.Tensor], recipe: str
) -> None:
    kind = trained.kinds[recipe]
    folder = trained.folder / f"{recipe}_{kind}"
    assert (folder / "whole/checkpoint-1").is_dir()
    assert not (folder / "resumed/checkpoint-1").exists(), "it started from the first step"
    proof = CONFIGS[trained.config]
    assert proof is None or list((folder / "whole/checkpoint-1").glob(proof))

    whole, resumed = weights(folder / "whole", kind), weights(folder / "resumed", kind)
    torch.testing.assert_close(resumed, whole)
    after_one = weights(folder / "whole/checkpoint-1", kind)
    assert any(not torch.equal(whole[name], after_one[name]) for name in whole), (
        "the second step changed nothing"
    )
    if kind == "full":
        assert {name: tensor.shape for name, tensor in whole.items()} == {
            n: t.shape for n, t in student.items()
        }
        assert any(not torch.equal(whole[name], student[name]) for name in whole)
    else:  # B is all zeros before the first step
        adapted = [tensor for name, tensor in whole.items() if "lora_B" in name]
        assert adapted
        assert all(tensor.any() for tensor in adapted)


def test_references_are_those_of_the_student_that_is_trained(trained: Launcher) -> None:
    if trained.config != "zero3":
        pytest.skip("its parameters are not sharded when TRL hashes them")
    state = trained.folder / "dpo_again/whole/checkpoint-1/trainer_state.json"
    first = json.loads(state.read_text())["log_history"][0]
    # policy and reference are one model before the first step
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_nothing_is_compiled_and_no_stale_lock_is_waited_for(trained: Launcher) -> None:
    left = {
        path.relative_to(trained.folder / "extensions").as_posix()
        for path in trained.folder.glob("extensions/*/*")
    }
    assert left == {f"{name}/lock" for name in STALE}
    shutil.rmtree(trained.folder)  # some 50 MB
