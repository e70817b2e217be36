from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from toa_trl.cli.config import SynthesisConfig
from toa_trl.cli.evaluation_config import EvaluationConfig
from toa_trl.errors import ConfigError
from toa_trl.evaluation.verifier import make_verifier
from toa_trl.rewards.function import FunctionReward
from toa_trl.rewards.math import MathReward
from toa_trl.sampling.identity import digest_of_prompts
from toa_trl.tasks import make_task
from toa_trl.types import Prompt
from toa_trl.utils.config import validate

SCRIPTED = [{"name": "a", "engine": "scripted"}]
LENGTH = {"kind": "function", "function": "toa_trl.rewards.function:length_reward"}


def arguments(**changes: Any) -> SynthesisConfig:
    settings = {"agents": SCRIPTED, "reward": LENGTH, "output_dir": "runs/x", **changes}
    config: SynthesisConfig = validate(SynthesisConfig, settings)
    return config


def test_servers_of_a_fleet_are_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    served = {"model": "org/llama", "base_url": ["http://gpu1:8001/v1", "http://gpu1:8002/v1"]}
    judge = {"model": "org/judge", "base_url": ["http://gpu1:8021/v1"]}
    path.write_text(yaml.safe_dump({"agents": {"llama": served}, "reward": judge}))
    hosted = {
        "name": "hosted",
        "engine": "openai",
        "model": "m",
        "base_url": "https://api.example.com/v1",
    }
    config = arguments(
        agents=[{"name": "llama", "engine": "openai"}, hosted, *SCRIPTED],
        reward={"kind": "vllm"},
        endpoints=str(path),
    )
    assert config.agents == [{"name": "llama", "engine": "openai", **served}, hosted, *SCRIPTED]
    assert config.reward == {"kind": "vllm", **judge}
    config.new_sampler()
    with pytest.raises(ConfigError, match="qwen"):
        arguments(agents=[{"name": "qwen", "engine": "openai"}], endpoints=str(path))


def test_servers_of_a_fleet_are_filled_in_where_a_reward_holds_others(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    served = {"model": "org/judge", "base_url": ["http://gpu1:8001/v1"]}
    scorer = {"model": "org/reward", "base_url": ["http://gpu1:8021/v1"]}
    path.write_text(yaml.safe_dump({"agents": {"j": served}, "reward": scorer}))
    judge = {"kind": "judge", "agent": {"name": "j", "engine": "openai"}}
    reward = {
        "kind": "held_out",
        "reward": {"kind": "minimum", "rewards": [{"reward": {"kind": "vllm"}}]},
        "second": judge,
    }
    config = arguments(reward=reward, endpoints=str(path))
    assert config.reward == {
        "kind": "held_out",
        "reward": {"kind": "minimum", "rewards": [{"reward": {"kind": "vllm", **scorer}}]},
        "second": {"kind": "judge", "agent": {"name": "j", "engine": "openai", **served}},
    }
    config.new_sampler()


def test_where_servers_are_is_not_part_of_a_runs_identity() -> None:
    def identity(url: str) -> Any:
        agent = {
            "name": "a",
            "engine": "openai",
            "model": "m",
            "base_url": url,
            "price": {"prompt": 1},
        }
        reward = {"kind": "http", "name": "scorer", "url": f"{url}/score"}
        return (
            arguments(agents=[agent], reward=reward, limits={"max_cost": 5}).new_sampler().identity
        )

    assert identity("http://one:8000") == identity("http://two:9000")
    assert identity("http://one:8000")["reward"] == {"kind": "http", "name": "scorer"}


def test_every_shard_has_an_equal_share_of_the_limits() -> None:
    config = arguments(limits={"max_tokens": 1000, "max_flops": 6e9})
    assert config.new_sampler()._limits == {"max_tokens": 1000, "max_flops": 6e9}
    assert config.new_sampler(2, 4)._limits == {"max_tokens": 250, "max_flops": 1.5e9}


def test_a_part_of_the_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(
        "".join(f'{{"prompt": "Say {number}."}}\n' for number in range(5))
    )

    def ids(**part: Any) -> list[str]:
        return [
            prompt.id
            for prompt in arguments(prompts=str(tmp_path / "prompts.jsonl"), **part).load_prompts()
        ]

    assert ids(num_prompts=2) == ["0", "1"]
    assert ids(num_prompts=2, skip_prompts=2) == ["2", "3"]
    assert ids(skip_prompts=4) == ["4"]
    with pytest.raises(ConfigError, match=r"skip_prompts: .* no prompt after the first 5"):
        ids(skip_prompts=5)
    with pytest.raises(ConfigError, match="skip_prompts: must be >= 0, not -1"):
        ids(skip_prompts=-1)


def test_an_unknown_runner_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError,
        match="runner: must be one of 'local' or 'ray', not 'rya'",
    ):
        arguments(runner="rya")


