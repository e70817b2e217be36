"""The selected responses of a run as a model of an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import IDENTITY, play, wait
from toa_trl.cli.config import EvaluationConfig
from toa_trl.errors import ConfigError
from toa_trl.evaluation.accuracy import measure_model
from toa_trl.evaluation.systems import check_runs, outputs_of
from toa_trl.sampling.journal import Journal
from toa_trl.tasks import make_task
from toa_trl.types import Prompt, Sampling
from toa_trl.utils.config import validate

TASK = make_task("alignment")
PROMPTS = [Prompt(str(n), f"What is {n}?", {"reference": "best"}) for n in range(2)]  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is still sampling: its second prompt has three of four plays."""
    folder = tmp_path / "run"
    folder.mkdir()
    journal = Journal(folder / "journal.sqlite", create=True)
    journal.begin({**IDENTITY, "budget": 4}, PROMPTS)
    for index, reward in enumerate([0.1, None, 0.3, 0.2, 0.9]):
        text = "best" if reward == 0.9 else f"first {index}"
        journal.append("0", play(index, reward, text))
    for index, reward in enumerate([0.5, 0.5, 0.4]):
        reason = "length" if index == 0 else "stop"
        journal.append("1", play(index, reward, f"second {index}", finish_reason=reason))
    journal.close()
    return folder


def texts(entry: Mapping[str, Any], prompts: list[Prompt] = PROMPTS) -> list[str]:
    entry = {"name": "toa", "engine": "run", **entry}
    outputs = wait(outputs_of(entry, prompts, TASK, Sampling(), num_samples=4))
    assert not any(output.samples for output in outputs)
    return [output.greedy.text for output in outputs]


@pytest.mark.parametrize(
    ("budget", "first"),
    [(1, "first 0"), (2, "first 2"), (3, "first 2"), (4, "best"), (None, "best")],
)
def test_the_best_of_the_first_scored_plays_is_selected(
    budget: int | None, first: str, run: Path
) -> None:
    assert texts({"path": str(run), "budget": budget}) == [first, "second 0"]


def test_prompts_are_found_by_their_messages(run: Path) -> None:
    renamed = [Prompt(f"other {n}", PROMPTS[n].messages) for n in (1, 0)]
    assert texts({"path": str(run)}, renamed) == ["second 0", "best"]


def test_a_run_that_is_not_finished_is_reported(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        texts({"path": str(run), "budget": 3})
        assert not caplog.messages
        texts({"path": str(run)})
    assert "1 of 2 prompts have fewer than 4 scored plays" in caplog.text


def test_the_metrics_see_the_selected_responses(run: Path) -> None:
    entry = {"name": "toa", "engine": "run", "path": str(run)}
    outputs = wait(outputs_of(entry, PROMPTS, TASK, Sampling()))
    measurement, _ = wait(measure_model(PROMPTS, outputs, TASK))
    assert measurement.chrf is not None
    assert (measurement.num_problems, measurement.num_truncated) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "prompts", "error"),
    [
        ({"path": "nowhere"}, PROMPTS, r"model 'toa': nowhere has no journal.sqlite"),
        ({"budget": 5}, PROMPTS, r"model 'toa': budget: must be <= 4, that of the run, not 5"),
        ({}, [Prompt("7", "?")], r"model 'toa': the run in .* has no prompt like '7'"),  # type: ignore[arg-type]
        ({"budget": 0}, PROMPTS, r"model 'toa'.budget: must be"),
    ],
)
def test_mistakes_are_found_before_a_model_is_asked(
    changes: dict[str, Any], prompts: list[Prompt], error: str, run: Path
) -> None:
    entry = {"name": "toa", "engine": "run", "path": str(run), **changes}
    with pytest.raises(ConfigError, match=error):
        check_runs([{"name": "base", "engine": "scripted"}, entry], prompts)


def test_a_run_without_scored_plays_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    journal.begin(IDENTITY, PROMPTS)
    journal.append("0", play(0, None))
    journal.close()
    with pytest.raises(ConfigError, match=r"no scored play of 2 of 2 prompts, the first '0'"):
        texts({"path": str(tmp_path)})


def test_a_list_of_budgets_gives_a_model_for_each(run: Path) -> None:
    runs = {"name": "toa", "engine": "run", "path": str(run), "budget": [1, 4]}
    base = {"name": "base", "engine": "scripted"}
    config = validate(EvaluationConfig, {"models": [base, runs], "baseline": "toa@1"})
    assert [entry["name"] for entry in config.models] == ["base", "toa@1", "toa@4"]
    assert [texts(entry)[0] for entry in config.models[1:]] == ["first 0", "best"]
    with pytest.raises(ConfigError, match="lm_eval: cannot ask a model of engine run"):
        validate(EvaluationConfig, {"models": [runs], "lm_eval": {"tasks": "gsm8k"}})
