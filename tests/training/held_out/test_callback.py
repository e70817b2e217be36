"""A model in training answers held-out prompts: what is logged, and what stays undisturbed."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from toa_trl.demo import world
from toa_trl.errors import ConfigError, RewardError
from toa_trl.report.training_log import FILE, read_training_log
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.tasks import make_task
from toa_trl.training.data import TrainingData
from toa_trl.training.held_out.callback import HeldOutCallback, add_evaluation, held_out_facts
from toa_trl.training.held_out.options import HeldOutArguments
from toa_trl.training.held_out.prompts import HeldOut
from toa_trl.training.held_out.trackers import log_examples
from toa_trl.training.run import train_and_save, with_lineage
from toa_trl.types import Prompt, Sampling

STUDENT = Path(world.__file__).parent / "weights" / "student"
VERIFIER = "toa_trl.demo.world:accuracy_reward"


class Rewards(RewardModel):
    """Falls with every evaluation; fails where it is told to, and draws random numbers."""

    def __init__(self, fails: Sequence[int] = ()) -> None:
        self.fails, self.evaluations, self.seen = fails, 0, set[str]()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        if not self.seen:  # a new evaluation
            self.evaluations += 1
            asyncio.get_running_loop().call_soon(self.seen.clear)
        self.seen.add(prompt.id)
        random.random(), np.random.rand(), torch.rand(3)
        if self.evaluations in self.fails:
            raise RewardError("the server is away")
        return [-float(self.evaluations)]


@pytest.fixture(scope="module")
def rows() -> Dataset:
    made = []
    for line in (world.DATA / "synthesis.jsonl").read_text(encoding="utf-8").splitlines()[:24]:
        row = json.loads(line)
        solution = world.solution(world.parse(row["prompt"]))
        prompt = [{"role": "user", "content": row["prompt"]}]
        made.append({"prompt": prompt, "completion": [{"role": "assistant", "content": solution}]})
        made[-1] |= {"answer": row["answer"], "id": row["id"]}
    return Dataset.from_list(made)


@pytest.fixture(scope="module")
def tokenized(rows: Dataset) -> Dataset:
    """The rows as SFTTrainer prepares them, which takes it a second."""
    args = SFTConfig(output_dir="x", max_length=128, report_to="none", use_cpu=True, bf16=False)
    return SFTTrainer(model=str(STUDENT), args=args, train_dataset=rows).train_dataset


def held_out_of(rows: Dataset, reward: RewardModel | None) -> HeldOut:
    prompts = [Prompt(row["id"], row["prompt"], {"answer": row["answer"]}) for row in rows]
    verifier = make_reward({"kind": "function", "function": VERIFIER})
    sampling = Sampling(0.0, max_tokens=5)
    task = make_task("alignment")
    scorers = {"reward": "falling", "verifier": "right"}
    how = (sampling, 0, 4, scorers)
    return HeldOut(prompts, [None] * len(rows), task, reward, verifier, *how)


Make = Callable[..., Any]


@pytest.fixture
def make(rows: Dataset, tokenized: Dataset, tmp_path: Path) -> Make:
    """Return a function that makes an SFT trainer; with dropout it trains an adapter."""

    def trainer(
        reward: RewardModel | None = None,
        *,
        patience: int | None = None,
        dropout: float = 0.0,
        **changes: Any,
    ) -> Any:
        given = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1}
        given |= {"save_strategy": "no", "output_dir": str(tmp_path / "out"), **changes}
        args = SFTConfig(
            **given,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            max_length=128,
            gradient_checkpointing=bool(dropout),
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        )
        set_seed(0)
        adapter = LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear")
        made = with_lineage(SFTTrainer)(
            model=str(STUDENT),
            args=args,
            train_dataset=tokenized.select(range(16)),
            eval_dataset=tokenized.select(range(16, 24)),
            peft_config=adapter if dropout else None,
        )
        options = HeldOutArguments(early_stopping_patience=patience)
        held_out = held_out_of(rows.select(range(16, 20)), reward) if reward else None
        add_evaluation(made, held_out, options)
        return made

    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_training_is_the_same_with_and_without_samples(make: Make, tmp_path: Path) -> None:
    with_samples = make(Rewards(), max_steps=2, dropout=0.5)
    own = with_samples.model.generation_config
    with_samples.train()
    without = make(max_steps=2, dropout=0.5)
    without.train()
    assert losses(with_samples) == losses(without)
    assert len(losses(without)) == 2
    assert with_samples.model.generation_config is own
    assert with_samples.model.get_base_model().generation_config is not None


def test_figures_and_examples_are_logged(make: Make, tmp_path: Path) -> None:
    trainer = make(Rewards(), max_steps=2, eval_on_start=True)
    seen: list[dict[str, float]] = []

    class Spy(TrainerCallback):
        def on_evaluate(self, *args: Any, metrics: Any, **kwargs: Any) -> None:
            seen.append(dict(metrics))

    trainer.add_callback(Spy())
    trainer.train()
    log = read_training_log(tmp_path / "out")
    assert [point["step"] for point in log["points"]] == [0, 1, 2]
    assert [point["eval_held_out_reward"] for point in log["points"]] == [-1, -2, -3]
    for point, metric in zip(log["points"], seen, strict=True):
        assert 0 <= point["eval_held_out_accuracy"] <= 1
        assert "eval_loss" in point
        assert metric["eval_held_out_accuracy"] == point["eval_held_out_accuracy"]
    assert len(log["examples"]) == 3 * 4
    first = log["examples"][0]
    assert first["prompt_id"] == "synthesis-016"
    assert first["response"].startswith("So")
    assert first["score"] in (0, 1)
    assert first["reward"] == -1
    facts = held_out_facts(trainer)["held_out"]
    assert (facts["num_prompts"], facts["first"]["step"], facts["model"]["step"]) == (4, 0, 2)


def test_a_training_stops_early_on_a_held_out_figure_and_keeps_the_best_model(
    make: Make, tmp_path: Path
) -> None:
    best = {"metric_for_best_model": "held_out_reward", "load_best_model_at_end": True}
    trainer = make(Rewards(), patience=2, max_steps=9, save_strategy="steps", save_steps=1, **best)
    trainer.lineage, trainer.facts = [], {}
    train_and_save(trainer, TrainingData(trainer.train_dataset, None, []), "SFT", str(STUDENT))
    assert trainer.state.global_step == 3
    assert trainer.state.best_global_step == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "sampled during the training and scored by falling and right." in card
    assert "| this model | 1 of 3 | -1.000 |" in card
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert lineage["held_out"]["model"]["reward"] == -1


def test_an_evaluation_that_cannot_be_scored_is_not_the_best(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(
        Rewards(fails=[1, 2]), patience=3, max_steps=3, metric_for_best_model="held_out_reward"
    )
    trainer.train()
    assert trainer.state.best_metric == -3
    assert "held-out responses of step 1 are not scored" in caplog.text
    logged = [entry for entry in trainer.state.log_history if "eval_held_out_reward" in entry]
    assert [entry["step"] for entry in logged] == [3]
    assert not any(math.isnan(v) for e in logged for v in e.values() if isinstance(v, float))


def test_a_restart_from_a_checkpoint_adds_no_point_twice(make: Make, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "eval_on_start": True, "max_steps": 2}
    make(Rewards(), **options).train()
    whole = read_training_log(tmp_path / "out")
    again = make(Rewards(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    log = read_training_log(tmp_path / "out")
    assert [point["step"] for point in log["points"]] == [0, 1, 2]
    keys = [(example["step"], example["prompt_id"]) for example in log["examples"]]
    assert len(keys) == len(set(keys)) == len(whole["examples"])
    for one, other in zip(log["examples"], whole["examples"], strict=True):
        assert (one["step"], one["response"]) == (other["step"], other["response"])
    rewards = [e["step"] for e in again.state.log_history if "eval_held_out_reward" in e]
    assert rewards == [0, 1, 2]


def test_a_restart_keeps_count_of_the_evaluations_without_a_better_figure(
    make: Make, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"metric_for_best_model": "held_out_reward", "patience": 2}
    options |= {"save_strategy": "steps", "save_steps": 1}
    make(Rewards(), max_steps=2, **options).train()
    later = Rewards()
    later.evaluations = 2
    again = make(later, max_steps=6, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert again.state.global_step == 3


def test_each_process_samples_a_share(make: Make, rows: Dataset) -> None:
    trainer = make(Rewards())
    (callback,) = [
        one for one in trainer.callback_handler.callbacks if isinstance(one, HeldOutCallback)
    ]
    whole, shares = callback._sample(), []
    for process in (0, 1):
        accelerator = mock.MagicMock(wraps=trainer.accelerator)
        accelerator.process_index, accelerator.num_processes = process, 2
        accelerator.state = trainer.accelerator.state
        with mock.patch.object(trainer, "accelerator", accelerator):
            shares.append(callback._sample())
    assert sorted(map(len, shares)) == [2, 2]
    assert {**shares[0], **shares[1]} == whole


def test_examples_reach_the_trackers_that_show_tables_or_texts() -> None:
    examples = [{"step": 1, "prompt": "a|b", "response": "c\nd", "reward": 0.5, "score": None}]
    tables: list[Any] = []
    texts: list[Any] = []
    tracker = SimpleNamespace(
        log=tables.append, run=object(), Table=lambda dataframe: dataframe.to_dict("records")
    )
    writer = SimpleNamespace(add_text=lambda *args: texts.append(args))
    trainer = SimpleNamespace(
        args=SimpleNamespace(report_to=["wandb", "trackio", "tensorboard"]),
        callback_handler=SimpleNamespace(callbacks=[object(), SimpleNamespace(tb_writer=writer)]),
    )
    with mock.patch.dict("sys.modules", {"wandb": tracker, "trackio": tracker}):
        log_examples(trainer, 7, examples)
        log_examples(trainer, 7, [])
    assert [table["held_out/examples"][0]["response"] for table in tables] == ["c\nd", "c\nd"]
    ((name, text, step),) = texts
    assert (name, step) == ("held_out/examples", 7)
    assert text.splitlines()[2].count(" | ") == 3
    assert r"a\|b" in text


def test_prompts_that_fill_the_context_are_left_out(
    make: Make, rows: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, held_out = make(), held_out_of(rows.select(range(2)), Rewards())
    long = Prompt("long", "1 " * 600)  # type: ignore[arg-type]
    for prompts, message in (
        ([*held_out.prompts, long], None),
        ([long], "every held-out prompt fills the context of 512 tokens"),
    ):
        more = HeldOut(**{**vars(held_out), "prompts": prompts, "texts": [None] * len(prompts)})
        if message is None:
            add_evaluation(trainer, more, HeldOutArguments())
            assert "1 held-out prompts are left out" in caplog.text
        else:
            with pytest.raises(ConfigError, match=message):
                add_evaluation(trainer, more, HeldOutArguments())


def test_a_metric_without_a_scorer_is_refused(make: Make, rows: Dataset) -> None:
    trainer = make(metric_for_best_model="held_out_reward")
    held_out = HeldOut(**{**vars(held_out_of(rows, Rewards())), "reward": None})
    with pytest.raises(ConfigError, match=r"held_out_reward is not measured.*with held_out_reward"):
        add_evaluation(trainer, held_out, HeldOutArguments())


@pytest.mark.parametrize("content", ["[]", "{", '{"points": [{"step": "a"}], "examples": []}'])
def test_a_log_of_others_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigError, match=f"{FILE}: not a log of a training"):
        read_training_log(tmp_path)
