"""The section of the page about an adaptive allocation: where the budget of the run went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toa_trl.report.budget import Budget, grouped
from toa_trl.report.figures import INK, MUTED, RULE, STYLE, Floats, empty_panel, inline_svg
from toa_trl.report.html import MINUS, Picture, Section, Table, count, many, rewards, share, signed
from toa_trl.report.rollout_tables import half_width

LABELS = {"best": "best reward", "margin": "margin of the pair"}
WEIGHTS = {"flops": "FLOPs", "price": "prices"}
NUM_BARS = 40
Write = Callable[[float], str]


def budget_section(budget: Budget, over_plays: Floats) -> Section:
    """Show where the plays went, what they gained, and what a uniform budget would have given.

    Args:
        budget: of the run.
        over_plays: mean best reward after 1, 2, ... plays, see `rollouts.BestSoFar`.
    """
    section = Section("budget", "Where the budget went")
    if not budget.best:
        section.blocks.append("No play has a reward, so there is nothing to show.")
        return section
    write = rewards(np.concatenate([curve[[0, -1]] for curve in budget.best]))
    section.blocks += [*_spread(budget, write), *_gains(budget)]
    section.blocks += _against_uniform(budget, over_plays, write)
    return section


def _spread(budget: Budget, write: Write) -> list[Any]:
    """Show the plays per prompt, also against the difficulty of the prompts."""
    had, start, final = budget.num_plays, budget.after(budget.num_first), budget.final
    if had.min() == had.max():
        return [f"Every prompt got the same number of scored plays, {had[0]:,}."]
    largest_first = np.sort(had)[::-1].cumsum()
    num_half = int(np.searchsorted(largest_first, largest_first[-1] / 2)) + 1
    text = f"The prompts got {had.min():,} to {had.max():,} scored plays each, {had.mean():,.1f} "
    text += f"on average. Half of all plays went to {many(num_half, 'prompt')} "
    text += f"({share(num_half, len(had))})."
    panels = [inline_svg(_histogram(had), "plays per prompt", "budget-plays")]
    caption = "Prompts by their number of plays; the line is the mean."
    groups, first = grouped(start), many(budget.num_first, "play")
    if len(groups) < 2:
        return [text, Picture(panels, caption)]
    means = [float(had[group.members].mean()) for group in groups]
    text += f" The prompts whose first {first} had the lowest best rewards got {means[0]:,.1f} "
    text += f"plays each, those with the highest {means[-1]:,.1f}."
    panels.append(inline_svg(_by_group(means), "mean plays per group", "budget-groups"))
    caption += f" Second picture: mean plays by the best reward of the first {first}, in the "
    caption += "groups of the table; 1 is the hardest."
    rows = []
    for number, (group, mean) in enumerate(zip(groups, means, strict=True), 1):
        own = group.members
        before, after = float(start[own].mean()), float(final[own].mean())
        bounds = write(group.low)
        if group.low < group.high:
            bounds += f" to {write(group.high)}"
        numbers = [count(len(own)), f"{mean:,.1f}", share(int(had[own].sum()), int(had.sum()))]
        gain = signed(write(after - before))
        rows.append([str(number), *numbers, bounds, write(before), write(after), gain])
    header = ["group", "prompts", "mean plays", "of all plays", "best of the first plays"]
    header += ["mean of these", "mean at the end", "gain"]
    about = f"Tenths of the prompts by the best reward of their first {first}, the hardest first; "
    about += "prompts with equal rewards are in one group."
    return [text, Picture(panels, caption), Table(header, rows, about)]


def _gains(budget: Budget) -> list[Any]:
    """Show what the waves were expected to gain, and what they gained."""
    if budget.waves is None:
        return ["What the plays were expected to gain is in journal.sqlite, which is not here."]
    if not budget.waves:
        return ["No plays were given for what they were expected to gain."]
    values = np.array([wave.value for wave in budget.waves])
    expected = np.array([wave.expected for wave in budget.waves])
    came = np.array([wave.came for wave in budget.waves])
    objective = budget.objective
    label = LABELS.get(objective.name, f"mean of the {objective.k} best rewards")
    text = f"After the first plays, {many(budget.num_waves, 'wave')} of further plays went to the "
    text += f"prompts where they were expected to raise the {label} most"
    if budget.cost in WEIGHTS:
        text += f", relative to the {WEIGHTS[budget.cost]} of a play"
    text += f": by {_small(expected.mean())} a play on average. They raised it by "
    text += _small(came.mean())
    text += f" (95 % interval ±{_small(half_width(came))})." if len(came) > 1 else "."
    if len(came) < budget.num_waves:
        text += f" These figures are of {count(len(came))} waves, evenly spaced over the run."
    groups = grouped(values)
    if len(groups) < 2:
        return [text]
    rows = [(values[g.members], expected[g.members], came[g.members]) for g in groups]
    panel = inline_svg(_gain_curve(rows, label), "expected and actual gain", "budget-gain")
    caption = f"Gain per play of a wave, by the {label} before it, in tenths of the waves. Dashed: "
    caption += "expected when the wave was given. Solid: what came, with its 95 % band. Waves that "
    caption += "were expected to gain less were not given, and are not here."
    return [text, Picture([panel], caption)]


def _against_uniform(budget: Budget, over_plays: Floats, write: Write) -> list[Any]:
    """Say what a uniform budget would have given, as far as the plays of the run show it."""
    uniform, num_prompts = budget.uniform(), len(budget.best)
    gains, others = uniform.gains, num_prompts - uniform.num_known
    reached, final = write(uniform.reached.mean()), write(budget.final.mean())
    gain = signed(write(gains.mean()))
    if num_prompts > 1:
        gain += f" (95 % interval ±{write(half_width(gains))})"
    text = "With the same number of plays, a uniform budget would have given every prompt "
    text += f"{uniform.num_plays:,}. The choices of the search do not depend on the budget, so "
    text += "these would have been the first plays of this run"
    text += ", apart from the order of plays in flight. " if budget.in_flight > 1 else ". "
    if not others:
        text += f"The run has all of them: their mean best reward is {reached}, that of the whole "
        text += f"run {final}, which is {gain}."
    else:
        known = "as many plays"
        if budget.stop_reward is not None:
            known += ", or the highest reward there is,"
        text += f"{share(uniform.num_known, num_prompts)} of the prompts have {known} and for them "
        text += f"its result is known. The other {share(others, num_prompts)} "
        text += f"({many(others, 'prompt')}) got fewer plays, so that their best reward is only a "
        text += "lower bound of what a uniform budget would have reached. With it, the mean best "
        text += f"reward of a uniform budget is {reached} or more, and that of this run {final}: "
        text += f"the allocation gained at most {gain}."
        level = float(gains.sum()) / uniform.num_missing
        text += f" A uniform budget would be level with it if the {count(uniform.num_missing)} "
        text += f"plays that those prompts did not get had gained {_small(level)} each."
        if uniform.usual_gain is not None:
            usual = uniform.usual_gain
            estimate = uniform.reached.mean() + usual * uniform.num_missing / num_prompts
            text += f" At such best rewards the plays of this run gained {_small(usual)} each; at "
            text += f"that rate they would bring a uniform budget to {write(estimate)}."
    if len(over_plays) < 2:
        return [text]
    point = (float(budget.num_plays.mean()), float(budget.final.mean()))
    figure = _uniform_curve(over_plays, int(budget.num_plays.min()), point)
    caption = "Mean best reward of all prompts after so many plays each. Solid: known for every "
    caption += "prompt. Dashed: a lower bound, because prompts with fewer plays keep their best "
    caption += "reward. The point is this run, at its mean number of plays."
    panel = inline_svg(figure, "uniform and adaptive budget", "budget-uniform")
    return [text, Picture([panel], caption)]


def _small(value: float) -> str:
    return f"{value:.2g}".replace("-", MINUS)


@matplotlib.rc_context(STYLE)
def _histogram(had: np.ndarray) -> Figure:
    """Draw the numbers of prompts by their plays."""
    figure, axes = empty_panel()
    low, high = int(had.min()), int(had.max())
    width = -(-(high + 1 - low) // NUM_BARS)
    edges = np.arange(low, high + width + 1, width) - 0.5
    axes.stairs(np.histogram(had, edges)[0], edges, fill=True, color=MUTED, alpha=0.55, lw=0)
    axes.axvline(float(had.mean()), color=INK, lw=1.4)
    axes.set(xlabel="scored plays of a prompt", ylabel="prompts")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


@matplotlib.rc_context(STYLE)
def _by_group(means: Sequence[float]) -> Figure:
    """Draw the mean plays of groups of prompts."""
    figure, axes = empty_panel()
    numbers = np.arange(1, len(means) + 1)
    axes.bar(numbers, means, width=0.7, color=MUTED, alpha=0.55)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.tick_params(axis="x", length=0)
    axes.set(xlabel="group of prompts, the hardest first", ylabel="mean plays")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure


@matplotlib.rc_context(STYLE)
def _gain_curve(groups: Sequence[tuple[Floats, Floats, Floats]], label: str) -> Figure:
    """Draw expected and actual gains; groups are (values before, expected, actual)."""
    figure, axes = empty_panel()
    at = [float(values.mean()) for values, _, _ in groups]
    expected = [float(gains.mean()) for _, gains, _ in groups]
    came = np.array([gains.mean() for _, _, gains in groups])
    half = np.array([half_width(gains) for _, _, gains in groups])
    axes.axhline(0, color=RULE, lw=0.6, zorder=0)
    axes.fill_between(at, came - half, came + half, color=MUTED, alpha=0.25, lw=0)
    axes.plot(at, expected, color=INK, lw=1.2, ls="--")
    axes.plot(at, came, color=INK, lw=1.6, marker="o", ms=3.5)
    axes.set(xlabel=f"{label} before the wave", ylabel="gain per play")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


@matplotlib.rc_context(STYLE)
def _uniform_curve(mean: Floats, least: int, point: tuple[float, float]) -> Figure:
    """Draw the mean best reward over plays, up to twice the mean, and the run as a point."""
    figure, axes = empty_panel()
    plays = np.arange(1, min(len(mean), max(2, round(2 * point[0]))) + 1)
    shown = mean[: len(plays)]
    axes.plot(plays[:least], shown[:least], color=INK, lw=1.6)
    axes.plot(plays[least - 1 :], shown[least - 1 :], color=INK, lw=1.2, ls="--")
    axes.plot(*point, "o", color=INK, ms=6)
    axes.annotate("this run", point, (0, 7), textcoords="offset points", ha="center", color=INK)
    axes.set(xlabel="scored plays of a prompt", ylabel="mean best reward")
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure
