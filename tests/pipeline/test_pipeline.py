"""`toa-trl run`: what every stage is given, what is refused, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import wait
from tests.pipeline.conftest import plan_of, with_stage
from toa_trl.cli.main import run as command
from toa_trl.errors import ConfigError, ToaError
from toa_trl.pipeline.checks import prompts_of
from toa_trl.pipeline.dry_run import needs_of, plan_lines
from toa_trl.pipeline.memory import Needs
from toa_trl.pipeline.run import run_plan

Seen = Callable[[], list[dict[str, Any]]]


def quiet(line: str) -> None:
    pass


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(f"--{name}") + 1]


def test_every_stage_is_given_what_the_stages_before_it_left(
    pipeline: dict[str, Any], stub: Seen
) -> None:
    lines: list[str] = []
    wait(run_plan(plan_of(pipeline), lines.append))
    out = pipeline["output_dir"]
    given = {seen["argv"][0]: seen for seen in stub()}
    assert list(given) == [
        *("synthesize", "data", "sft", "merge-adapter", "dpo", "evaluate", "push")
    ]
    assert given["synthesize"]["config"]["output_dir"] == f"{out}/synthesize"
    assert given["data"]["argv"] == [
        *("data", f"{out}/synthesize", "--output", f"{out}/data", "--recipe", "best", "--trust")
    ]
    sft, dpo = given["sft"]["argv"], given["dpo"]["argv"]
    assert given["sft"]["config"] == {"learning_rate": 0.1, "use_peft": True}
    assert (option(sft, "model_name_or_path"), option(sft, "dataset_name")) == (
        "untrained",
        f"{out}/data",
    )
    assert given["dpo"]["config"] == {"beta": 0.1}
    # from the whole model, not from the adapter
    assert option(dpo, "model_name_or_path") == f"{out}/sft-merged"
    assert option(dpo, "dataset_name") == f"{out}/synthesize"
    models = given["evaluate"]["config"]["models"]
    assert [(model["name"], model["model"]) for model in models] == [
        ("base", "untrained"),
        ("sft", f"{out}/sft-merged"),
        ("dpo", f"{out}/dpo"),
    ]
    assert given["push"]["argv"] == ["push", f"{out}/data", "me/data", "--private"]
    assert set(json.loads(Path(out, "results.json").read_text())["student"]) == {
        *("base", "sft", "dpo")
    }
    assert [line.split()[1] for line in lines] == [
        *("synthesize", "data", "sft", "sft-merged", "dpo", "evaluate", "push")
    ]

    lines.clear()
    wait(run_plan(plan_of(pipeline), lines.append))
    assert lines == []  # nothing runs twice


def test_a_stage_names_its_model_its_data_and_what_others_left(
    pipeline: dict[str, Any], stub: Seen
) -> None:
    content = with_stage(pipeline, 3, model="base", config={"ref_model": "stage:sft"})
    plan, out = plan_of(content), pipeline["output_dir"]
    assert plan.start(plan.stages[3], 1) == "untrained"
    assert plan.content(plan.stages[3], 1) == {"ref_model": f"{out}/sft"}
    content = with_stage(pipeline, 3, run="grpo", data=None)
    plan = plan_of(content)
    assert plan.data(plan.stages[3], 1) == Path(out, "synthesize")  # a run, not data alone
    content = with_stage(pipeline, 3, model="some/model", data="synthesize/dpo")
    plan = plan_of(content)
    assert plan.start(plan.stages[3], 1) == "some/model"
    assert plan.data(plan.stages[3], 1) == Path(out, "synthesize/dpo")


@pytest.mark.parametrize(
    ("number", "keys", "message"),
    [
        (2, {"run": "stf"}, r"stages\[2\]\.run: must be one of .*did you mean 'sft'"),
        (2, {"run": "serve"}, r"stages\[2\]\.run: servers are no stage; name them in servers"),
        (2, {"run": None}, r"stages\[2\]: needs either run or command"),
        (2, {"command": "python x.py"}, r"stages\[2\]: needs either run or command"),
        (2, {"name": "dpo"}, "stages: 2 entries have the name 'dpo'"),
        (2, {"name": "../sft"}, r"stages\[2\]\.name: .* cannot be the name of a folder"),
        (2, {"data": "evaluate"}, r"stages\[2\]\.data: must be a synthesize or data stage"),
        (2, {"config": "demo/sfft"}, r"^stages\[2\]\.config: demo/sfft cannot .*mean 'demo/sft'"),
        (3, {"config": {"ref_model": "stage:evaluate"}}, r"stages\[3\]: .* names no stage before"),
        (0, {"options": {"serach": "toa"}}, r"stages\[0\]\.config: unknown key 'serach'"),
        (0, {"options": {"seed": 1}}, r"stages\[0\]\.config\.seed: is set by the pipeline"),
        (0, {"options": {"prompts": "none.jsonl"}}, "none.jsonl"),
        (0, {"servers": ["llama"]}, r"stages\[0\]\.servers: there is no server 'llama'"),
        (4, {"options": {"prompts": "none.jsonl"}}, "none.jsonl"),
        (5, {"config": {}}, r"stages\[5\]\.config: the key 'repo_id' is missing"),
        (2, {"gpus": [0, 0]}, r"stages\[2\]\.gpus: GPU 0 is named 2 times"),
        (0, {"options": {"agents": [{"name": []}]}}, r"stages\[0\].*agents\[0\]\.name: must be a "),
        (0, {"options": {"agents": [{"name": 1}]}}, r"stages\[0\].*agents\[0\]\.name: must be a "),
        (2, {"launch": {"num_processes": "x"}}, r"stages\[2\]\.launch: num_processes must be an"),
        (2, {"launch": {"num_processes": 0}}, r"stages\[2\]\.launch: num_processes must be an"),
        (2, {"launch": {"num_processes": True}}, r"stages\[2\]\.launch: num_processes must be an"),
    ],
)
def test_a_mistake_in_a_stage_is_one_line_before_the_first_stage(
    number: int, keys: dict[str, Any], message: str, pipeline: dict[str, Any], stub: Seen
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        wait(run_plan(plan_of(with_stage(pipeline, number, **keys)), quiet))
    assert len(str(raised.value).splitlines()) == 1
    assert not Path(pipeline["output_dir"]).exists()


@pytest.mark.parametrize(
    ("removed", "keys", "message"),
    [
        ([0, 1], {}, r"stages\[1\]\.data: must be a synthesize or data stage"),
        ([0, 1, 3], {}, r"stages\[2\]: push has no run; put synthesize"),
        ([2, 3], {"student": None}, r"evaluate has no models"),
        ([], {"student": None}, r"stages\[2\]: sft has no model"),
        ([0], {}, r"stages\[0\]: data has no run"),
        ([], {"gate": {}}, "rounds: the key is missing"),
        ([], {"rounds": 2, "student": None}, "student: the key is missing; rounds train it"),
        ([4], {"rounds": 2, "gate": {}}, "gate: needs held-out prompts"),
        (
            [],
            {"rounds": 2, "gate": {"metric": "mean_reward"}},
            r"gate\.metric: .* measures no mean_reward",
        ),
        ([], {"rounds": 2, "prompts_per_round": 4}, "2 rounds need 8 prompts; there are 6"),
    ],
)
def test_a_missing_input_is_one_line_before_the_first_stage(
    removed: list[int], keys: dict[str, Any], message: str, pipeline: dict[str, Any], stub: Seen
) -> None:
    stages = [stage for n, stage in enumerate(pipeline["stages"]) if n not in removed]
    content = {k: v for k, v in {**pipeline, "stages": stages, **keys}.items() if v is not None}
    with pytest.raises(ConfigError, match=message) as raised:
        wait(run_plan(plan_of(content), quiet))
    assert len(str(raised.value).splitlines()) == 1
    assert not Path(pipeline["output_dir"]).exists()


def test_a_package_that_a_training_needs_is_missed_before_the_first_stage(
    pipeline: dict[str, Any],
) -> None:
    stage = next(stage for stage in pipeline["stages"] if stage.get("run") == "sft")
    stage["options"] = {**stage.get("options", {}), "report_to": "swanlab"}
    with pytest.raises(ConfigError, match=r"report_to: swanlab is not installed; pip install"):
        plan_of(pipeline)


def test_a_training_needs_data(pipeline: dict[str, Any]) -> None:
    pipeline["stages"] = [{"run": "dpo"}]
    with pytest.raises(ConfigError, match=r"stages\[0\]: dpo has no data; put synthesize or data"):
        plan_of(pipeline)


@pytest.mark.parametrize(
    ("config", "has_prompts"),
    [
        ({"lm_eval": {"tasks": "gsm8k"}}, False),
        ({"lm_eval": {"tasks": "gsm8k"}, "prompts": ""}, False),
        ({"lm_eval": None, "prompts": "heldout.jsonl"}, True),
    ],
)
def test_an_evaluation_of_benchmarks_needs_no_prompts(
    config: dict[str, Any],
    has_prompts: bool,
    pipeline: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = prompts_of(plan_of(with_stage(pipeline, 4, config=config)))
    assert ("evaluate" in prompts) == has_prompts


def test_an_evaluation_without_benchmarks_needs_prompts(pipeline: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="prompts: the key is missing"):
        prompts_of(plan_of(with_stage(pipeline, 4, config={"lm_eval": {}})))


def test_held_out_prompts_are_not_trained_on(pipeline: dict[str, Any], stub: Seen) -> None:
    prompts = pipeline["stages"][0]["config"]["prompts"]
    content = with_stage(pipeline, 4, config={"prompts": prompts})
    with pytest.raises(ConfigError, match=r"stages\[4\]\.config: 6 of its prompts are among those"):
        wait(run_plan(plan_of(content), quiet))


def test_what_has_begun_cannot_change_and_what_has_not_can(
    pipeline: dict[str, Any], stub: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait(run_plan(plan_of({**pipeline, "stages": pipeline["stages"][:4]}), quiet))
    changed = with_stage(pipeline, 3, config={"beta": 0.2})
    with pytest.raises(ConfigError, match=r"stages\.dpo\.config\.beta: 0\.1 -> 0\.2"):
        wait(run_plan(plan_of(changed), quiet))
    further = with_stage(pipeline, 5, config={"repo_id": "me/other"})
    wait(run_plan(plan_of(further), quiet))
    assert stub()[-1]["argv"][2] == "me/other"


@pytest.mark.parametrize(
    "name",
    ["sft.yaml", "sft.log", "sft", "stages.json", "pipeline.json", "results.json", "report.html"],
)
def test_files_of_others_are_not_replaced(name: str, pipeline: dict[str, Any], stub: Seen) -> None:
    output = Path(pipeline["output_dir"])
    output.mkdir()
    (output / name).write_text("mine: 1\n")
    with pytest.raises(ConfigError, match=f"{name}: was not written by toa_trl"):
        wait(run_plan(plan_of(pipeline), quiet))
    assert [path.name for path in output.iterdir()] == [name]
    assert (output / name).read_text() == "mine: 1\n"


def killed_at(name: str, content: dict[str, Any]) -> None:
    """Kill a pipeline by SIGKILL while a stage has written a part."""
    part = Path(content["output_dir"], name, "part")
    child = os.fork()
    if not child:
        os.environ["STUB_HANGS"] = name
        try:
            wait(run_plan(plan_of(content), quiet))
        finally:
            os._exit(3)
    end = time.monotonic() + 60
    while not part.exists():
        assert time.monotonic() < end
        assert os.waitpid(child, os.WNOHANG) == (0, 0), f"{name}: ended by itself"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_killed_in_every_stage_it_ends_as_one_that_was_never_killed(
    pipeline: dict[str, Any], stub: Seen, tmp_path: Path
) -> None:
    whole = {**pipeline, "output_dir": str(tmp_path / "whole")}
    wait(run_plan(plan_of(whole), quiet))
    num_commands = len(stub())
    for name in ("synthesize", "data", "sft", "sft-merged", "dpo", "evaluate", "push"):
        killed_at(name, pipeline)
    wait(run_plan(plan_of(pipeline), quiet))
    assert len(stub()) == 2 * num_commands + 7  # each that was killed ran twice, no other
    resumed = [seen["argv"][0] for seen in stub() if "--resume_from_checkpoint" in seen["argv"]]
    assert resumed == ["sft", "dpo"]
    one, two = Path(whole["output_dir"]), Path(pipeline["output_dir"])
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    kept = ("data", "model.safetensors", "results.json", "pipeline.json")
    compared = [file for file in files if file.name in kept]
    assert len(compared) >= 7
    for file in compared:
        assert (one / file).read_text() == (two / file).read_text(), file


def test_a_stage_that_fails_shows_its_last_lines(
    pipeline: dict[str, Any], stub: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    content = with_stage(pipeline, 2, run=None, name="sft", command="python -c 1/0", config=None)
    with pytest.raises(ToaError, match=r"sft: ended with code 1; (?s:.*)ZeroDivisionError"):
        wait(run_plan(plan_of(content), quiet))
    command(["status", pipeline["output_dir"]])
    out = capsys.readouterr().out
    assert "not running" in out
    states = {line.split()[0]: line.split()[1].strip(",") for line in out.splitlines()[1:]}
    assert states == {
        "synthesize": "complete",
        "data": "complete",
        "sft": "interrupted",
        "dpo": "waiting",
        "evaluate": "waiting",
        "push": "waiting",
    }


def test_a_dry_run_prints_the_plan_and_starts_nothing(
    pipeline: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({**pipeline, "machine": {"gpus": 1}, "dry_run": True}))
    command(["run", str(file)])
    out = capsys.readouterr().out
    for stage in pipeline["stages"]:
        assert f"| {stage['run']} " in out
    assert "Hours: 0.0 (not known of 4 stages); cost: 0.00" in out  # data and push take none
    assert not Path(pipeline["output_dir"]).exists()


def test_a_dry_run_says_the_whole_reason_of_what_it_does_not_know(
    pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = f"the file {'long/' * 25}config.json is missing; {'and so on, ' * 9}end"

    def fails(options: Any) -> None:
        raise ConfigError(reason)

    monkeypatch.setattr("toa_trl.training.estimate.command.estimate_of", fails)
    said = "\n".join(plan_lines(plan_of(pipeline)))
    assert f"- sft: memory is not known: {reason}" in " ".join(said.split())
    assert max(len(line) for line in said.splitlines() if "long/" not in line) <= 100


LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14_336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128_256, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(name="llama")
def _llama(pipeline: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A pipeline that trains an 8B model on two GPUs of 80 GiB; its weights are not there."""
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_text(json.dumps(LLAMA_8B))
    price = {"prompt": 1.0, "completion": 3.0}
    options = {"budget": 10, "agents": [{"name": "a", "engine": "scripted", "price": price}]}
    sft = {"use_peft": True, "dtype": "bfloat16", "max_length": 1024, "lora_r": 16}
    sft["lora_target_modules"] = ["q_proj", "v_proj"]
    dpo = {**sft, "precompute_ref_log_probs": True}
    stages = [
        {**pipeline["stages"][0], "options": options, "gpus": [0]},
        {"run": "sft", "config": sft, "gpus": [0, 1]},
        {"run": "dpo", "config": dpo, "gpus": [0, 1]},
        {**pipeline["stages"][4], "gpus": [1], "hours": 0.5},
    ]
    student = {"name": "student", "engine": "transformers", "model": str(tmp_path / "llama")}
    machine = {"gpus": 2, "gpu_memory": 80, "gpu": "H100", "price": 2.0, "mean_tokens": 100}
    return {**pipeline, "stages": stages, "student": student, "machine": machine}


