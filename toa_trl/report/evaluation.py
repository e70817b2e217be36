"""The sections of the page about results.json: win rates, AlpacaEval, lm-eval, data table."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from toa_trl.report import figures
from toa_trl.report.html import (
    DASH,
    Picture,
    Section,
    Table,
    costs,
    finite,
    listed,
    many,
    number,
    whole,
    with_bounds,
    with_error,
)

Row = Mapping[str, Any]
OUTCOMES = ("won / tied / lost", "failed")
DATA_CAPTION = (
    "Means over the seeds, each of the sampling and of the training after it. Intervals (95 %) are "
    "of seeds and problems drawn anew, and narrow where seeds are few. Those of the difference "
    "know that the best was picked among the rows: equal searches are all within them in 95 of "
    "100 tables. Tokens and FLOPs are those of the agents per prompt."
)


def sections(results: Mapping[str, Any]) -> list[Section]:
    """Return a section for each part that results.json has."""
    parts: dict[str, Callable[[Any], Section]] = {
        "win_rates": win_rates,
        "alpaca_eval": alpaca_eval,
        "lm_eval": lm_eval,
        "data_table": data_table,
        "student_differences": student_differences,
    }
    return [section(results[name]) for name, section in parts.items() if results.get(name)]


def win_rates(rows: Sequence[Row]) -> Section:
    """Show how often models beat a baseline, also at matched length."""
    section = Section("win-rates", "Against a baseline")
    measured = [row for row in rows if finite(row.get("win_rate")) is not None]
    if measured:
        several = len({row["baseline"] for row in measured}) > 1
        bars = []
        for row in measured:
            label = f"{row['model']}, {row['by']}" + (f", {row['baseline']}" if several else "")
            rings = [row.get("win_rate_matched_length")]
            bars.append(figures.Bar(label, row["win_rate"], row.get("interval"), rings))
        judges = dict.fromkeys(row["by"] for row in measured)
        text = " ".join(_describe_wins(judge, measured) for judge in judges)
        text += " A tie counts half; the line at 0.5 means no difference, rings are win rates at "
        text += "matched length."
        figure = figures.share_bars(bars, "win rate", mark=0.5)
        section.blocks.append(Picture([figures.inline_svg(figure, "win rates", "win-rates")], text))
        for row in filter(_wins_by_length, measured):
            text = f"By {row['by']} {row['model']} wins, but among the "
            text += f"{many(row['num_matched'], 'pair')} of like length it cannot be told from "
            text += f"{row['baseline']}: a part of the win may be length."
            section.blocks.append(text)
    cells = []
    for row in rows:
        rate = with_bounds(row.get("win_rate"), row.get("interval"))
        matched = (row.get("win_rate_matched_length"), row.get("interval_matched_length"))
        counts = [whole(row.get("num_matched")), *_outcomes(row), *_lengths(row)]
        cells.append([row["model"], row["baseline"], row["by"], rate, with_bounds(*matched)])
        cells[-1] += counts
    header = ["model", "against", "by", "win rate", "at matched length", "pairs of like length"]
    header += [*OUTCOMES, "words", "of the baseline"]
    caption = "With 95 % intervals. Failed comparisons are counted, but excluded from the rates."
    section.blocks.append(Table(header, cells, caption))
    return section


def _describe_wins(judge: str, rows: Sequence[Row]) -> str:
    """Describe which models beat the baseline by one judge."""
    own = [row for row in rows if row["by"] == judge]
    groups: dict[tuple[str, str], list[str]] = {
        ("beats", "beat"): [],
        ("loses to", "lose to"): [],
        ("cannot be told from", "cannot be told from"): [],
    }
    wins, losses, ties = groups.values()
    for row in own:
        low, high = row.get("interval") or (0.0, 1.0)
        group = wins if low > 0.5 else losses if high < 0.5 else ties
        group.append(f"{row['model']} ({row['win_rate']:.3f})")
    baselines = listed(dict.fromkeys(row["baseline"] for row in own))
    parts = []
    for (singular, plural), models in groups.items():
        if models:
            verb = plural if len(models) > 1 else singular
            parts.append(f"{listed(models)} {verb} {baselines}")
    return f"By {judge}, {'; '.join(parts)}."


def _wins_by_length(row: Row) -> bool:
    """Return whether the model wins, but not at matched length."""
    low, _ = row.get("interval") or (0.0, 1.0)
    low_matched, _ = row.get("interval_matched_length") or (1.0, 1.0)
    return bool(low > 0.5 >= low_matched)


def alpaca_eval(models: Mapping[str, Row]) -> Section:
    """Show AlpacaEval 2, with length-controlled win rates if present."""
    section = Section("alpaca-eval", "AlpacaEval 2")
    cells, notes, rates = [], [], {}
    for name, row in models.items():
        rate = with_error(row.get("win_rate"), row.get("standard_error"))
        controlled = row.get("length_controlled_win_rate")
        controlled_rate = with_error(controlled, row.get("length_controlled_standard_error"))
        judged = [row.get("baseline", DASH), row.get("annotator", DASH), rate, controlled_rate]
        cells.append([name, *judged, *_outcomes(row), *_lengths(row)])
        if row.get("note"):
            notes.append(f"{name}: {row['note']}.")
        if finite(row.get("win_rate")) is not None:
            rates[name] = row["win_rate"]
    if rates:
        best = max(rates, key=lambda name: rates[name])
        section.blocks.append(f"{best} has the highest win rate: {number(rates[best])}.")
    header = ["model", "against", "annotator", "win rate", "length-controlled"]
    header += [*OUTCOMES, "characters", "of the baseline"]
    table = Table(header, cells, "Win rates in [0, 1], with one standard error.")
    section.blocks += [table, *notes]
    return section


def lm_eval(models: Mapping[str, Mapping[str, Row]]) -> Section:
    """Show lm-eval: tasks and metrics in rows, models in columns."""
    tasks = list(dict.fromkeys(chain(*models.values())))
    cells = []
    for task in tasks:
        rows = [results.get(task, {}) for results in models.values()]
        problems = next((row["num_problems"] for row in rows if row.get("num_problems")), None)
        for metric in dict.fromkeys(chain(*rows)):
            if metric == "num_problems" or metric.endswith("_stderr"):
                continue
            if any(finite(row.get(metric)) is not None for row in rows):
                values = [with_error(row.get(metric), row.get(f"{metric}_stderr")) for row in rows]
                cells.append([task, metric, *values, whole(problems)])
    caption = f"{many(len(tasks), 'task')} by lm-eval, with one standard error where it gives one."
    table = Table(["task", "metric", *models, "problems"], cells, caption)
    return Section("lm-eval", "Other benchmarks", [table])


def data_table(rows: Sequence[Row]) -> Section:
    """Show the students trained on each search's data."""
    section = Section("data-table", "What a student learns from each search")
    bars, cells = [], []
    named = _with_labels(rows)
    for row in named:
        accuracy, interval = row["accuracy"], row.get("interval")
        bars.append(figures.Bar(row["label"], accuracy, interval, row.get("per_seed", ())))
        behind = [-end for end in reversed(row.get("gap_interval") or ())]
        difference = with_bounds(-row["gap"], behind) if behind else DASH
        scores = [with_bounds(accuracy, interval), number(row.get("accuracy_std")), difference]
        data = [number(row.get("mean_reward")), number(row.get("data_accuracy"))]
        data += costs(row, "tokens", "flops")
        cells.append([row["label"], *scores, whole(row.get("num_rows")), *data])
    taught = [row for row in named if row.get("per_seed")]
    if taught:
        figure = figures.share_bars(bars, "accuracy on held-out problems")
        panel = figures.inline_svg(figure, "accuracy of the students of each search", "data-table")
        section.blocks.append(Picture([panel], _describe_students(taught)))
    header = ["data of", "accuracy", "sd of the seeds", "against the best", "rows"]
    header += ["their mean reward", "right among them", "tokens", "FLOPs"]
    section.blocks.append(Table(header, cells, DATA_CAPTION))
    overlapping = finite(taught[0].get("num_overlapping")) if taught else None
    if overlapping:
        text = f"{many(overlapping, 'prompt')} of those trained on "
        text += f"{'shares' if overlapping == 1 else 'share'} 13 words in a row, or all of a "
        text += "shorter question, with a held-out problem; none is the same."
        section.blocks.append(text)
    return section


