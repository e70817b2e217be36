"""The sections of the page about results.json: win rates, AlpacaEval, lm-eval, data table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toa_trl.report import figures
from toa_trl.report.html import DASH, MINUS, Picture, Section, Table, count, listed, many

Row = Mapping[str, Any]
OUTCOMES = ("won / tied / lost", "failed")


def sections(results: Mapping[str, Any]) -> list[Section]:
    """Return a section for each part that results.json has."""
    parts: dict[str, Callable[[Any], Section]] = {
        "win_rates": win_rates,
        "alpaca_eval": alpaca_eval,
        "lm_eval": lm_eval,
        "data_table": data_table,
    }
    return [section(results[name]) for name, section in parts.items() if results.get(name)]


def win_rates(rows: Sequence[Row]) -> Section:
    """Show how often models beat a baseline, also at matched length."""
    section = Section("win-rates", "Against a baseline")
    measured = [row for row in rows if known(row.get("win_rate")) is not None]
    if measured:
        labels = [f"{row['model']}, {row['by']}" for row in measured]
        if len({row["baseline"] for row in measured}) > 1:
            labels = [
                f"{label}, {row['baseline']}" for label, row in zip(labels, measured, strict=True)
            ]
        bars = []
        for label, row in zip(labels, measured, strict=True):
            matched = known(row.get("win_rate_matched_length"))
            bars.append(
                figures.Bar(
                    label,
                    row["win_rate"],
                    row.get("interval"),
                    [] if matched is None else [matched],
                )
            )
        text = " ".join(
            _beaten(by, measured) for by in dict.fromkeys(row["by"] for row in measured)
        )
        text += (
            " A tie counts half; the line at 0.5 means no difference, rings are win rates at "
            "matched length."
        )
        figure = figures.share_bars(bars, "win rate", mark=0.5)
        section.blocks.append(Picture([figures.inline_svg(figure, "win rates", "win-rates")], text))
        section.blocks += [_doubt(row) for row in measured if _by_length(row)]
    cells = []
    for row in rows:
        at_length = with_bounds(
            row.get("win_rate_matched_length"), row.get("interval_matched_length")
        )
        rate = with_bounds(row.get("win_rate"), row.get("interval"))
        counts = [_whole(row.get("num_matched")), *_outcomes(row), *_lengths(row)]
        cells.append([row["model"], row["baseline"], row["by"], rate, at_length, *counts])
    header = [
        "model",
        "against",
        "by",
        "win rate",
        "at matched length",
        "pairs of like length",
        *OUTCOMES,
        "words",
    ]
    caption = "With 95 % intervals. Failed comparisons are counted, but excluded from the rates."
    section.blocks.append(Table([*header, "of the baseline"], cells, caption))
    return section


def _beaten(by: str, rows: Sequence[Row]) -> str:
    """Describe which models beat the baseline by one judge."""
    own = [row for row in rows if row["by"] == by]
    groups: dict[str, list[str]] = {"beat": [], "lose to": [], "cannot be told from": []}
    for row in own:
        low, high = row.get("interval") or (0.0, 1.0)
        verdict = "beat" if low > 0.5 else "lose to" if high < 0.5 else "cannot be told from"
        groups[verdict].append(f"{row['model']} ({row['win_rate']:.3f})")
    baselines = listed(dict.fromkeys(row["baseline"] for row in own))
    parts = []
    for verdict, models in groups.items():
        verb = (
            verdict
            if len(models) > 1
            else {"beat": "beats", "lose to": "loses to"}.get(verdict, verdict)
        )
        parts += [f"{listed(models)} {verb} {baselines}"] if models else []
    return f"By {by}, {'; '.join(parts)}."


def _by_length(row: Row) -> bool:
    """Return whether the model wins, but not at matched length."""
    plain, matched = (
        row.get("interval") or (0.0, 1.0),
        row.get("interval_matched_length") or (1.0, 1.0),
    )
    return bool(plain[0] > 0.5 >= matched[0])


def _doubt(row: Row) -> str:
    return (
        f"By {row['by']} {row['model']} wins, but among the {many(row['num_matched'], 'pair')} of "
        "like length it cannot be "
        f"told from {row['baseline']}: a part of the win may be length."
    )


def alpaca_eval(models: Mapping[str, Row]) -> Section:
    """Show AlpacaEval 2, with length-controlled win rates if present."""
    section = Section("alpaca-eval", "AlpacaEval 2")
    cells, notes = [], []
    for name, row in models.items():
        errors = [
            _with_error(row.get(f"{kind}win_rate"), row.get(f"{kind}standard_error"))
            for kind in ("", "length_controlled_")
        ]
        who = [row.get(key, DASH) for key in ("baseline", "annotator")]
        cells.append([name, *who, *errors, *_outcomes(row), *_lengths(row)])
        if row.get("note"):
            notes.append(f"{name}: {row['note']}.")
    rates = {
        name: rate
        for name, row in models.items()
        if (rate := known(row.get("win_rate"))) is not None
    }
    if rates:
        best = max(rates, key=lambda name: rates[name])
        section.blocks.append(f"{best} has the highest win rate: {number(rates[best])}.")
    header = [
        "model",
        "against",
        "annotator",
        "win rate",
        "length-controlled",
        *OUTCOMES,
        "characters",
    ]
    section.blocks.append(
        Table([*header, "of the baseline"], cells, "Win rates in [0, 1], with one standard error.")
    )
    section.blocks += notes
    return section


def lm_eval(models: Mapping[str, Mapping[str, Row]]) -> Section:
    """Show lm-eval: tasks and metrics in rows, models in columns."""
    tasks = list(dict.fromkeys(task for of in models.values() for task in of))
    cells = []
    for task in tasks:
        found = [of.get(task, {}) for of in models.values()]
        problems = next((row["num_problems"] for row in found if row.get("num_problems")), None)
        for metric in dict.fromkeys(key for row in found for key in row if key != "num_problems"):
            if not metric.endswith("_stderr") and any(
                known(row.get(metric)) is not None for row in found
            ):
                values = [
                    _with_error(row.get(metric), row.get(f"{metric}_stderr")) for row in found
                ]
                cells.append([task, metric, *values, _whole(problems)])
    caption = f"{many(len(tasks), 'task')} by lm-eval, with one standard error where it gives one."
    return Section(
        "lm-eval",
        "Other benchmarks",
        [Table(["task", "metric", *models, "problems"], cells, caption)],
    )


def data_table(rows: Sequence[Row]) -> Section:
    """Show the students trained on each search's data."""
    section = Section("data-table", "What a student learns from each search")
    taught = [row for row in rows if row.get("per_seed")]
    bars = [
        figures.Bar(row["search"], row["accuracy"], row.get("interval"), row.get("per_seed", ()))
        for row in rows
    ]
    if taught:
        figure = figures.share_bars(bars, "accuracy on held-out problems")
        panel = figures.inline_svg(figure, "accuracy of the students of each search", "data-table")
        section.blocks.append(Picture([panel], _verdict(taught)))
    cells = []
    for row in rows:
        shares = [
            with_bounds(row["accuracy"], row.get("interval")),
            number(row.get("accuracy_std")),
        ]
        gap = [-end for end in reversed(row.get("gap_interval") or ())]
        data = [
            _whole(row.get("num_rows")),
            number(row.get("mean_reward")),
            number(row.get("data_accuracy")),
        ]
        costs = [figures.power(row[key]) if row.get(key) else DASH for key in ("tokens", "flops")]
        cells.append(
            [row["search"], *shares, with_bounds(-row["gap"], gap) if gap else DASH, *data, *costs]
        )
    header = [
        "data of",
        "accuracy",
        "sd of the seeds",
        "against the best",
        "rows",
        "their mean reward",
        "right among them",
    ]
    caption = (
        "Means over the seeds, each of the sampling and of the training after it. Intervals (95 "
        "%) are of seeds and problems "
        "drawn anew, and narrow where seeds are few. Those of the difference know that the best "
        "was picked among the rows: "
        "equal searches are all within them in 95 of 100 tables. Tokens and FLOPs are those of "
        "the agents per prompt."
    )
    section.blocks.append(Table([*header, "tokens", "FLOPs"], cells, caption))
    if taught and (overlapping := known(taught[0].get("num_overlapping"))):
        near = "shares" if overlapping == 1 else "share"
        section.blocks.append(
            f"{many(overlapping, 'prompt')} of those trained on {near} 13 words in a row, or all "
            "of a shorter question, with "
            "a held-out problem; none is the same."
        )
    return section


