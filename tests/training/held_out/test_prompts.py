"""What a model in training is asked, and which reward and verifier judge it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset, IterableDataset
from trl import SFTConfig

from tests.helpers import IDENTITY
from toa_trl.errors import ConfigError
from toa_trl.rewards.length import LengthReward
from toa_trl.sampling.journal import Journal
from toa_trl.training.data import TrainingData
from toa_trl.training.held_out.options import HeldOutArguments
from toa_trl.training.held_out.prompts import HeldOut, prepare_held_out
from toa_trl.types import Prompt

VERIFIER = "toa_trl.demo.world:accuracy_reward"


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


ROWS = [{"prompt": user(f"Add {i}."), "prompt_id": f"p{i}"} for i in range(4)]


def prepare(rows: Any, folder: object = "org/data", **options: Any) -> HeldOut:
    training = SFTConfig(output_dir="x", use_cpu=True, bf16=False)
    test = Dataset.from_list(rows) if isinstance(rows, list) else rows
    data = TrainingData(None, test, [{"dataset": str(folder), "fraction": None}])
    held_out = prepare_held_out(
        HeldOutArguments(**{"held_out_samples": 9, **options}), data, training
    )
    assert held_out is not None
    return held_out


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def make_run(folder: Path, **changes: Any) -> Path:
    """A run of math prompts with answers, whose reward is the length."""
    identity = {**IDENTITY, "task": {"name": "math"}}
    prompts = [
        Prompt(f"p{i}", f"Add {i}. Box it.", {"answer": str(i), "problem": f"Add {i}."})  # type: ignore[arg-type]
        for i in range(4)
    ]
    Journal(folder / "journal.sqlite", create=True).begin(identity, prompts)
    (folder / "sft").mkdir()
    configuration = {"task": "math", "reward": {"kind": "length"}, "sampling": {"max_tokens": 77}}
    (folder / "run.yaml").write_text(yaml.safe_dump({**configuration, **changes}))
    return folder


@pytest.mark.parametrize("part", ["", "sft"])
def test_the_run_names_the_reward_the_task_and_the_answers(run: Path, part: str) -> None:
    held_out = prepare(ROWS, run / part)
    assert isinstance(held_out.reward, LengthReward)
    assert held_out.verifier is not None
    assert held_out.sampling.max_tokens == 77
    assert held_out.sampling.temperature == 0
    assert {prompt.metadata["answer"] for prompt in held_out.prompts} == set("0123")
    assert held_out.prompts[0].messages[0].content.endswith("Box it.")
    assert held_out.texts == [None] * 4
    assert held_out.scorers == {"reward": "length", "verifier": "math"}


def test_a_run_without_its_configuration_still_has_its_task(run: Path) -> None:
    (run / "run.yaml").unlink()
    with pytest.raises(ConfigError, match="held_out_reward: the data come from no run with"):
        prepare([{**row, "prompt_id": None} for row in ROWS], run)  # so that no prompt has answers
    held_out = prepare(ROWS, run, held_out_reward="{kind: length}")
    assert held_out.scorers == {"reward": "length", "verifier": "math"}


def test_a_draft_that_is_refined_is_asked_as_its_prompt(run: Path) -> None:
    drafts = [{**row, "prompt": user(f"Improve {row['prompt_id']}")} for row in ROWS]
    held_out = prepare(drafts + ROWS, run)
    assert sorted(prompt.messages[0].content for prompt in held_out.prompts) == [
        f"Add {i}. Box it." for i in range(4)
    ]


def test_the_same_prompts_are_asked_when_there_are_more(run: Path) -> None:
    rows = [{"prompt": f"Add {i}.", "completion": "a"} for i in range(30)]
    given = {"held_out_samples": 5, "held_out_reward": {"kind": "length"}}
    asked = {prompt.messages[0].content for prompt in prepare(rows[:20], **given).prompts}
    more = {prompt.messages[0].content for prompt in prepare(rows[::-1], **given).prompts}
    assert len(asked) == len(more) == 5
    assert more & {row["prompt"] for row in rows[:20]} <= asked


@pytest.mark.parametrize(
    ("row", "asked", "text"),
    [
        ({"prompt": "a", "completion": "b"}, ["a"], "a"),
        ({"messages": [*user("a"), {"role": "assistant", "content": "b"}]}, ["a"], None),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            ["a"],
            None,
        ),
        (
            {
                "chosen": [*user("a"), {"role": "assistant", "content": "b"}],
                "rejected": [*user("a"), {"role": "assistant", "content": "c"}],
            },
            ["a"],
            None,
        ),
    ],
)
def test_every_format_with_prompts_is_asked(row: Any, asked: list[str], text: str | None) -> None:
    held_out = prepare([row], held_out_reward="{kind: length}")
    assert [message.content for message in held_out.prompts[0].messages] == asked
    assert held_out.texts == [text]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, {}, "held_out_reward: the data come from no run with a reward"),
        ([{"text": "a"}], {}, "held_out_samples: the rows have no prompt to answer; .*: text"),
        ([{"input_ids": [1]}], {}, "held_out_samples: the rows have no prompt to answer"),
        (ROWS, {"held_out_reward": "{kind: len}"}, "held_out_reward: unknown kind 'len'"),
        (ROWS, {"held_out_verifier": "{kind"}, "held_out_verifier: neither YAML nor JSON"),
        (ROWS, {"held_out_reward": "{kind"}, "held_out_reward: neither YAML nor JSON"),
        (
            IterableDataset.from_generator(lambda: iter(ROWS)),
            {},
            "held_out_samples: the held-out rows must not be a stream",
        ),
    ],
)
def test_what_cannot_be_asked_or_scored_is_refused(
    rows: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        prepare(rows, **options)


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": {"kind": "function", "function": VERIFIER}},
        {"reward": {"kind": "weighted_sum", "rewards": [{"kind": "my.module:Reward"}]}},
        {"reward": {"kind": "judge", "agent": {"name": "j", "engine": "my.module:Agent"}}},
        {"task": "my.module:Task"},
    ],
)
def test_code_that_run_yaml_names_must_be_trusted(tmp_path: Path, changes: Any) -> None:
    run = make_run(tmp_path, **changes)
    with pytest.raises(ConfigError, match="is run only with --held_out_trust true"):
        prepare(ROWS, run)
    if "function" in str(changes):
        assert prepare(ROWS, run, held_out_trust=True).reward is not None


def test_random_states_stay_as_they_were(run: Path) -> None:
    before = torch.random.get_rng_state()
    held_out = prepare(ROWS, run, held_out_verifier=VERIFIER)
    assert held_out.scorers["verifier"] == f"function `{VERIFIER}`"
    assert torch.equal(torch.random.get_rng_state(), before)


def test_reward_models_are_not_sharded_with_the_model_in_training(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ZeRO-3 transformers would shard it, and the main process wait for the others."""
    from transformers.integrations import deepspeed

    config = SimpleNamespace(is_zero3=lambda: True)
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: config)
    assert deepspeed.is_deepspeed_zero3_enabled()
    seen = []

    def make(entry: Any, place: str) -> Any:
        seen.append(deepspeed.is_deepspeed_zero3_enabled())
        return LengthReward()

    monkeypatch.setattr("toa_trl.training.held_out.prompts.make_reward", make)
    prepare(ROWS, run)
    assert seen == [False]
    assert deepspeed.is_deepspeed_zero3_enabled()
