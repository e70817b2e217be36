from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from toa_trl.cli.config import EvaluationArguments, SynthesisArguments, make_verifier
from toa_trl.errors import ConfigError
from toa_trl.rewards.function import FunctionReward
from toa_trl.rewards.math import MathReward
from toa_trl.sampler import digest
from toa_trl.tasks import make_task
from toa_trl.types import Prompt

SCRIPTED = [{"name": "a", "engine": "scripted"}]
LENGTH = {"kind": "function", "function": "toa_trl.rewards.function:length_reward"}


def arguments(**changes: Any) -> SynthesisArguments:
    return SynthesisArguments(
        **{"agents": SCRIPTED, "reward": LENGTH, "output_dir": "runs/x", **changes}
    )


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
    assert config.agents == [{"name": "llama", "engine": "openai", **served}, hosted, *SCRIPTED]  # type: ignore[comparison-overlap]
    assert config.reward == {"kind": "vllm", **judge}  # type: ignore[comparison-overlap]
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
    assert config.reward == {  # type: ignore[comparison-overlap]
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
    with pytest.raises(ConfigError, match="skip_prompts: a whole number >= 0"):
        ids(skip_prompts=-1)


def test_an_unknown_runner_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError,
        match=r"runner 'rya' is not known; choose one of local, ray.*did you mean 'ray'",
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


def test_a_task_may_be_written_as_yaml_on_the_command_line() -> None:
    config = arguments(task="{name: translation, target_language: English}")
    assert config.new_sampler().identity["task"]["target_language"] == "English"
    assert arguments().new_sampler().identity["task"]["name"] == "alignment"


MODELS = [{**SCRIPTED[0], "name": "base"}, {**SCRIPTED[0], "name": "sft"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "models: a list of"),
        ({"models": "[{engine: scripted}]"}, "models: a list of"),
        ({"models": [*MODELS, MODELS[0]]}, "different names"),
        ({"models": {}}, "models: a list is needed"),
        ({"baseline": "bas"}, "baseline: 'bas' is none of the models: base, sft"),
        ({"judge": {"agent": SCRIPTED[0]}}, "baseline: '' is none of the models"),
        ({"alpaca_eval": "{annotator: {}}"}, "baseline: '' is none"),
        ({"judge": {"mode": "pointwise"}, "baseline": "sft"}, "mode is pairwise or arena"),
        ({"lm_eval": "[hellaswag]"}, "lm_eval: a dict is needed"),
        ({"num_samples": -1}, "num_samples"),
    ],
)
def test_a_mistake_in_an_evaluation_is_named(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationArguments(**{"models": MODELS, **changes})


def test_the_task_brings_its_verifier_where_its_column_is_there() -> None:
    there, not_there = Prompt("a", "1?", {"answer": "1"}), Prompt("b", "2?")  # type: ignore[arg-type]
    task = make_task("math")
    assert isinstance(make_verifier("", task, [there]), MathReward)
    assert make_verifier("", task, [not_there]) is None
    with pytest.raises(
        ConfigError, match=r"1 of 2 prompts have no 'answer'.*the first is 'b', with: none"
    ):
        make_verifier("", task, [there, not_there])
    assert make_verifier("", make_task("alignment"), [there]) is None
    assert isinstance(
        make_verifier("toa_trl.rewards.function:length_reward", task, [there]), FunctionReward
    )
    assert isinstance(make_verifier("{kind: math, column: gold}", task, [not_there]), MathReward)


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
    assert digest([one]) != digest([other])