def _verdict(rows: Sequence[Row]) -> str:
    """Describe which student is best, and which ones are not measurably worse."""
    best = max(rows, key=lambda row: float(row["accuracy"]))
    seeds, problems = len(best["per_seed"]), best.get("num_problems")
    text = (
        f"Each student was trained on what one search found at {many(best['budget'], 'play')} "
        "per prompt"
    )
    text += f" ({many(seeds, 'seed')}, the rings)"
    text += f", and judged on {many(problems, 'held-out problem')}. " if problems else ". "
    text += f"The data of {best['search']} make the best one ({number(best['accuracy'])}). "
    close = [row["search"] for row in rows if row is not best and not _apart(row)]
    behind = [row["search"] for row in rows if row is not best and _apart(row)]
    if behind:
        text += f"Those of {listed(behind)} make a worse one. "
    if close:
        text += f"Those of {listed(close)} cannot be told from it. "
    if bounds := [row["gap_interval"] for row in rows if row.get("gap_interval")]:
        half_width = max(high - low for low, high in bounds) / 2
        text += f"{many(seeds, 'seed')} tell a difference from about {number(half_width)} on."
    elif len(rows) > 1:
        text += "One seed is not enough to tell: two students of one search differ, too."
    return text.strip()


def _apart(row: Row) -> bool:
    return bool(row.get("gap_interval")) and row["gap_interval"][0] > 0


def known(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return value if real and math.isfinite(value) else None


def number(value: Any) -> str:
    """Return a number with three decimals; a dash if it is unknown."""
    return DASH if known(value) is None else f"{round(value, 3) + 0.0:,.3f}".replace("-", MINUS)


def with_bounds(value: Any, bounds: Sequence[float] | None = None) -> str:
    """Return a number with its interval: 0.770 (0.721 to 0.819)."""
    if known(value) is None or not bounds:
        return number(value)
    return f"{number(value)} ({number(bounds[0])} to {number(bounds[1])})"


def _with_error(value: Any, error: Any) -> str:
    return (
        f"{number(value)} ± {number(error)}"
        if known(value) is not None and known(error) is not None
        else number(value)
    )


def _outcomes(row: Row) -> list[str]:
    """Return the cells under OUTCOMES."""
    decided = [_whole(row.get(f"num_{outcome}")) for outcome in ("wins", "ties", "losses")]
    return [" / ".join(decided), _whole(row.get("num_failed"))]


def _lengths(row: Row) -> list[str]:
    return [_whole(row.get("mean_length")), _whole(row.get("baseline_mean_length"))]


def _whole(value: Any) -> str:
    return DASH if known(value) is None else count(value)