def student_differences(rows: Sequence[Row]) -> Section:
    """Show the paired differences of the students to those of the baseline."""
    cells = []
    for row in rows:
        interval = row.get("interval")
        named = [row["search"], whole(row["budget"]), row["baseline"]]
        difference = with_bounds(row["difference"], interval)
        further = [number(row.get(key)) for key in ("smallest_visible", "flops_ratio")]
        cells.append([*named, whole(row["baseline_budget"]), difference, *further])
    header = ["student of", "plays", "against that of", "its plays", "difference in accuracy"]
    header += ["smallest visible", "FLOPs relative to it"]
    caption = "Paired over seeds and problems, with 95 % intervals of differences that were named "
    caption += "before the trainings. Plays are those that the budget allows per prompt, FLOPs "
    caption += "those of the agents."
    title = "Students against the baseline's"
    return Section("student-differences", title, [Table(header, cells, caption)])


def _with_labels(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows with labels, which have the budget where there are several."""
    several = len({row["budget"] for row in rows if row.get("budget")}) > 1
    named = []
    for row in rows:
        at = f" at {row['budget']}" if several and row.get("budget") else ""
        named.append({**row, "label": row["search"] + at})
    return named


def _describe_students(rows: Sequence[Row]) -> str:
    """Describe which student is best, and which ones are not measurably worse."""
    best = max(rows, key=lambda row: float(row["accuracy"]))
    seeds, problems = many(len(best["per_seed"]), "seed"), best.get("num_problems")
    same = len({row["budget"] for row in rows}) == 1
    budget = f"{many(best['budget'], 'play')} per prompt" if same else "one budget"
    text = f"Each student was trained on what one search found at {budget} ({seeds}, the rings)"
    text += f", and judged on {many(problems, 'held-out problem')}. " if problems else ". "
    text += f"The data of {best['label']} make the best one ({number(best['accuracy'])})."
    close: list[str] = []
    behind: list[str] = []
    for row in rows:
        if row is not best:
            low, _ = row.get("gap_interval") or (0.0, 0.0)
            (behind if low > 0 else close).append(row["label"])
    if behind:
        text += f" Those of {listed(behind)} make a worse one."
    if close:
        text += f" Those of {listed(close)} cannot be told from it."
    intervals = [row["gap_interval"] for row in rows if row.get("gap_interval")]
    if intervals:
        half_width = max(high - low for low, high in intervals) / 2
        text += f" {seeds} tell a difference from about {number(half_width)} on."
    elif len(rows) > 1:
        text += " One seed is not enough to tell: two students of one search differ, too."
    return text


def _outcomes(row: Row) -> list[str]:
    """Return the cells under OUTCOMES."""
    decided = [whole(row.get(f"num_{outcome}")) for outcome in ("wins", "ties", "losses")]
    return [" / ".join(decided), whole(row.get("num_failed"))]


def _lengths(row: Row) -> list[str]:
    return [whole(row.get("mean_length")), whole(row.get("baseline_mean_length"))]
