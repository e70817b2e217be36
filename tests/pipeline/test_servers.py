"""GPUs of stages, and servers that run during a stage and not a moment longer."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from tests.helpers import wait
from tests.integration.test_fleet import within
from tests.pipeline.conftest import plan_of, with_stage
from tests.pipeline.test_pipeline import killed_at, quiet
from toa_trl.errors import ConfigError, ToaError
from toa_trl.pipeline import gpus
from toa_trl.pipeline.fleets import fleet_of
from toa_trl.pipeline.run import run_plan
from toa_trl.rewards.deferred import models_in

Seen = Callable[[], list[dict[str, Any]]]
needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the fleet is for Linux"
)


def starts(folder: Path) -> list[dict[str, Any]]:
    file = folder / "starts"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def alive(folder: Path) -> list[int]:
    """The servers of a pipeline that still run."""
    return [start["pid"] for start in starts(folder) if psutil.pid_exists(start["pid"])]


@needs_linux
def test_servers_run_during_their_stage_and_every_stage_has_its_gpus(
    served: dict[str, Any], stub: Seen, tmp_path: Path
) -> None:
    lines: list[str] = []
    wait(run_plan(plan_of(served), lines.append))
    port = served["servers"]["servers"][0]["port"]
    synthesis, sft = stub()
    agent = synthesis["config"]["agents"][0]
    assert agent["base_url"] == [f"http://127.0.0.1:{port + n}/v1" for n in (0, 1)]
    assert agent["model"] == "meta/llama"
    assert (synthesis["gpus"], sft["gpus"]) == ("0", "0,1")
    assert "--num_processes 2" in " ".join(sft["argv"])  # one for each GPU
    assert sorted(start["gpus"] for start in starts(tmp_path)) == ["1", "2"]
    assert "starting llama-0, llama-1" in lines[0]
    assert alive(tmp_path) == []
    assert not list(tmp_path.glob("out/*.endpoints.yaml"))


@needs_linux
def test_no_server_outlives_a_pipeline_that_is_killed(
    served: dict[str, Any], stub: Seen, tmp_path: Path
) -> None:
    killed_at("synthesize", served)
    within(30, lambda: not alive(tmp_path))
    wait(run_plan(plan_of(served), quiet))
    assert len(starts(tmp_path)) == 4
    assert alive(tmp_path) == []


@needs_linux
def test_a_server_that_never_becomes_healthy_is_one_line(
    served: dict[str, Any], stub: Seen, tmp_path: Path
) -> None:
    message = r"synthesize: its servers have ended: llama-[01] was not healthy within 1\.5 s"
    ends_without_a_stage(served, 0, message, tmp_path)


def ends_without_a_stage(served: dict[str, Any], number: int, message: str, tmp_path: Path) -> None:
    """Run a pipeline whose server with this number never becomes healthy."""
    served["servers"]["start_timeout_s"] = 1.5
    served["servers"]["servers"][number]["env"]["FAKE_DELAY_S"] = 60
    with pytest.raises(ToaError, match=message) as raised:
        wait(run_plan(plan_of(served), quiet))
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "seen").exists()  # no stage has begun
    assert alive(tmp_path) == []


@needs_linux
def test_a_stage_ends_when_its_servers_have_ended(
    served: dict[str, Any], stub: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_HANGS", "synthesize")
    served["servers"]["max_restarts"] = 0
    served["servers"]["servers"][0]["env"]["FAKE_DIES_S"] = 3
    with pytest.raises(ToaError, match=r"synthesize: its servers have ended: llama-[01] died"):
        wait(run_plan(plan_of(served), quiet))
    assert alive(tmp_path) == []
    assert not Path(served["output_dir"], "synthesize/complete.json").exists()


def test_a_port_in_use_is_found_before_the_first_stage(
    served: dict[str, Any], stub: Seen, tmp_path: Path
) -> None:
    port = served["servers"]["servers"][0]["port"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", port + 1))
        other.listen()
        with pytest.raises(ConfigError, match=f"server 'llama-1': port {port + 1} is in use"):
            wait(run_plan(plan_of(served), quiet))
    assert not (tmp_path / "seen").exists()


@pytest.mark.parametrize(
    ("number", "keys", "message"),
    [
        (0, {"gpus": [1]}, r"stages\[0\]\.gpus: GPU 1 is that of the server llama-0"),
        (1, {"gpus": [4]}, r"stages\[1\]: GPU 4 of sft does not exist; there are 4, counted from"),
        (1, {"gpus": None}, r"stages\[1\]\.gpus: the key is missing; sft needs a GPU"),
        (1, {"launch": {"num_processes": 4}}, r"launch\.num_processes: must be 2, the number of"),
        (0, {"servers": []}, r"stages\[0\]\.config\.agents\[0\]: the key 'model' is missing"),
    ],
)
def test_a_wrong_map_of_gpus_is_one_line(
    number: int, keys: dict[str, Any], message: str, served: dict[str, Any], stub: Seen
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        wait(run_plan(plan_of(with_stage(served, number, **keys)), quiet))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gpus": [[1], [5]]}, r"GPU 5 of llama-1 does not exist"),
        ({"gpus": None}, "servers: llama has no gpus; without them it would take GPU 0"),
        ({"gpus": [[1], [1]]}, r"stages\[0\]: servers: llama-0 and llama-1 share GPU 1"),
        ({"port": 0}, r"servers\.servers\[0\]\.port: must be >= 1"),
    ],
)
def test_a_wrong_gpu_of_a_server_is_one_line(
    keys: dict[str, Any], message: str, served: dict[str, Any], stub: Seen
) -> None:
    served["servers"]["servers"][0] |= keys
    with pytest.raises(ConfigError, match=message) as raised:
        wait(run_plan(plan_of(served), quiet))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"launcher": "vllm serve"}, r"servers\.launcher: must be a command that contains {model}"),
        ({"host": "http://here"}, r"servers\.host: must consist of letters, digits"),
    ],
)
def test_what_servers_have_in_common_is_checked_without_a_stage_that_uses_them(
    keys: dict[str, Any], message: str, served: dict[str, Any]
) -> None:
    served["servers"] |= keys
    served["stages"][0]["servers"] = []
    with pytest.raises(ConfigError, match=message):
        plan_of(served)


def test_two_models_of_a_process_do_not_share_a_gpu_by_accident(
    pipeline: dict[str, Any], stub: Seen
) -> None:
    local = [{"name": name, "engine": "transformers", "model": name} for name in "ab"]
    reward: dict[str, Any] = {"kind": "classifier", "model": "r"}
    options: dict[str, Any] = {"agents": local, "reward": reward}
    pipeline["stages"] = [{**pipeline["stages"][0], "gpus": [0, 1], "options": options}]
    with pytest.raises(ConfigError, match="agent 'a' and agent 'b' would share GPU 0 by default"):
        wait(run_plan(plan_of(pipeline), quiet))
    local[1]["device"] = "cuda:1"
    with pytest.raises(ConfigError, match="agent 'a' and the reward would share GPU 0 by default"):
        wait(run_plan(plan_of(pipeline), quiet))
    judge = {"kind": "judge", "agent": {"name": "j", "engine": "transformers", "model": "j"}}
    for nested in ({"reward": reward, "weight": 1.0}, {"reward": judge, "weight": 1.0}):
        options["reward"] = {"kind": "weighted_sum", "rewards": [nested]}
        with pytest.raises(ConfigError, match="agent 'a' and the reward would share GPU 0"):
            wait(run_plan(plan_of(pipeline), quiet))
    options["reward"] = reward
    reward["device"] = "cuda:2"
    with pytest.raises(ConfigError, match=r"the reward names cuda:2, but the stage has 2 GPUs"):
        wait(run_plan(plan_of(pipeline), quiet))
    del reward["device"]
    reward["devices"] = ["cuda:0", "cuda:3"]
    with pytest.raises(ConfigError, match="agent 'a' and the reward would share GPU 0 by default"):
        wait(run_plan(plan_of(pipeline), quiet))
    reward["devices"] = ["cuda:1"]  # on purpose
    wait(run_plan(plan_of(pipeline), quiet))


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        ({"models": [{"name": "a", "engine": "transformers", "model": "a"}]}, "agent 'a'"),
        ({"verifier": {"kind": "classifier", "model": "r"}}, "the verifier"),
        ({"judge": {"agent": {"name": "j", "engine": "transformers", "model": "j"}}}, "the judge"),
    ],
)
def test_an_evaluation_has_the_devices_that_it_names(
    keys: dict[str, Any], label: str, pipeline: dict[str, Any], stub: Seen
) -> None:
    for entry in models_in(list(keys.values())):
        cast("dict[str, Any]", entry)["device"] = "cuda:1"
    evaluation = {**pipeline["stages"][4], "gpus": [2], "options": {"baseline": "a", **keys}}
    pipeline["stages"] = [evaluation]
    if "models" not in keys:
        evaluation["options"] |= {"models": [{"name": "a", "engine": "scripted"}]}
    with pytest.raises(ConfigError, match=f"{label} names cuda:1, but the stage has 1 GPUs"):
        wait(run_plan(plan_of(pipeline), quiet))


def test_gpus_are_counted_inside_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    assert gpus.visible_gpus() == ["4", "6"]
    fleet = {"servers": [{"name": "a", "gpus": [[0], [1]]}, {"name": "b"}]}
    assert gpus.on_machine(fleet, ["4", "6"])["servers"] == [
        {"name": "a", "gpus": [[4], [6]]},
        {"name": "b"},
    ]
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES: servers need numbers"):
        gpus.on_machine(fleet, ["MIG-1", "MIG-2"])


def test_gpus_are_listed_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.visible_gpus() == []  # no driver
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: x)'\necho 'GPU 1: H100 (UUID: y)'\n")
    program.chmod(0o755)
    assert gpus.visible_gpus() == ["0", "1"]


def rounds_of(served: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """Two rounds, in which the student has a server."""
    heldout = served["stages"][0]["config"]["prompts"].replace("prompts", "heldout")
    student = {"name": "student", "engine": "openai", "model": "untrained"}
    pool = served["servers"]["servers"]
    pool.append({"name": "student", "model": "untrained", "port": pool[0]["port"] + 2, "gpus": [3]})
    synthesis, sft = served["stages"]
    stages = [
        {**synthesis, "servers": ["llama", "student"]},
        sft,
        {"run": "evaluate", "config": {"prompts": heldout}, "servers": ["student"]},
    ]
    return {**served, "stages": stages, "student": student, "rounds": 2, **keys}


def test_the_student_of_every_round_is_served_whole(served: dict[str, Any]) -> None:
    plan = plan_of(rounds_of(served))
    synthesis, _, evaluation = plan.stages
    first, second = (fleet_of(plan, synthesis, number) for number in (1, 2))
    assert first is not None
    assert second is not None
    model = str(plan.output / "round-1/sft")
    assert [fleet.servers[1].model for fleet in (first, second)] == ["untrained", model]
    agent = plan.content(synthesis, 2)["agents"][-1]
    assert (agent["name"], agent["model"]) == ("student", model)
    assert agent["base_url"] == [f"http://127.0.0.1:{first.servers[1].port}/v1"]
    evaluated = fleet_of(plan, evaluation, 1)
    assert evaluated is not None
    # the evaluation lists all students, of which the newest one answers
    assert evaluated.servers[0].served_names == ["untrained", model]
    assert [entry["model"] for entry in plan.content(evaluation, 1)["models"]] == [
        "untrained",
        model,
    ]


def test_the_student_is_served_as_an_adapter_of_its_base(served: dict[str, Any]) -> None:
    plan = plan_of(rounds_of(served, serve_as="lora", start_from="base"))
    for number in (1, 2):
        adapter = plan.folder(number, "sft")
        adapter.mkdir(parents=True)
        content = {"base_model_name_or_path": "untrained", "r": 16 * number}
        (adapter / "adapter_config.json").write_text(json.dumps(content))
    fleet = fleet_of(plan, plan.stages[0], 2)
    assert fleet is not None
    options = " ".join(fleet.servers[1].options)
    adapter = plan.folder(1, "sft")
    assert fleet.servers[1].model == "untrained"
    assert f"--enable-lora --lora-modules {adapter}-merged={adapter}" in options
    assert "--max-lora-rank 16" in options
    assert "--served-model-name untrained" in options
    assert plan.content(plan.stages[0], 2)["agents"][-1]["model"] == f"{adapter}-merged"
    evaluated = fleet_of(plan, plan.stages[2], 2)
    assert evaluated is not None
    assert evaluated.servers[0].options.count("--lora-modules") == 1
    second = plan.folder(2, "sft")
    assert f"{second}-merged={second}" in evaluated.servers[0].options
    assert plan.start(plan.stages[1], 2) == "untrained"


def test_a_server_of_the_student_needs_its_stage(served: dict[str, Any]) -> None:
    content = with_stage(rounds_of(deepcopy(served)), 0, servers=["llama"])
    with pytest.raises(ConfigError, match=r"stages\[0\]\.servers: must include 'student'"):
        plan_of(content)
    content = rounds_of(served)
    content["student"] = {**content["student"], "name": "other"}
    with pytest.raises(ConfigError, match=r"student\.engine: .*add a server named 'other'"):
        plan_of(content)