@pytest.mark.parametrize(
    "content",
    ["3", "agents: [1]", "agents: {a: [1, 2]}", "agents: {a: {base_url: x}}", "reward: {}"],
)
def test_an_endpoints_file_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=str(path)):
        arguments(agents=[{"name": "a", "engine": "openai"}], endpoints=str(path))


@pytest.mark.parametrize("entry", ["foo", {"name": [1], "engine": "openai"}])
def test_an_entry_that_is_none_is_said_with_endpoints_too(tmp_path: Path, entry: Any) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_text("agents: {b: {model: m, base_url: [http://x]}}")
    with pytest.raises(ConfigError):
        arguments(agents=[entry], endpoints=str(path)).new_sampler()


def test_neither_is_where_the_servers_of_a_nested_reward_are() -> None:
    def identity(url: str) -> Any:
        judge = {
            "kind": "judge",
            "agent": {"name": "j", "engine": "openai", "model": "m", "base_url": url},
        }
        scorer = {"kind": "http", "name": "scorer", "url": f"{url}/score", "timeout_s": len(url)}
        reward = {
            "kind": "held_out",
            "reward": {"kind": "minimum", "rewards": [{"reward": scorer}]},
            "second": judge,
        }
        return arguments(reward=reward).new_sampler().identity["reward"]

    assert identity("http://one:8000") == identity("http://three:9000")
    assert identity("http://one:8000") == {
        "kind": "held_out",
        "reward": {"kind": "minimum", "rewards": [{"reward": {"kind": "http", "name": "scorer"}}]},
        "second": {"kind": "judge", "agent": {"name": "j", "engine": "openai", "model": "m"}},
    }


def test_a_task_may_be_a_mapping() -> None:
    config = arguments(task={"name": "translation", "target_language": "English"})
    assert config.new_sampler().identity["task"]["target_language"] == "English"
    assert arguments().new_sampler().identity["task"]["name"] == "alignment"