def test_the_plan_has_memory_hours_and_cost_of_every_stage(llama: dict[str, Any]) -> None:
    lines = list(plan_lines(plan_of(llama)))
    rows = {
        cells[0]: cells[1:]
        for line in "\n".join(lines).splitlines()
        if line.startswith("|")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert rows["stage"] == ["GPUs", "servers", "GiB of each", "hours", "cost", "state"]
    # 6 prompts x 10 plays x 100 tokens, at 4 a million for tokens in and out
    assert float(rows["synthesize"][4]) == pytest.approx(60 * 100 * 4e-6, abs=0.01)
    assert rows["sft"][0] == "0, 1"
    sft, dpo = float(rows["sft"][2]), float(rows["dpo"][2])
    assert 16 < sft < dpo < 72  # 8 billion bfloat16 weights, and the activations of a pair
    assert float(rows["dpo"][3]) > float(rows["sft"][3]) > 0
    assert rows["evaluate"][3:5] == ["0.5", "1.00"]  # given; one GPU at 2 an hour
    assert any(line.startswith("Hours: 0.5; cost: 1.") for line in lines)


@pytest.mark.parametrize(
    ("gpu", "hours_of", "said"),
    [
        ("H100", ["sft", "dpo"], None),
        (None, [], "for the hours of sft, dpo name the GPU, as machine.gpu: H100"),
        ("RTX 4090", [], "hours of sft, dpo are not known: set `hours` in the stage"),
    ],
)
def test_a_plan_without_hours_says_what_to_write_and_keeps_the_memory(
    llama: dict[str, Any], gpu: str | None, hours_of: list[str], said: str | None
) -> None:
    plan = plan_of({**llama, "machine": {**llama["machine"], "gpu": gpu}})
    text = "\n".join(plan_lines(plan))
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    cells = {row[1].strip(): [cell.strip() for cell in row[4:6]] for row in rows}
    for name in ("sft", "dpo"):
        memory, hours = cells[name]
        assert float(memory) > 16
        assert bool(hours) == (name in hours_of)
    text = " ".join(text.split())
    assert said in text if said else "hours of" not in text


def test_a_plan_counts_the_rows_of_the_run_that_a_training_learns_from(
    llama: dict[str, Any],
) -> None:
    first, sft, *_ = llama["stages"]
    sft = {**sft, "config": {**sft["config"], "per_device_train_batch_size": 1}}
    fewer = {**first, "name": "fewer", "options": {**first["options"], "num_prompts": 1}}

    def hours_of(*stages: dict[str, Any]) -> float:
        plan = plan_of({**llama, "stages": list(stages)})
        return needs_of(plan, plan.stages[-1], prompts_of(plan)).hours or 0.0

    of_six = hours_of(first, sft)
    assert 0 < hours_of(first, fewer, sft) < of_six
    assert hours_of(first, fewer, {**sft, "data": "synthesize"}) == of_six
    assert hours_of(first, fewer, {"run": "data", "data": "synthesize"}, sft) == of_six


def test_a_plan_counts_the_responses_that_are_asked_for(llama: dict[str, Any]) -> None:
    first, *_, evaluation = llama["stages"]
    agents = first["options"]["agents"]
    search = {"name": "s", "engine": "search", "agents": agents, "reward": {"kind": "length"}}

    def needs(number: int, stages: list[Any], **keys: Any) -> Needs:
        plan = plan_of({**llama, **keys, "stages": stages})
        return needs_of(plan, plan.stages[number], prompts_of(plan))

    per_response = 100 * 4e-6
    default = needs(0, [{**first, "options": {"agents": agents}}])
    assert default.calls == pytest.approx(6 * 160 * per_response)
    models = [*agents, {**search, "budget": [8, 16]}]
    asked = {**evaluation, "options": {"models": models, "num_samples": 2}}
    of_evaluation = needs(0, [asked])
    assert of_evaluation.calls == pytest.approx(2 * (3 + 8 + 16) * per_response)
    assert "54 responses" in of_evaluation.note
    stages, rounds = [first, *llama["stages"][1:3], evaluation], {"rounds": 3}
    assert "10 responses" in needs(0, stages, **rounds, prompts_per_round=1).note
    # five of the untrained student and of that of the round, to each of two prompts
    assert "20 responses" in needs(3, stages, **rounds, prompts_per_round=1).note


@pytest.mark.parametrize(("max_tokens", "tokens"), [(None, 100), (64, 64), (4096, 100)])
def test_a_plan_expects_no_responses_longer_than_max_tokens(
    llama: dict[str, Any], max_tokens: int | None, tokens: int
) -> None:
    sampling = {} if max_tokens is None else {"max_tokens": max_tokens}
    first = llama["stages"][0]
    first = {**first, "options": {**first["options"], "sampling": sampling}}
    lines = plan_lines(plan_of({**llama, "stages": [first, *llama["stages"][1:]]}))
    plays = 6 * 10
    said = f"- synthesize: {plays} responses, {plays * tokens:,} tokens at "
    assert any(line.startswith(said) for line in lines)


def test_a_training_that_does_not_fit_is_refused_before_the_first_stage(
    llama: dict[str, Any], stub: Seen
) -> None:
    content = {**llama, "machine": {**llama["machine"], "gpu_memory": 16}}
    with pytest.raises(
        ConfigError, match=r"stages\[1\]: sft needs \d+\.\d GiB on each GPU, and"
    ) as e:
        wait(run_plan(plan_of(content), quiet))
    assert len(str(e.value).splitlines()) == 1
    assert not Path(llama["output_dir"]).exists()
