"""The gate: does a student replace the best one before it? Decided on held-out prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from toa_trl.errors import ToaError
from toa_trl.pipeline.config import GateConfig
from toa_trl.pipeline.plan import GATE, Plan
from toa_trl.utils.files import write_json
from toa_trl.utils.targets import marked


def decide(gate: GateConfig, rows: Sequence[Mapping[str, Any]], best: int) -> dict[str, Any]:
    """Return the decision on the student of the last row.

    Args:
        gate: which figure decides, and how.
        rows: one for each round, see `toa_trl.pipeline.results.round_rows`.
        best: round of the best student before.

    Returns:
        accepted, metric, value, best (the round compared with), best_value and tolerance.

    Raises:
        ToaError: the evaluation did not measure the figure.
    """
    value, before = _figure(gate, rows[-1]), _figure(gate, rows[best])
    return {
        "accepted": value >= before - gate.tolerance,
        "metric": gate.metric,
        "value": value,
        "best": best,
        "best_value": before,
        "tolerance": gate.tolerance,
    }


def write_decision(plan: Plan, number: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Decide on the student of a round, and write gate.json into its folder. Idempotent."""
    assert plan.config.gate is not None
    decision = decide(plan.config.gate, rows, plan.accepted(number - 1))
    write_json(plan.folder(number, GATE), marked(decision))
    return decision


def describe(decision: Mapping[str, Any], number: int) -> str:
    """Return a decision in one line."""
    verdict = "accepted" if decision["accepted"] else "refused"
    return (
        f"gate: the student of round {number} is {verdict}: {decision['metric']} "
        f"{decision['value']:.4g}, that of round {decision['best']} {decision['best_value']:.4g}"
    )


def _figure(gate: GateConfig, row: Mapping[str, Any]) -> float:
    if gate.metric == "win_rate" and row["round"] == 0:
        return 0.5  # against itself
    if row.get(gate.metric) is None:
        raise ToaError(f"gate: the evaluation of round {row['round']} has no {gate.metric}")
    return float(row[gate.metric])
