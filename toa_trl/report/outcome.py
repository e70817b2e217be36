"""The sections of the page about the results: training pairs, the student, searches compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from toa_trl.report import figures
from toa_trl.report.evaluation import known, number, with_bounds
from toa_trl.report.html import (
    DASH,
    Picture,
    Section,
    Table,
    bar,
    chip,
    count,
    listed,
    many,
    rewards,
    share,
    signed,
)
from toa_trl.report.training import Column, Floats

STAGES = {"base": "before", "sft": "after SFT", "dpo": "after DPO"}
MEASURES = {  # key of results.json -> label
    "accuracy": "greedy accuracy",
    "sampled_accuracy": "sampled accuracy",
    "maj_at_k": "maj@k",
    "pass_at_k": "pass@k",
    "mean_verifier_score": "verifier",
    "mean_reward": "mean reward",
    "chrf": "chrF",
    "bleu": "BLEU",
    "comet": "COMET",
    "mean_length": "words",
    "num_truncated": "truncated",
    "num_unjudged": "not judged",
    "num_problems": "problems",
}
# shown as whole numbers; no column if all are zero
WHOLE = {"mean_length", "num_truncated", "num_unjudged", "num_problems"}
# the text describes the first of these that was measured
LEADS = ("accuracy", "comet", "chrf", "bleu", "mean_verifier_score", "mean_reward")
# keys of intervals that do not end in _interval
BOUNDS = {"accuracy": "interval", "sampled_accuracy": "sampled_interval"}
OVER_N = (
    "The best of N rewards, over N. A point is a run with the budget N; a line shows the run with "
    "the largest budget after N plays. They differ for searches that plan with their budget: toa "
    "and "
    "prs spend a larger budget on more first answers, so for these the points are best-of-N."
)


def training_data(
    sft: Column, chosen: Column, rejected: Column, agents: Mapping[str, int]
) -> Section:
    """Compare chosen with rejected responses: rewards, lengths, and length bias."""
    section = Section("pairs", "Chosen against rejected")
    if len(sft):
        text = (
            f"sft/ holds {many(len(sft), 'row')}, on average {count(sft.chars.mean())} "
            "characters long"
        )
        known = sft.reward[~np.isnan(sft.reward)]
        section.blocks.append(
            text
            + (f", with a mean reward of {rewards(known)(known.mean())}." if len(known) else ".")
        )
    if not len(chosen):
        section.blocks.append("This run has no preference pairs (no rows in dpo/).")
        return section
    num = len(chosen)
    write = rewards(np.concatenate([_known(chosen.reward), _known(rejected.reward)]))
    text = f"dpo/ holds {many(num, 'pair')}."
    panels, said, hidden = [], [], []
    for name, label in (("reward", "reward"), ("chars", "characters"), ("tokens", "tokens")):
        sides = [_known(getattr(side, name)) for side in (chosen, rejected)]
        if not all(len(side) for side in sides):
            continue
        how = write if name == "reward" else count
        said.append(f"{label} {how(sides[0].mean())} against {how(sides[1].mean())}")
        both = np.concatenate(sides)
        if both.min() < both.max():
            rows = [("chosen", figures.INK, sides[0]), ("rejected", figures.MUTED, sides[1])]
            figure, beyond = figures.distributions(rows, label)
            hidden += [f"{label} of {many(beyond, 'response')}"] if beyond else []
            panels.append(
                figures.inline_svg(figure, f"{label} of chosen and rejected", f"pairs-{name}")
            )
    text += f" On average, chosen against rejected: {'; '.join(said)}."
    text += (
        Markup(" Beyond the axis and drawn at its end: {}.").format(listed(hidden))
        if hidden
        else ""
    )
    margins = _known(chosen.reward - rejected.reward)
    if len(margins):
        text += f" The median margin is {signed(write(float(np.median(margins))))}"
        ranks = _known(rejected.rank)
        text += (
            f"; the median rejected response has rank {np.median(ranks):.0f}."
            if len(ranks)
            else "."
        )
    section.blocks.append(Picture(panels, text) if panels else text)
    section.blocks.append(length_bias(chosen, rejected))
    if chosen.agents or rejected.agents:
        cells: list[list[Any]] = []
        for name in sorted({*chosen.agents, *rejected.agents}, key=lambda a: -chosen.agents[a]):
            shares = (bar(chosen.agents[name], num), bar(rejected.agents[name], num))
            cells.append([chip(agents, name), *shares])
        section.blocks.append(
            Table(
                ["agent", "of the chosen", "of the rejected"],
                cells,
                "Agents of the responses in the pairs.",
            )
        )
    return section


def length_bias(chosen: Column, rejected: Column) -> str:
    """Describe how often the chosen response is longer, and whether that exceeds chance."""
    longer, shorter = (
        int((chosen.chars > rejected.chars).sum()),
        int((chosen.chars < rejected.chars).sum()),
    )
    num, unequal = len(chosen), longer + shorter
    text = f"The chosen response is longer in {share(longer, num)} of the {many(num, 'pair')}"
    text += f", shorter in {share(shorter, num)} and as long in {share(num - unequal, num)}: "
    if not unequal:
        return text + "these pairs have no length bias."
    # 95 % bound for a fair coin
    if abs(longer - shorter) <= 1.96 * unequal**0.5:
        return text + "within chance, so there is no sign of a length bias."
    kind = "longer" if longer > shorter else "shorter"
    return text + f"more than chance, so a student may learn to write {kind} responses."


def student(results: Mapping[str, Any]) -> Section:
    """Show the measurements of the student before and after training."""
    section = Section("student", "The student, before and after")
    rows = [(STAGES.get(name, name), row) for name, row in (results.get("student") or {}).items()]
    measured = [
        key
        for key in MEASURES
        if any(
            known(row.get(key)) is not None and (row[key] or key not in WHOLE) for _, row in rows
        )
    ]
    if not measured:
        section.blocks.append(
            "No student was evaluated: no results.json with a student was found for this run."
        )
        return section
    told = next((key for key in LEADS if key in measured), measured[0])
    section.blocks.append(
        _change(told, [(label, row) for label, row in rows if known(row.get(told)) is not None])
    )
    ks = {row["k"] for _, row in rows if row.get("k")}
    header = [
        MEASURES[key].replace("@k", f"@{min(ks)}" if len(ks) == 1 else "@k") for key in measured
    ]
    cells = [[label, *(_measured(row, key) for key in measured)] for label, row in rows]
    section.blocks.append(
        Table(["student", *header], cells, "With 95 % intervals where they are known.")
    )
    return section


def _change(key: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """Describe one measure of all stages and its change, with a picture of accuracies."""
    bounds = BOUNDS.get(key, f"{key}_interval")
    text = f"{MEASURES[key][0].upper()}{MEASURES[key][1:]} " + ", ".join(
        f"{name} {_measured(r, key)}" for name, r in rows
    )
    with_lines = any(row.get(bounds) for _, row in rows)
    text += "; lines are 95 % intervals." if with_lines and key == "accuracy" else "."
    if key == "accuracy" and any(known(row.get("sampled_accuracy")) is not None for _, row in rows):
        text += " Rings show sampled accuracy."
    (first, before), (last, after) = rows[0], rows[-1]
    if len(rows) > 1 and before.get(bounds) and after.get(bounds):
        apart = before[bounds][1] < after[bounds][0] or after[bounds][1] < before[bounds][0]
        text += (
            f" {last[0].upper()}{last[1:]} against {first}: "
            f"{signed(number(after[key] - before[key]))}, "
        )
        text += "and the intervals do not overlap." if apart else "and the intervals overlap."
    if key != "accuracy":
        return text
    bars = []
    for name, row in rows:
        sampled = known(row.get("sampled_accuracy"))
        bars.append(
            figures.Bar(name, row[key], row.get(bounds), [] if sampled is None else [sampled])
        )
    figure = figures.share_bars(bars, "accuracy")
    return Picture([figures.inline_svg(figure, "accuracy of the student", "student")], text)


def _measured(row: Mapping[str, Any], key: str) -> str:
    value = known(row.get(key))
    if key in WHOLE:
        return DASH if value is None else count(value)
    return with_bounds(value, row.get(BOUNDS.get(key, f"{key}_interval")))


def opening(results: Mapping[str, Any]) -> str:
    """Summarize the student in one sentence, if one was evaluated."""
    stages = {STAGES.get(name, name): row for name, row in (results.get("student") or {}).items()}
    rows = [
        (name, row["accuracy"])
        for name, row in stages.items()
        if known(row.get("accuracy")) is not None
    ]
    if len(rows) < 2:
        return ""
    (first, before), (last, after) = rows[0], rows[-1]
    return f" The student's accuracy is {before:.3f} {first} and {after:.3f} {last}."


def searches(results: Mapping[str, Any]) -> Section:
    """Compare the searches at several budgets."""
    section = Section("searches", "The searches compared")
    rows: Sequence[Mapping[str, Any]] = results.get("searches") or []
    if not rows:
        section.blocks.append(
            "No searches were compared: no results.json with searches was found for this run."
        )
        return section
    panels = []
    for i, panel in enumerate(figures.comparison_panels(rows)):
        figure = figures.comparison_figure(rows, [panel])
        panels.append(figures.inline_svg(figure, f"{panel[2]} of each search", f"searches-{i}"))
    text = "Each line is a search, each point a budget" + (
        " (its small number)." if len(panels) > 1 else "."
    )
    section.blocks.append(Picture(panels, text + _verdict(rows)))
    if any(row.get("best_reward_over_n") for row in rows):
        figure = figures.best_reward_over_n(rows)
        drawn = figures.inline_svg(figure, "best reward of each search over N", "searches-over-n")
        section.blocks.append(Picture([drawn], OVER_N))
    cells = []
    for row in sorted(rows, key=lambda row: row["budget"]):
        numbers = [
            number(row.get(key))
            for key in ("oracle_accuracy", "mean_best_reward", "mean_top10_reward")
        ]
        costs = [
            figures.power(row[key]) if row.get(key) else DASH
            for key in ("tokens", "flops", "reward_flops")
        ]
        cells.append(
            [
                row["name"],
                count(row["budget"]),
                with_bounds(row.get("accuracy"), row.get("interval")),
                *numbers,
                *costs,
            ]
        )
    header = [
        "search",
        "plays",
        "accuracy",
        "oracle",
        "mean best reward",
        "mean top-10 reward",
        "tokens",
        "FLOPs",
    ]
    caption = "Accuracy: of the play with the best reward. Oracle: of any play."
    section.blocks.append(Table([*header, "reward FLOPs"], cells, caption))
    left_out = [row for row in rows if known(row.get("num_unanswered"))]
    if left_out:
        each = (
            f"{many(row['num_unanswered'], 'prompt')} of {row['name']} at {row['budget']}"
            for row in left_out
        )
        section.blocks.append(
            Markup("Excluded, because no play was scored: {}.").format(listed(each))
        )
    return section


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name the best search at the largest budget, and those with overlapping intervals."""
    budget = max(row["budget"] for row in rows)
    at = sorted(
        (r for r in rows if r["budget"] == budget and r.get("accuracy") is not None),
        key=lambda r: -r["accuracy"],
    )
    if len(at) < 2:
        return ""
    best, *others = at
    text = (
        f" At {many(budget, 'play')} {best['name']} selects a right answer most often "
        f"({best['accuracy']:.3f})"
    )
    if not all(row.get("interval") for row in at):
        return text + "."
    close = [row["name"] for row in others if row["interval"][1] >= best["interval"][0]]
    return text + (
        f"; the intervals of {listed(close)} overlap with it."
        if close
        else "; no other interval overlaps with it."
    )


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def blocks_of(section: Section) -> list[tuple[str, Any]]:
    """Return the blocks of a section with their kind, for the template."""
    return [
        ("text" if isinstance(b, (str, Markup)) else type(b).__name__.lower(), b)
        for b in section.blocks
    ]
