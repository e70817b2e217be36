"""Reports of a training, and of an evaluation or a comparison, alone and in the page of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import HOSTILE
from tests.report.test_report import text_of
from toa_trl.errors import ConfigError
from toa_trl.report.page import write_report
from toa_trl.report.training_log import write_training_log
from toa_trl.report.training_section import training_sections, trainings_of

HISTORY = [
    {"step": 0, "eval_loss": 0.9, "eval_rewards/margins": 0.0},
    {"step": 0, "eval_held_out_reward": -2.0, "eval_held_out_accuracy": 0.25},
    {"step": 10, "loss": 0.7, "rewards/margins": 0.1},
    {"step": 20, "loss": 0.5, "rewards/margins": 0.4},
    {"step": 20, "eval_loss": 0.6, "eval_rewards/margins": 0.5},
    {"step": 20, "eval_held_out_reward": -1.0, "eval_held_out_accuracy": 0.75},
    {"step": 20, "eval_held_out_words": 12.25, "eval_held_out_truncated": 0.5},
]
EXAMPLES: list[dict[str, Any]] = [
    {"step": 0, "prompt_id": "p", "prompt": "2 + 3?", "response": "6", "reward": -3.0, "score": 0},
    {"step": 10, "prompt_id": "p", "prompt": "2 + 3?", "response": "7", "reward": -2, "score": 0},
    {"step": 20, "prompt_id": "p", "prompt": "2 + 3?", "response": HOSTILE, "reward": -1.5},
]


def make_model(folder: Path, fingerprint: str = "f1", history: Any = HISTORY) -> Path:
    folder.mkdir(parents=True)
    write_training_log(folder, history, EXAMPLES, {"num_prompts": 8, "reward": "LengthReward"})
    data = [{"dataset": "my-run", "fingerprint": fingerprint}]
    lineage = {"base_model": "org/base", "method": "DPO", "data": data, "parent": None}
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return folder


def test_the_report_of_a_model_shows_its_training(tmp_path: Path) -> None:
    model = make_model(tmp_path / "dpo")
    path = write_report(model)
    assert path == model / "_report.html"  # which the Trainer does not push
    page = path.read_text(encoding="utf-8")
    text = text_of(page)
    assert "report of a training" in text
    assert "dpo: DPO of org/base" in text
    assert "DPO of org/base on my-run: 20 steps." in text
    assert "The training loss went from 0.700 to 0.500." in text
    assert "The held-out loss went from 0.900 to 0.600." in text
    assert (
        "8 held-out prompts were answered at each evaluation: mean reward −2.000 at step 0" in text
    )
    assert "accuracy 0.250 at step 0, 0.750 at step 20 (+0.500)" in text
    for name in ("loss", "reward margin", "mean reward", "accuracy"):
        assert f'aria-label="{name} over the steps"' in page
    assert 'aria-label="verifier score over the steps"' not in page
    assert "reward −3.000, wrong" in text
    assert "reward −1.500" in text
    assert "7reward" not in text.replace(" ", "")  # the first and the last response alone
    assert "20 0.500 0.600 −1.000 0.750 12.2 50 %" in text.replace("\u00a0", " ")
    assert HOSTILE not in page
    assert path == write_report(model)  # it is a report of this package


def test_the_page_of_a_run_shows_the_trainings_on_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    models = [make_model(tmp_path / "dpo"), make_model(run / "sft-model")]
    make_model(tmp_path / "another", fingerprint="f2")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/lineage.json").write_text("[")
    assert sorted(trainings_of(run, "f1")) == sorted(path.resolve() for path in models)
    assert trainings_of(run, None) == []
    sections = training_sections(trainings_of(run, "f1"))
    assert [section.id for section in sections] == ["training", "training-2"]
    assert {section.title for section in sections} == {"Training: dpo", "Training: sft-model"}


def test_many_evaluations_are_thinned_and_the_last_one_is_kept(tmp_path: Path) -> None:
    history = [{"step": step, "eval_loss": 1.0} for step in range(1, 54)]
    (section,) = training_sections([make_model(tmp_path / "sft", history=history)])
    table = section.blocks[1]
    assert len(table.rows) == 18
    assert table.rows[-1][0] == "53"
    assert "One of 3 evaluations is shown" in str(table.caption)


@pytest.mark.parametrize(
    ("part", "subject", "title"),
    [
        ("student", "an evaluation", "models evaluated"),
        ("searches", "a comparison", "searches compared"),
    ],
)
def test_results_alone_have_a_report(
    tmp_path: Path, results: dict[str, Any], part: str, subject: str, title: str
) -> None:
    (tmp_path / "results.json").write_text(json.dumps({part: results[part]}))
    text = text_of(write_report(tmp_path).read_text(encoding="utf-8"))
    assert f"report of {subject}" in text
    assert re.search(rf"\d {title}", text)
    assert "The tree of a prompt" not in text


def test_what_has_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no rollouts/\*.parquet"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match="the log has no step yet"):
        write_report(make_model(tmp_path / "model", history=[]))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="the results have no part that a report shows"):
        write_report(tmp_path)
