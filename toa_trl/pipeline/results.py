"""What the evaluations of a pipeline found: results.json and report.html of the whole folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toa_trl.evaluation.results import terminal_tables, update_results
from toa_trl.pipeline.config import StageConfig
from toa_trl.pipeline.plan import Plan

FIGURES = (
    *("accuracy", "interval", "mean_verifier_score", "chrf", "bleu", "comet"),
    *("mean_reward", "mean_reward_interval"),
)


def collect(plan: Plan, stage: StageConfig, number: int) -> list[dict[str, Any]]:
    """Copy the results of an evaluation to those of the whole folder; return the rounds' rows."""
    results = _read(plan, stage, number)
    rows = [] if plan.rounds is None or "student" not in results else round_rows(results)
    rows = with_gate(plan, rows)
    parts = {**results, "rounds": rows} if rows else results
    for part, value in parts.items():
        update_results(plan.output / "results.json", part, value)
    return rows


def with_gate(plan: Plan, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of rounds with what the gate has decided, where it has."""
    decisions = [plan.decision(row["round"]) for row in rows]
    return [
        {**row, "accepted": decision["accepted"]} if decision else row
        for row, decision in zip(rows, decisions, strict=True)
    ]


def report(plan: Plan, number: int) -> Path | None:
    """Write report.html of the last synthesis with the results of the last evaluation, if any."""
    from toa_trl.report.page import write_report  # matplotlib

    made = {stage.run: stage for stage in plan.stages}
    if "synthesize" not in made:
        return None
    results = _read(plan, made["evaluate"], number) if "evaluate" in made else None
    run = plan.folder(number, made["synthesize"].folder)
    return Path(write_report(run, output=plan.output / "report.html", results=results))


def round_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per round of an evaluation; round 0 is the untrained student.

    Args:
        results: of `toa-trl evaluate`, over the students of all rounds.

    Returns:
        Rows with `round`, those of `FIGURES` that were measured, and from round 1 on `win_rate` and
        `win_rate_interval` against round 0 by the first of judge, reward and verifier that compared
        them (`win_rate_by`).
    """
    rows = []
    for number, (name, figures) in enumerate(results["student"].items()):
        row = {"round": number, **{key: figures[key] for key in FIGURES if key in figures}}
        rates = {
            rate["by"]: rate for rate in results.get("win_rates") or () if rate["model"] == name
        }
        by = next((judge for judge in ("judge", "reward", "verifier") if judge in rates), None)
        if by is not None:
            row["win_rate"] = rates[by]["win_rate"]
            row["win_rate_interval"] = rates[by]["interval"]
            row["win_rate_by"] = by
        rows.append(row)
    return rows


def row_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of rounds as tables for a terminal."""
    return terminal_tables(
        [{key: value for key, value in row.items() if key != "win_rate_by"} for row in rows]
    )


def _read(plan: Plan, stage: StageConfig, number: int) -> dict[str, Any]:
    file = plan.folder(number, stage.folder) / "results.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))
