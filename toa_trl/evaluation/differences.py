"""Paired differences to a baseline: of searches over prompts, of students over seeds too."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toa_trl.evaluation.comparison import Cell, SearchResult, mean_rows
from toa_trl.evaluation.intervals import bootstrap, planned_bound


def paired_differences(
    results: Mapping[Cell, Sequence[SearchResult]], baseline: str, baseline_budget: int | None
) -> list[dict[str, Any]]:
    """Compare every search with the baseline, over the same prompts.

    Args:
        results: (search, budget) -> a result for each seed, the same seeds for all.
        baseline: one of the searches.
        baseline_budget: budget of the baseline that the others are also compared with, beside their
            own.

    Returns:
        {"name", "budget", "baseline", "baseline_budget", "measure", "difference" (mean over prompts
        of the paired differences), "interval" (95 %, paired bootstrap over prompts),
        "smallest_visible" (half the width of the interval: smaller differences cannot be told from
        none), "num_problems"}. The measure is the accuracy or the verifier's score if there is one,
        otherwise the best reward.
    """
    table = []
    for cell, against in _pairs(results, baseline, baseline_budget):
        ours, theirs = mean_rows(results[cell]), mean_rows(results[against])
        shared = [prompt_id for prompt_id in ours if prompt_id in theirs]
        if not shared:
            continue
        measure = next(iter(ours[shared[0]]))
        values = [ours[prompt_id][measure] - theirs[prompt_id][measure] for prompt_id in shared]
        low, high = bootstrap(values)
        table.append(
            {
                "name": cell[0],
                "baseline": baseline,
                "budget": cell[1],
                "baseline_budget": against[1],
                "measure": measure,
                "difference": mean(values),
                "interval": (low, high),
                "smallest_visible": (high - low) / 2,
                "num_problems": len(shared),
            }
        )
    return table


def student_differences(
    rows: Iterable[Mapping[str, Any]],
    right: Mapping[Cell, NDArray[np.float64]],
    baseline: str,
    baseline_budget: int | None,
) -> list[dict[str, Any]]:
    """Compare every student with the baseline's, over the same seeds and problems.

    Args:
        rows: of the data table.
        right: (search, budget) -> 1 or 0, shape (seeds, problems), the same for all.
        baseline: one of the searches.
        baseline_budget: see `paired_differences`.

    Returns:
        {"search", "budget", "baseline", "baseline_budget", "difference" (of the accuracies),
        "per_seed", "flops_ratio" (FLOPs of the agents relative to the baseline's, if known)}, with
        several seeds also "interval" (95 %, see `planned_bound`) and "smallest_visible".
    """
    flops = {(row["search"], row["budget"]): row["flops"] for row in rows if "budget" in row}
    table = []
    for cell, against in _pairs(right, baseline, baseline_budget):
        per_seed = [float(value) for value in (right[cell] - right[against]).mean(axis=1)]
        row: dict[str, Any] = {
            "search": cell[0],
            "budget": cell[1],
            "baseline": baseline,
            "baseline_budget": against[1],
            "difference": mean(per_seed),
            "per_seed": per_seed,
        }
        if flops[against]:
            row["flops_ratio"] = flops[cell] / flops[against]
        bound = planned_bound(right, cell, against)
        if bound is not None:
            row["interval"] = (row["difference"] - bound, row["difference"] + bound)
            row["smallest_visible"] = bound
        table.append(row)
    return table


def _pairs(
    cells: Iterable[Cell], baseline: str, baseline_budget: int | None
) -> Iterator[tuple[Cell, Cell]]:
    """Yield every cell with those of the baseline that it is compared with."""
    known = list(cells)
    for name, budget in known:
        for against in dict.fromkeys((budget, baseline_budget or budget)):
            if (baseline, against) in known and (name, budget) != (baseline, against):
                yield (name, budget), (baseline, against)
