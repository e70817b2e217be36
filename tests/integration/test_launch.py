"""Every accelerate configuration.

SFT and DPO, whole models and adapters, stopped and resumed, with the commands that users type.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import ENVIRONMENT, ROOT, WEIGHTS

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(1800),
]  # the first test of a configuration waits for its trainings
ZERO = "global_step1/*zero_pp_rank_1_*optim_states.pt"
# what only the second process of this way of training leaves in a checkpoint: proof that it was
# this way
CONFIGS = {
    "single_cpu": None,
    "single_gpu": None,
    "ddp": "rng_state_1.pth",
    "fsdp2": "pytorch_model_fsdp.bin",
    **dict.fromkeys(("zero1", "zero2", "zero3", "zero3_offload", "multi_node"), ZERO),
}
TYPED, TOGETHER = [("sft", "full"), ("dpo", "lora")], [("sft", "lora"), ("dpo", "full")]
STALE = ("deepspeed_shm_comm", "cpu_adam")  # what DeepSpeed would compile for CPUs


@dataclass(frozen=True)
class Launcher:
    """Trains by one configuration, into `folder`/<recipe>_<full or lora>/{whole, resumed}."""

    config: str
    data: Path
    folder: Path

    def arguments(self, recipe: str, kind: str, resume: bool = False) -> list[str]:
        """A recipe and its options.

        Two steps, kept after each, or the second one alone, from the first one's checkpoint.
        """
        folder = self.folder / f"{recipe}_{kind}"
        options = {
            "--config": f"recipes/configs/demo/{recipe}.yaml",
            "--model_name_or_path": f"{WEIGHTS}/student",
            "--dataset_name": self.data / recipe,
            "--output_dir": folder / ("resumed" if resume else "whole"),
            # two steps are less than an epoch: the rows seen have to be skipped, too
            "--per_device_train_batch_size": 8,
            "--max_steps": 2,
            "--save_strategy": "steps",
            "--save_steps": 1,
            **({"--use_peft": True} if kind == "lora" else {}),
            **({"--resume_from_checkpoint": folder / "whole/checkpoint-1"} if resume else {}),
        }
        return [
            f"recipes/{recipe}.py",
            *(str(word) for option in options.items() for word in option),
        ]

    def references(self) -> list[list[str]]:
        """DPO with references computed in advance, before and after its student is trained again.

        Both are in one folder, as a user who repeats the two commands has them.
        """
        commands = []
        for rate in ("1e-4", "1e-2"):
            sft = self.arguments("sft", "again")
            dpo = self.arguments("dpo", "again")
            student = sft[sft.index("--output_dir") + 1]
            dpo[dpo.index("--model_name_or_path") + 1] = student
            dpo += ["--logging_steps", "1"]
            commands += [
                [*sft, "--max_steps", "1", "--learning_rate", rate],
                [*dpo, "--max_steps", "1", "--precompute_ref_log_probs", "true"],
            ]
        return commands

    def __call__(self, *arguments: str) -> None:
        """`accelerate launch ARGUMENTS`.

        On two hosts, both on this machine, where the configuration is about two.
        """
        hosts: list[list[str]] = [[] if CONFIGS[self.config] is None else ["--num_processes", "2"]]
        if self.config == "multi_node":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = [
                    "--main_process_ip",
                    "127.0.0.1",
                    "--main_process_port",
                    str(free.getsockname()[1]),
                ]
            hosts = [[*hosts[0], *address, "--machine_rank", rank] for rank in "01"]
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        launch += [f"accelerate_configs/{self.config}.yaml"]
        environment = {**ENVIRONMENT, "TORCH_EXTENSIONS_DIR": str(self.folder / "extensions")}
        running = [
            subprocess.Popen(
                [*launch, *host, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for host in hosts
        ]
        try:
            said = [process.communicate(timeout=600)[0] for process in running]
        finally:
            for process in running:
                process.kill()
        assert not any(process.returncode for process in running), "\n".join(said)


@pytest.fixture(scope="module", params=CONFIGS)
def trained(
    request: pytest.FixtureRequest, training_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Launcher:
    """All trainings by one configuration.

    Of each recipe one is started alone, as it is typed, the others in one launch.
    """
    launch = Launcher(request.param, training_data, tmp_path_factory.mktemp(request.param))
    for (
        name
    ) in STALE:  # as a killed compilation leaves them: torch would wait for these locks forever
        (launch.folder / "extensions" / name).mkdir(parents=True)
        (launch.folder / "extensions" / name / "lock").touch()
    for cell in TYPED:
        launch(*launch.arguments(*cell))
    others = [launch.arguments(*cell) for cell in TOGETHER]
    others += [launch.arguments(*cell, resume=True) for cell in TYPED + TOGETHER]
    if launch.config == "zero3":
        others += launch.references()
    launch("tests/integration/several.py", json.dumps(others))
    return launch


@pytest.fixture(scope="module")
def student() -> dict[str, torch.Tensor]:
    """The weights that every training starts from."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(ROOT / WEIGHTS / "student").state_dict()


def weights(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """Of a saved model, as transformers and peft load it."""
    if kind == "full":
        from transformers import AutoModelForCausalLM

        model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(loading.values()), loading
        return model.state_dict()
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize(("recipe", "kind"), TYPED + TOGETHER)
def test_what_is_stopped_and_gone_on_with_ends_the_same(
    trained: Launcher, student: dict[str, torch.Tensor], recipe: str, kind: str
) -> None:
    folder = trained.folder / f"{recipe}_{kind}"
    assert (folder / "whole/checkpoint-1").is_dir()
    assert not (folder / "resumed/checkpoint-1").exists(), "it began anew"
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
