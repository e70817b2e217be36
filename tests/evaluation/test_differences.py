"""Differences to a baseline are paired over prompts, and those of students over seeds too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import play, rollout, wait
from toa_trl.evaluation.comparison import SearchResult, measure_search
from toa_trl.evaluation.differences import paired_differences, student_differences
from toa_trl.evaluation.intervals import gap_bounds, planned_bound
from toa_trl.tasks import make_task


def runs(gain: float) -> list[SearchResult]:
    # prompts differ far more than searches do, which pairing takes out
    prompts = [rollout(play(0, 10.0 * i + gain + i % 2), id=f"p{i}") for i in range(20)]
    return [wait(measure_search(prompts, make_task("alignment"), None))]


def test_differences_are_paired_over_prompts() -> None:
    results = {("toa", 8): runs(0.5), ("parallel", 8): runs(0.0)}
    (difference,) = paired_differences(results, "parallel", None)
    names = [difference[key] for key in ("name", "baseline", "budget", "baseline_budget")]
    assert names == ["toa", "parallel", 8, 8]
    assert difference["measure"] == "mean_best_reward"
    assert difference["difference"] == pytest.approx(0.5)
    assert difference["interval"] == pytest.approx((0.5, 0.5))
    assert difference["smallest_visible"] == pytest.approx(0.0, abs=1e-9)


def test_a_budget_of_the_baseline_is_compared_beside_the_same_one() -> None:
    results = {("toa", 8): runs(0.5), ("parallel", 8): runs(0.0), ("parallel", 32): runs(2.0)}
    table = paired_differences(results, "parallel", 32)
    found = {(row["name"], row["budget"], row["baseline_budget"]): row for row in table}
    expected = {("toa", 8, 8): 0.5, ("toa", 8, 32): -1.5, ("parallel", 8, 32): -2.0}
    assert {key: row["difference"] for key, row in found.items()} == pytest.approx(expected)


def test_students_are_compared_with_the_flops_of_their_data() -> None:
    right = {
        ("toa", 8): np.array([[1.0, 1, 0, 0], [1, 1, 1, 0]]),
        ("uniform", 24): np.array([[1.0, 0, 0, 0], [1, 1, 0, 0]]),
    }
    rows: list[dict[str, Any]] = [{"search": "untrained"}]
    rows += [{"search": "toa", "budget": 8, "flops": 1e6}]
    rows += [{"search": "uniform", "budget": 24, "flops": 4e6}]
    (row,) = student_differences(rows, right, "uniform", 24)
    assert (row["difference"], row["per_seed"], row["flops_ratio"]) == (0.25, [0.25, 0.25], 0.25)
    low, high = row["interval"]
    assert (low + high) / 2 == pytest.approx(0.25)
    assert (high - low) / 2 == pytest.approx(row["smallest_visible"])
    single = {cell: verdicts[:1] for cell, verdicts in right.items()}
    rows[1]["flops"] = rows[2]["flops"] = 0.0  # unknown
    (row,) = student_differences(rows, single, "uniform", 24)
    assert row.keys().isdisjoint({"interval", "flops_ratio"})


def test_intervals_of_planned_differences_hold_what_they_say() -> None:
    rng, covered, narrower = np.random.default_rng(5), 0, 0
    for _ in range(400):
        shares = rng.normal(0.75, 0.03, (5, 3, 1)) + np.linspace(0, 0.04, 5)[:, None, None]
        drawn = (rng.random((5, 3, 480)) < shares).astype(float)
        right = dict(enumerate(drawn))
        bound = planned_bound(right, 4, 0)
        assert bound is not None
        covered += abs((drawn[4] - drawn[0]).mean() - 0.04) <= bound
        narrower += bound < gap_bounds(right)[0]
    assert 0.93 <= covered / 400 <= 0.995
    assert narrower == 400  # nothing was picked
