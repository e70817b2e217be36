"""The sections of the page about the results: training pairs, the student, searches compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toa_trl.report import figures
from toa_trl.report.html import (
    Picture,
    Section,
    Table,
    bar,
    chip,
    costs,
    count,
    finite,
    known_keys,
    listed,
    many,
    number,
    rewards,
    share,
    signed,
    whole,
    with_bounds,
)
from toa_trl.report.rollout_tables import Floats
from toa_trl.report.training import Column
from toa_trl.utils.methods import METHODS
from toa_trl.utils.results import interval_key

STAGES = {"base": "before", **{name: f"after {name.upper()}" for name in METHODS}}
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
OF_SEARCHES = {  # key of a compared search -> label
    "accuracy": "accuracy",
    "oracle_accuracy": "oracle",
    "verifier_score": "verifier",
    "oracle_verifier_score": "oracle",
    "mean_best_reward": "mean best reward",
    "mean_top10_reward": "mean top-10 reward",
    "second_reward": "second reward",
    "win_rate": "win rate",
}
# measures of the selected response, with intervals
SELECTED = ("accuracy", "verifier_score", "second_reward", "win_rate")
OVER_N = (
    "The best of N rewards, over N. A point is a run with the budget N; a line shows the run with "
    "the largest budget after N plays. They differ for searches that plan with their budget: toa "
    "and prs spend a larger budget on more first answers, so for these the points are best-of-N."
)


def training_data(
    sft: Column, chosen: Column, rejected: Column, agents: Mapping[str, int]
) -> Section:
    """Compare chosen with rejected responses: rewards, lengths, and length bias."""
    section = Section("pairs", "Chosen against rejected")
    if len(sft):
        text = f"sft/ holds {many(len(sft), 'row')}, on average {count(sft.chars.mean())} "
        text += "characters long"
        scored = _without_nan(sft.reward)
        mean = f", with a mean reward of {rewards(scored)(scored.mean())}" if len(scored) else ""
        section.blocks.append(f"{text}{mean}.")
    if not len(chosen):
        section.blocks.append("This run has no preference pairs (no rows in dpo/).")
        return section
    write = rewards(_without_nan(np.concatenate([chosen.reward, rejected.reward])))
    panels, means, beyond = [], [], []
    for name, label in (("reward", "reward"), ("chars", "characters"), ("tokens", "tokens")):
        sides = [_without_nan(getattr(side, name)) for side in (chosen, rejected)]
        if not all(len(side) for side in sides):
            continue
        formatted = [(write if name == "reward" else count)(side.mean()) for side in sides]
        means.append(f"{label} {' against '.join(formatted)}")
        both = np.concatenate(sides)
        if both.min() < both.max():
            rows = [("chosen", figures.INK, sides[0]), ("rejected", figures.MUTED, sides[1])]
            figure, num_beyond = figures.distributions(rows, label)
            beyond += [f"{label} of {many(num_beyond, 'response')}"] if num_beyond else []
            title = f"{label} of chosen and rejected"
            panels.append(figures.inline_svg(figure, title, f"pairs-{name}"))
    text = f"dpo/ holds {many(len(chosen), 'pair')}. "
    text += f"On average, chosen against rejected: {'; '.join(means)}."
    if beyond:
        text += f" Beyond the axis and drawn at its end: {listed(beyond)}."
    margins, ranks = _without_nan(chosen.reward - rejected.reward), _without_nan(rejected.rank)
    if len(margins):
        text += f" The median margin is {signed(write(float(np.median(margins))))}"
        rank = f"; the median rejected response has rank {np.median(ranks):.0f}"
        text += f"{rank}." if len(ranks) else "."
    section.blocks += [Picture(panels, text) if panels else text, length_bias(chosen, rejected)]
    if chosen.agents or rejected.agents:
        cells = []
        names = {*chosen.agents, *rejected.agents}
        for name in sorted(names, key=lambda name: (-chosen.agents[name], name)):
            shares = [bar(side.agents[name], len(chosen)) for side in (chosen, rejected)]
            cells.append([chip(agents, name), *shares])
        header = ["agent", "of the chosen", "of the rejected"]
        section.blocks.append(Table(header, cells, "Agents of the responses in the pairs."))
    return section


def length_bias(chosen: Column, rejected: Column) -> str:
    """Describe how often the chosen response is longer, and whether that exceeds chance."""
    num, longer = len(chosen), int((chosen.chars > rejected.chars).sum())
    shorter = int((chosen.chars < rejected.chars).sum())
    unequal = longer + shorter
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
    stages = _stages(results)
    measured = []
    for key in MEASURES:
        values = [row[key] for row in stages.values() if finite(row.get(key)) is not None]
        if any(values) or (values and key not in WHOLE):
            measured.append(key)
    if not measured:
        section.blocks.append(
            "No student was evaluated: no results.json with a student was found for this run."
        )
        return section
    lead = next((key for key in LEADS if key in measured), measured[0])
    ks = {row["k"] for row in stages.values() if row.get("k")}
    k = min(ks) if len(ks) == 1 else "k"
    header = [MEASURES[key].replace("@k", f"@{k}") for key in measured]
    cells = []
    for name, row in stages.items():
        cells.append([name, *(_measured(row, key) for key in measured)])
    table = Table(["student", *header], cells, "With 95 % intervals where they are known.")
    section.blocks += [_change(lead, stages), table]
    return section


def _stages(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {STAGES.get(name, name): row for name, row in (results.get("student") or {}).items()}


def _change(key: str, stages: Mapping[str, Mapping[str, Any]]) -> Any:
    """Describe one measure of all stages and its change, with a picture of accuracies."""
    rows = [(name, row) for name, row in stages.items() if finite(row.get(key)) is not None]
    bounds = interval_key(key)
    values = ", ".join(f"{name} {_measured(row, key)}" for name, row in rows)
    text = f"{_capitalized(MEASURES[key])} {values}"
    is_accuracy = key == "accuracy"
    with_lines = any(row.get(bounds) for _, row in rows)
    text += "; lines are 95 % intervals." if with_lines and is_accuracy else "."
    if is_accuracy and any(finite(row.get("sampled_accuracy")) is not None for _, row in rows):
        text += " Rings show sampled accuracy."
    (first, before), (last, after) = rows[0], rows[-1]
    if len(rows) > 1 and before.get(bounds) and after.get(bounds):
        apart = before[bounds][1] < after[bounds][0] or after[bounds][1] < before[bounds][0]
        change = signed(number(after[key] - before[key]))
        text += f" {_capitalized(last)} against {first}: {change}, and the intervals "
        text += "do not overlap." if apart else "overlap."
    if not is_accuracy:
        return text
    bars = []
    for name, row in rows:
        bars.append(figures.Bar(name, row[key], row.get(bounds), [row.get("sampled_accuracy")]))
    figure = figures.share_bars(bars, "accuracy")
    return Picture([figures.inline_svg(figure, "accuracy of the student", "student")], text)


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]  # str.capitalize would lower the rest: chrF, COMET


def _measured(row: Mapping[str, Any], key: str) -> str:
    if key in WHOLE:
        return whole(row.get(key))
    return with_bounds(row.get(key), row.get(interval_key(key)))


def opening(results: Mapping[str, Any]) -> str:
    """Summarize the student in one sentence, if one was evaluated."""
    accuracy = {name: finite(row.get("accuracy")) for name, row in _stages(results).items()}
    rows = [(name, value) for name, value in accuracy.items() if value is not None]
    if len(rows) < 2:
        return ""
    (first, before), (last, after) = rows[0], rows[-1]
    return f" The student's accuracy goes from {before:.3f} ({first}) to {after:.3f} ({last})."


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
    text = "Each line is a search, each point a budget"
    text += " (its small number)." if len(panels) > 1 else "."
    section.blocks.append(Picture(panels, text + _describe_best_search(rows)))
    if any(row.get("best_reward_over_n") for row in rows):
        figure = figures.best_reward_over_n(rows)
        drawn = figures.inline_svg(figure, "best reward of each search over N", "searches-over-n")
        section.blocks.append(Picture([drawn], OVER_N))
    cells, unanswered = [], []
    measured = known_keys(rows, OF_SEARCHES)
    has_price = any(row.get("cost") for row in rows)
    for row in sorted(rows, key=lambda row: row["budget"]):
        cell_row = [row["name"], count(row["budget"])]
        for key in measured:
            bounds = row.get(interval_key(key)) if key in SELECTED else None
            cell_row.append(with_bounds(row.get(key), bounds))
        price = [number(row.get("cost", 0.0))] if has_price else []
        cells.append([*cell_row, *costs(row, "tokens", "flops", "reward_flops"), *price])
    for row in rows:
        if finite(row.get("num_unanswered")):
            prompts = many(row["num_unanswered"], "prompt")
            unanswered.append(f"{prompts} of {row['name']} at {row['budget']}")
    header = ["search", "plays", *(OF_SEARCHES[key] for key in measured)]
    header += ["tokens", "FLOPs", "reward FLOPs", *(["price"] if has_price else [])]
    caption = "Accuracy, verifier, second reward and win rate: of the play with the best reward. "
    caption += "Oracle: of any play. Costs: per prompt."
    section.blocks.append(Table(header, cells, caption))
    if results.get("search_differences"):
        section.blocks.append(_differences(results["search_differences"]))
    if unanswered:
        section.blocks.append(f"Excluded, because no play was scored: {listed(unanswered)}.")
    return section


def _differences(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the paired differences of the searches to a baseline."""
    cells = []
    for row in rows:
        difference = with_bounds(row["difference"], row["interval"])
        visible = number(row["smallest_visible"])
        against = count(row.get("baseline_budget", row["budget"]))
        cells.append([row["name"], count(row["budget"]), against, difference, visible])
    measure = OF_SEARCHES.get(rows[0]["measure"], rows[0]["measure"])
    caption = f"Differences in {measure} to {rows[0]['baseline']}, paired over the prompts, with "
    caption += "95 % intervals. Smaller differences than the last column cannot be told from none."
    header = ["search", "plays", f"plays of {rows[0]['baseline']}", "difference"]
    header.append("smallest visible")
    return Table(header, cells, caption)


def _describe_best_search(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name the best search at the largest budget, and those with overlapping intervals."""
    budget = max(row["budget"] for row in rows)
    largest = [row for row in rows if row["budget"] == budget and row.get("accuracy") is not None]
    if len(largest) < 2:
        return ""
    best, *others = sorted(largest, key=lambda row: -row["accuracy"])
    text = f" At {many(budget, 'play')} {best['name']} selects a right answer most often "
    text += f"({best['accuracy']:.3f})"
    if not all(row.get("interval") for row in largest):
        return text + "."
    close = [row["name"] for row in others if row["interval"][1] >= best["interval"][0]]
    if close:
        return text + f"; the intervals of {listed(close)} overlap with it."
    return text + "; no other interval overlaps with it."


def _without_nan(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def blocks_of(section: Section) -> list[tuple[str, Any]]:
    """Return the blocks of a section with their kind, for the template."""
    kinds = ["text" if isinstance(b, str) else type(b).__name__.lower() for b in section.blocks]
    return list(zip(kinds, section.blocks, strict=True))
