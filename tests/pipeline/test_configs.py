"""The bundled pipelines are valid: their GPUs, devices, and the memory of their trainings."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from toa_trl.cli.options import read_config
from toa_trl.errors import ConfigError
from toa_trl.pipeline import Plan, check_plan
from toa_trl.pipeline.command import with_option
from toa_trl.pipeline.config import PipelineConfig
from toa_trl.pipeline.gpus import check_gpus
from toa_trl.pipeline.memory import check_memory, sampling_memory, training_needs

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes/configs/pipelines"
PIPELINES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SHAPES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B-Instruct": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128_256, "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151_936, "tie_word_embeddings": True,
    },
}  # fmt: skip


def config_of(place: str, model: str, *rest: object) -> dict[str, Any]:
    """What config.json says of the two students; other agents of one size have that of Llama."""
    if model not in SHAPES and not any(size in model for size in ("7B", "8B", "9b")):
        raise ConfigError(f"{place}: {model} is not here")
    return SHAPES.get(model, SHAPES["meta-llama/Llama-3.1-8B-Instruct"])


def read(name: str, *options: str) -> Plan:
    plan = Plan(read_config(PipelineConfig, with_option([f"pipelines/{name}", *options])))
    check_plan(plan)
    return plan


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for module in ("toa_trl.training.estimate.model", "toa_trl.training.estimate.reward"):
        monkeypatch.setattr(f"{module}.read_config", config_of)


@pytest.mark.parametrize("name", PIPELINES)
def test_its_first_line_starts_it_and_its_gpus_are_there(name: str) -> None:
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    assert shlex.split(first.removeprefix("# ")) == ["toa-trl", "run", f"pipelines/{name}"]
    plan = read(name)
    visible = [str(gpu) for gpu in range(plan.config.machine.gpus or 0)]
    check_gpus(plan, visible)
    for stage in plan.stages:
        if stage.launcher:
            assert (ROOT / stage.launcher).is_file()


@pytest.mark.parametrize("name", ["demo", "few_prompts"])
def test_the_bundled_world_is_found_outside_of_the_clone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = read(name)
    assert Path(plan.content(plan.stages[0], 0)["task"]).is_dir()
    assert Path((plan.config.student or {})["model"]).is_dir()


@pytest.mark.parametrize("name", ["one_gpu", "eight_gpus", "two_nodes"])
def test_its_trainings_fit(name: str) -> None:
    plan = read(name)
    check_memory(plan)
    needs = [training_needs(plan, stage, None) for stage in plan.stages if stage.is_training]
    assert needs
    for need in needs:
        assert need.memory is not None, need.note
        assert 2 < need.memory < 0.9 * (plan.config.machine.gpu_memory or 0)


def test_servers_and_models_in_a_process_fit() -> None:
    plan = read("eight_gpus")
    memory = sampling_memory(plan, plan.stages[0]).memory
    assert memory == pytest.approx(0.9 * 80)  # what vLLM reserves
    content = yaml.safe_load((FOLDER / "eight_gpus.yaml").read_text(encoding="utf-8"))
    content["machine"]["gpu_memory"] = 16
    small = Plan(PipelineConfig.model_validate(content))
    with pytest.raises(ConfigError, match=r"stages\[0\]: the weights of llama-0 take 15\.0 GiB of"):
        sampling_memory(small, small.stages[0])
    content["stages"][0]["servers"] = []
    content["stages"][0]["options"] = {"agents": [_local("a"), _local("b")]}
    content["machine"]["gpu_memory"] = 24
    shared = Plan(PipelineConfig.model_validate(content))
    with pytest.raises(ConfigError, match=r"stages\[0\]: the models on GPU 5 take 44\.\d GiB"):
        sampling_memory(shared, shared.stages[0])


def test_an_evaluation_has_one_model_or_judge_at_a_time() -> None:
    content = yaml.safe_load((FOLDER / "eight_gpus.yaml").read_text(encoding="utf-8"))
    (evaluation,) = (stage for stage in content["stages"] if stage["run"] == "evaluate")
    small = {**_local("small"), "model": "Qwen/Qwen2.5-0.5B-Instruct"}

    def memory_of(*models: dict[str, Any], **keys: Any) -> float | None:
        stage = {**evaluation, "gpus": [0, 1], "servers": []}
        stage["options"] = {"models": [*models], "reward": {"kind": "length"}, **keys}
        plan = Plan(PipelineConfig.model_validate({**content, "stages": [stage]}))
        return sampling_memory(plan, plan.stages[0]).memory

    large = memory_of(_local("large"))
    assert large == pytest.approx(15, abs=1)
    assert memory_of(small, _local("large")) == large
    assert memory_of(small, verifier={"kind": "classifier", "model": "my/8B"}) == large
    assert memory_of(small, judge={"agent": _local("judge")}) == large
    assert memory_of({**_local("large"), "device": "cpu"}) is None
    assert memory_of({**_local("large"), "device": "auto"}) == pytest.approx((large or 0) / 2)
    on_two = {"name": "two", "engine": "vllm", "model": "my/8B", "device": "cuda:0,1"}
    assert memory_of(on_two) == pytest.approx(0.9 * 80)  # what vLLM reserves


def _local(name: str) -> dict[str, Any]:
    return {"name": name, "engine": "transformers", "model": "my/8B", "device": "cuda:0"}


def test_servers_and_replicas_are_each_on_a_gpu_of_their_own() -> None:
    plan = read("eight_gpus")
    servers = plan.config.servers
    assert servers is not None
    taken = [gpu for server in servers.servers for gpus in server["gpus"] for gpu in _flat(gpus)]
    taken += plan.stages[0].gpus or []
    assert sorted(taken) == list(range(8))


def _flat(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]


def test_with_api_keys_no_gpu_is_named() -> None:
    plan = read("api_only")
    assert all(stage.gpus is None for stage in plan.stages)
    content = plan.keys(plan.stages[0])
    entries = [*content["agents"], content["reward"]["agent"]]
    assert all({"base_url", "api_key_env", "price"} <= entry.keys() for entry in entries)