MODELS = [{**SCRIPTED[0], "name": "base"}, {**SCRIPTED[0], "name": "sft"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "models: must have at least 1 entries"),
        ({"models": [{"engine": "scripted"}]}, r"models\[0\]: the key 'name' is missing"),
        ({"models": [*MODELS, MODELS[0]]}, "names must be different"),
        ({"models": {}}, "models: must be a list"),
        ({"baseline": "bas"}, "baseline: must be one of the models base, sft, not 'bas'"),
        ({"judge": {"agent": SCRIPTED[0]}}, "baseline: must be one of"),
        (
            {"judge": {"agent": SCRIPTED[0], "mode": "pointwise"}, "baseline": "sft"},
            "must be pairwise or arena",
        ),
        ({"lm_eval": ["hellaswag"]}, "lm_eval: must be a mapping"),
        ({"lm_eval": {"taks": []}}, "lm_eval: unknown key 'taks'.*did you mean 'tasks'"),
        ({"num_samples": -1}, "num_samples: must be >= 0"),
        ({"verifier": {"kind": "mat"}}, "verifier: unknown kind 'mat'.*did you mean 'math'"),
    ],
)
def test_a_mistake_in_an_evaluation_is_named(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(EvaluationConfig, {"models": MODELS, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_dir": ""}, "output_dir: must not be empty"),
        ({"agents": {}}, "agents: must be a list, not {}"),
        ({"agents": SCRIPTED * 2}, "agents: 2 entries have the name 'a'"),
        ({"agents": [{**SCRIPTED[0], "latency": 1}]}, r"agents\[0\]: unknown key 'latency'"),
        ({"reward": []}, "reward: must be a mapping"),
        ({"sampling": 3}, "sampling: must be a mapping"),
        ({"sampling": {"top_p": 0}}, r"sampling\.top_p: must be > 0"),
        ({"sampling": {"temprature": 0}}, "sampling: .*did you mean 'temperature'"),
        ({"search_params": {"widht": 3}}, "search_params: .*did you mean 'width'"),
        ({"sft": {"topk": 1}}, "sft: .*did you mean 'top_k'"),
        ({"sft": {"without": []}}, "sft: unknown key 'without'"),
        ({"preference": {"policy": "best"}}, "preference.policy"),
        ({"preference": {"rejected_rank": 1}}, "preference.rejected_rank"),
        (
            {"budget": 16, "preference": {"rejected_rank": 30}},
            r"preference\.rejected_rank: no prompt has a response at rank 30, .* budget is 16",
        ),
        (
            {"budget": 9, "recipes": [{"builder": "pair", "rejected_rank": 10}]},
            r"rejected_rank: no prompt has a response at rank 10, .* budget is 9",
        ),
        ({"recipes": [{"builder": "pairs"}]}, r"recipes\[0\].*unknown builder 'pairs'"),
        (
            {"recipes": [{"builder": "top_bottom", "max_pairs": 0}]},
            r"recipes\[0\]\.max_pairs: must be >= 1",
        ),
        ({"clean": {"refusal": True}}, "clean: .*did you mean 'refusals'"),
        ({"clean": {"languages": ["xx"]}}, r"clean\.languages: 'xx' is not the code"),
        ({"limits": {"max_token": 1}}, "limits: .*did you mean 'max_tokens'"),
        ({"allocation": {"kind": "even"}}, r"allocation: unknown kind 'even'; choose one of"),
        ({"allocation": {"kind": "adaptive", "wave": 0}}, r"allocation\.wave: must be >= 1"),
        ({"budget": True}, "budget: must be an integer, not True"),
        ({"budegt": 3}, "unknown key 'budegt'.*did you mean 'budget'"),
    ],
)
def test_a_mistake_in_a_run_is_named_before_anything_is_sampled(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        arguments(**changes)
    assert "\n" not in str(raised.value)


def test_nested_values_stay_as_the_user_wrote_them() -> None:
    config = arguments(sampling={"max_tokens": 7}, preference={"rejected_rank": 0.5})
    settings = config.settings()
    assert settings["sampling"] == {"max_tokens": 7}
    assert settings["preference"] == {"rejected_rank": 0.5}


def test_the_task_brings_its_verifier_where_its_column_is_there() -> None:
    there, not_there = Prompt("a", "1?", {"answer": "1"}), Prompt("b", "2?")  # type: ignore[arg-type]
    task = make_task("math")
    assert isinstance(make_verifier("", task, [there]), MathReward)
    assert make_verifier("", task, [not_there]) is None
    with pytest.raises(
        ConfigError, match=r"1 of 2 have no 'answer'.*the first is 'b', with the columns: none"
    ):
        make_verifier("", task, [there, not_there])
    assert make_verifier("", make_task("alignment"), [there]) is None
    assert isinstance(
        make_verifier("toa_trl.rewards.function:length_reward", task, [there]), FunctionReward
    )
    assert isinstance(
        make_verifier({"kind": "math", "column": "gold"}, task, [not_there]), MathReward
    )


def test_the_words_of_a_judge_and_the_columns_of_the_prompts_belong_to_a_run(
    tmp_path: Path,
) -> None:
    rubric = tmp_path / "rubric.md"
    judge = {"kind": "judge", "agent": {"name": "j", "engine": "scripted"}, "rubric": str(rubric)}
    rubric.write_text("Be kind.")
    kind = arguments(reward=judge).new_sampler().identity
    rubric.write_text("Be strict.")
    assert arguments(reward=judge).new_sampler().identity != kind
    one, other = (Prompt("a", "1?", {"answer": answer}) for answer in "12")  # type: ignore[arg-type]
    assert digest_of_prompts([one]) != digest_of_prompts([other])
