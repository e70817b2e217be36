"""The parts of the report by themselves: streaming, the curve, the paper's figure."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toa_trl.report import figures, picture, rollouts
from toa_trl.report.figures import comparison_figure
from toa_trl.report.html import plain
from toa_trl.report.outcome import length_bias
from toa_trl.report.rollout_tables import rollout_files
from toa_trl.report.training import Column
from toa_trl.report.trees import choose_prompts
from toa_trl.utils.files import ROOT

REWARDS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6)


def write_plays(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    (folder / "rollouts").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rollouts/plays.parquet")
    return rollout_files(folder)


@given(st.lists(REWARDS, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_a_prompt_with_fewer_plays_keeps_its_best(prompts: list[list[float]]) -> None:
    rows = []
    for prompt, rewards in enumerate(prompts):
        for play, reward in enumerate(rewards):
            play_of = {"prompt_id": str(prompt), "play": play, "agent": "a", "kind": "answer"}
            rows.append({**play_of, "reward": reward})
    with tempfile.TemporaryDirectory() as folder:
        curve = rollouts.summarize(write_plays(Path(folder), rows)).curve
    longest = max(map(len, prompts))
    best = np.array([[max(r[: k + 1]) for k in range(longest)] for r in prompts])
    assert curve.mean == pytest.approx(best.mean(0), abs=1e-6)
    if len(prompts) > 1:
        assert curve.half_width == pytest.approx(
            1.96 * best.std(0, ddof=1) / len(prompts) ** 0.5, abs=1e-3
        )
    own = [np.mean([r[k] for r in prompts if len(r) > k]) for k in range(longest)]
    assert curve.own == pytest.approx(own, abs=1e-6)
    assert curve.num_short == sum(len(r) < longest for r in prompts)


def test_the_order_of_rows_and_files_changes_no_total(
    tmp_path: Path, write_run: Callable[..., Any]
) -> None:
    write_run(tmp_path / "[a run]", num_prompts=6, budget=9, dpo=False)
    files = rollout_files(tmp_path / "[a run]")
    whole = rollouts.summarize(files)
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    mixed = rollouts.summarize(write_plays(tmp_path, random.Random(0).sample(rows, len(rows))))
    assert sorted(mixed.prompt_ids) == sorted(whole.prompt_ids)
    assert (mixed.paths, mixed.reasons, mixed.best) == (whole.paths, whole.reasons, whole.best)
    assert {pair: numbers[0] for pair, numbers in mixed.gains.items()} == {
        pair: numbers[0] for pair, numbers in whole.gains.items()
    }
    assert mixed.total("plays") == whole.total("plays") == len(rows)
    assert mixed.total("flops") == pytest.approx(whole.total("flops"))
    assert sorted(mixed.select("adder")) == sorted(whole.select("adder"))
    assert list(mixed.curve.mean) == pytest.approx(list(whole.curve.mean))


def test_drafts_that_refer_to_each_other_end_a_path(tmp_path: Path) -> None:
    rows = []
    for play, reference in ((0, 1), (1, 0)):
        row = {"prompt_id": "p", "play": play, "agent": "a", "kind": "refine"}
        rows.append({**row, "reward": float(play), "refs": [reference]})
    paths = rollouts.summarize(write_plays(tmp_path, rows)).paths
    assert paths == {(("refine", "a"), ("refine", "a")): (1, 1.0)}


def test_prompts_are_chosen_evenly() -> None:
    ids = [str(i) for i in range(1000)]
    assert choose_prompts(ids, 4) == ["0", "250", "500", "750"]
    assert choose_prompts(ids[:3], 4) == ids[:3]
    assert choose_prompts([], 4) == []


def test_the_length_bias_is_said_only_where_chance_would_not_do() -> None:
    def pairs(longer: int, shorter: int) -> str:
        chosen = np.array([2.0] * longer + [1.0] * shorter)
        return length_bias(Column(chars=chosen), Column(chars=3 - chosen)).replace("\u00a0", " ")

    assert "longer in 80 % of the 100 pairs, shorter in 20 %" in pairs(80, 20)
    assert "may learn to write longer" in pairs(80, 20)
    assert "may learn to write shorter" in pairs(20, 80)
    assert "no sign of a length bias" in pairs(55, 45)
    same = Column(chars=np.ones(3))
    assert "these pairs have no length bias" in length_bias(same, same)


def test_the_papers_figure(results: dict[str, Any]) -> None:
    figure = comparison_figure(results["searches"])
    assert [axes.get_ylabel() for axes in figure.axes] == [
        *("mean best reward", "mean top-10 reward", "accuracy of the best play")
    ]
    best, _, accuracy = figure.axes
    lines = [line for line in best.lines if np.size(line.get_xdata()) == 3]
    toa = [s for s in results["searches"] if s["name"] == "toa"]
    assert len(lines) == 6
    assert list(np.asarray(lines[-1].get_xdata())) == [s["flops"] for s in toa]
    assert list(np.asarray(lines[-1].get_ydata())) == [s["mean_best_reward"] for s in toa]
    assert best.get_xscale() == "log"
    intervals = [line.get_ydata() for line in accuracy.lines if np.size(line.get_xdata()) == 2]
    assert [s["interval"] for s in results["searches"]] == [
        list(np.asarray(interval)) for interval in intervals
    ]
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind)
        assert buffer.getvalue()


def test_the_papers_figure_takes_what_there_is() -> None:
    one = {
        "name": "toa $x$",
        "budget": 8,
        "accuracy": None,
        "tokens": 100,
        "flops": None,
        "mean_best_reward": 0.1,
    }
    assert [axes.get_xlabel() for axes in comparison_figure([one]).axes] == ["tokens per prompt"]
    comparison_figure([]).savefig(io.BytesIO(), format="svg")


def test_bundled_files_are_shown_as_configurations_name_them() -> None:
    model = "toa_trl/demo/weights/student"
    agents = [{"name": "a", "engine": "transformers", "model": str(ROOT / model)}]
    assert plain(agents) == f"name a, engine transformers, model {model}"


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.0, "12"), (1e15, "10¹⁵"), (3.44e-7 * 1e22, "3.4×10¹⁵"), (99_999.0, "99,999")],
)
def test_powers(value: float, text: str) -> None:
    assert figures.power(value) == text


@pytest.mark.parametrize("order", [["b", "a", "never"], []])
def test_an_agent_has_one_colour_in_card_and_report(
    tmp_path: Path, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [("b", 1.0), ("c", 2.0), ("a", 3.0), ("a", 4.0)]
    rows = []
    for play, (agent, reward) in enumerate(kinds):
        rows.append({"prompt_id": "p", "play": play, "agent": agent, "reward": reward})
        rows[-1] |= {"kind": "answer", "parent": None, "depth": 0, "refs": []}
    files = write_plays(tmp_path, rows)
    drawn: list[tuple[str, str, Any]] = []
    draw = figures.distributions

    def spy(rows: Any, xlabel: str) -> Any:
        drawn.extend(rows)
        return draw(rows, xlabel)

    monkeypatch.setattr(figures, "distributions", spy)
    configuration = {"agents": [{"name": name} for name in order]}
    write = unwrap(picture.write_reward_picture)  # `save` in a test draws none
    assert write(tmp_path, configuration, {}) == "rewards.png"
    in_report = list(rollouts.summarize(files, order).tallies)
    for label, shade, _ in drawn:
        assert shade == figures.color(in_report.index(label.split(",")[0]))
    assert len(drawn) == 3


def test_twelve_agents_have_twelve_colours() -> None:
    assert len({figures.color(i) for i in range(12)}) == 12
