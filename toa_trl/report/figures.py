"""Matplotlib figures without pyplot's global state, and their conversion for the page.

Figures are drawn in the light palette. `inline_svg` replaces its colours by CSS variables, so that
the page has a dark mode, and keeps text as text, so that it is set in the reader's font.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from toa_trl.report.palette import PALETTE as PALETTE  # also for users of this module
from toa_trl.utils.results import interval_key
from toa_trl.utils.targets import head_of

Floats = NDArray[np.float64]

INK, MUTED, RULE = "#222222", "#6f6f6f", "#d8d5cb"
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"}
VARIABLES |= {light: f"--c{i}" for i, (light, _) in enumerate(PALETTE)}
MARKERS = "osD^vPX*"
X_LABELS = {"budget": "plays per prompt", "flops": "FLOPs of the agents per prompt"}
DRAWN = b"Software\0toa_trl"  # a text in a PNG file
SMALL_NUMBER = {"textcoords": "offset points", "ha": "center", "fontsize": 7, "color": MUTED}
PANEL = (4.2, 2.9)  # inches; a panel fills a phone, and two stand side by side on a laptop
STYLE = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.facecolor": "white",  # a README may be read on dark paper
    "axes.facecolor": "none",
    "text.parse_math": False,  # names of agents may contain "$"
    "svg.fonttype": "none",
    "svg.hashsalt": "toa_trl",  # the same figures give the same file
}


def color(index: int) -> str:
    """Return the colour of an agent or search by its index; the palette repeats."""
    return PALETTE[index % len(PALETTE)][0]


def empty_panel(height: float = PANEL[1]) -> tuple[Figure, Axes]:
    """Return a figure as wide as a panel, with a height in inches, and its axes."""
    figure = Figure(figsize=(PANEL[0], height), layout="constrained")
    return figure, figure.add_subplot()


@matplotlib.rc_context(STYLE)
def distributions(rows: Sequence[tuple[str, str, Floats]], xlabel: str) -> tuple[Figure, int]:
    """Draw histograms over a shared axis, with medians marked.

    Args:
        rows: (label, colour, values) of each histogram; values must not be empty.
        xlabel: label of the axis.

    Returns:
        The figure, and the number of values beyond the axis, which are drawn at its ends.
    """
    everything = np.concatenate([values for _, _, values in rows])
    low, high, num_beyond = _range(everything)
    edges = np.linspace(low, high, 41)
    clipped = [np.clip(values, low, high) for _, _, values in rows]
    shares = [np.histogram(values, edges)[0] / len(values) for values in clipped]
    tallest = max(float(share.max()) for share in shares)
    figure, axes = empty_panel(0.62 * len(rows) + 0.5)
    for i, ((label, shade, values), share) in enumerate(zip(rows, shares, strict=True)):
        base = -float(i)
        top = base + 0.62 * share / tallest
        axes.stairs(top, edges, baseline=base, fill=True, color=shade, alpha=0.55, lw=0)
        axes.plot([low, high], [base, base], color=RULE, lw=0.6, zorder=0)
        median = float(np.clip(np.median(values), low, high))
        axes.plot([median, median], [base, base + 0.3], color=INK, lw=1.4, solid_capstyle="butt")
        axes.text(low, base + 0.66, label, color=shade, va="bottom", fontsize=9)
    axes.set(xlim=(low, high), ylim=(0.95 - len(rows), 1.0), xlabel=xlabel)
    axes.yaxis.set_major_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.spines["left"].set_visible(False)
    return figure, num_beyond


@matplotlib.rc_context(STYLE)
def best_so_far(mean: Floats, half_width: Floats, own: Floats) -> Figure:
    """Draw the mean best reward after 1, 2, ... plays, and the mean reward of each play."""
    figure, axes = empty_panel()
    plays = np.arange(1, len(mean) + 1)
    axes.fill_between(plays, mean - half_width, mean + half_width, color=MUTED, alpha=0.25, lw=0)
    axes.plot(plays, mean, color=INK, lw=1.6)
    axes.plot(plays, own, color=MUTED, lw=0.9)
    for values, text, shade in ((mean, "best so far", INK), (own, "the play itself", MUTED)):
        end = (plays[-1], values[-1])
        axes.annotate(text, end, (4, 0), textcoords="offset points", va="center", color=shade)
    axes.set(xlabel="scored plays of a prompt", ylabel="mean reward")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(1 - 0.02 * len(mean), 1.02 * len(mean))
    axes.spines["bottom"].set_bounds(1, len(mean))
    return figure


@dataclass(frozen=True)
class Bar:
    """One bar of `share_bars`; all numbers in [0, 1]."""

    label: str
    value: float
    interval: Sequence[float] | None = None
    rings: Sequence[float | None] = ()  # further values beside it, as far as they are known


@matplotlib.rc_context(STYLE)
def share_bars(bars: Sequence[Bar], xlabel: str, mark: float | None = None) -> Figure:
    """Draw shares as bars with intervals, further values as rings, and a line at `mark`."""
    figure, axes = empty_panel(0.5 * len(bars) + 0.6)
    for i, bar in enumerate(bars):
        low, high = bar.interval or (bar.value, bar.value)
        axes.barh(-i, bar.value, height=0.5, color=RULE)
        axes.plot([low, high], [-i, -i], color=INK, lw=1.6)
        axes.plot([bar.value], [-i], "o", color=INK, ms=5)
        rings = [ring for ring in bar.rings if ring is not None and math.isfinite(ring)]
        axes.plot(rings, [-i - 0.22] * len(rings), "o", mfc="none", mec=MUTED, ms=4)
    if mark is not None:
        axes.axvline(mark, color=MUTED, lw=0.8, zorder=0.5)
    axes.set_yticks([-i for i in range(len(bars))], [bar.label for bar in bars], color=INK)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1), xlabel=xlabel)
    axes.spines["left"].set_visible(False)
    return figure


def comparison_panels(searches: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return (x key, y key, y label) of the panels that these searches have data for."""
    cost = "flops" if any(s.get("flops") for s in searches) else "tokens"
    panels = [
        (cost, "mean_best_reward", "mean best reward"),
        (cost, "mean_top10_reward", "mean top-10 reward"),
        (cost, "second_reward", "second reward of the best play"),
        (cost, "win_rate", "win rate of the best play"),
        ("budget", "accuracy", "accuracy of the best play"),
        ("budget", "verifier_score", "verifier score of the best play"),
    ]
    return [(x, y, label) for x, y, label in panels if any(_has_point(s, x, y) for s in searches)]


@matplotlib.rc_context(STYLE)
def comparison_figure(
    searches: Sequence[Mapping[str, Any]], panels: Sequence[tuple[str, str, str]] = ()
) -> Figure:
    """Draw the paper's figure: mean best and top-10 reward against FLOPs, accuracy against budget.

    Args:
        searches: {"name", "budget", "flops" (of the agents, per prompt), "mean_best_reward",
            "mean_top10_reward", "accuracy", ...}; an interval [low, high] is taken from "interval"
            (of the accuracy), "mean_best_reward_interval" and so on.
        panels: some of `comparison_panels(searches)`; by default all.
    """
    panels = panels or comparison_panels(searches)
    num_panels = max(len(panels), 1)
    figure = Figure(figsize=(num_panels * PANEL[0], PANEL[1] + 0.3))
    figure.set_layout_engine("constrained", wspace=0.06)
    subplots = figure.subplots(1, num_panels, squeeze=False)[0]
    names = list(dict.fromkeys(str(s["name"]) for s in searches))
    for axes, (x, y, label) in zip(subplots, panels, strict=False):
        is_budget = x == "budget"
        shown = [s for s in searches if _has_point(s, x, y)]
        ends = []
        for i, name in enumerate(names):
            own = sorted((s for s in shown if s["name"] == name), key=lambda s: float(s[x]))
            if not own:
                continue
            # at one budget the intervals of all searches would lie on one another
            offset = 1.02 ** (i - (len(names) - 1) / 2) if is_budget else 1.0
            at, values = [float(s[x]) * offset for s in own], [float(s[y]) for s in own]
            axes.plot(at, values, color=color(i), lw=1.3, marker=MARKERS[i % len(MARKERS)], ms=4.2)
            intervals = [s.get(interval_key(y)) for s in own]
            _draw_intervals(axes, at, intervals, color(i))
            for s, point in zip(own, zip(at, values, strict=True), strict=True):
                if not is_budget:
                    axes.annotate(str(s["budget"]), point, (0, 5), **SMALL_NUMBER)
            ends.append((values[-1], at[-1], name, color(i)))
        axes.set(xscale="log", xlabel=X_LABELS.get(x, f"{x} per prompt"), ylabel=label)
        _log_ticks(axes, sorted({float(s[x]) for s in shown}), exact=is_budget)
        _end_labels(axes, ends)
    return figure


@matplotlib.rc_context(STYLE)
def best_reward_over_n(searches: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the paper's scaling figure: the mean best of N rewards of each search over N.

    A point is a run with the budget N and its interval, a line the run at the largest budget after
    N plays. For searches whose first plays do not depend on the budget (best_of_n, parallel,
    sequential, moa) both agree; for toa and prs, which spend a larger budget on more first answers,
    only the points are best-of-N. An adaptive allocation has no line.
    """
    figure, axes = empty_panel(PANEL[1] + 0.3)
    points = [s for s in searches if _has_point(s, "budget", "mean_best_reward")]
    budgets = sorted({int(s["budget"]) for s in points}) or [1]
    first = max(1, budgets[0] // 2)  # the steep rise before it would press the rest together
    names, ends = list(dict.fromkeys(str(s["name"]) for s in points)), []
    for i, name in enumerate(names):
        own = sorted((s for s in points if s["name"] == name), key=lambda s: float(s["budget"]))
        curve = own[-1].get("best_reward_over_n") or []
        axes.plot(range(first, len(curve) + 1), curve[first - 1 :], color=color(i), lw=1.1)
        # the intervals of one budget would lie on one another
        offset = 1.012 ** (i - (len(names) - 1) / 2)
        at = [float(s["budget"]) * offset for s in own]
        values = [float(s["mean_best_reward"]) for s in own]
        axes.plot(at, values, MARKERS[i % len(MARKERS)], color=color(i), ms=4.2)
        _draw_intervals(axes, at, [s.get("mean_best_reward_interval") for s in own], color(i))
        ends.append((values[-1], at[-1], name, color(i)))
    axes.set(xscale="log", xlabel="N, plays per prompt", ylabel="mean best reward")
    _log_ticks(axes, sorted({first, *budgets}), exact=True)
    _end_labels(axes, ends)
    return figure


FIGURE_FILES = [
    f"{name}.{suffix}"
    for name, suffix in product(("reward_against_flops", "best_reward_over_n"), ("png", "svg"))
]


def save_figures(searches: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Save both figures of a comparison, as PNG and SVG, in `FIGURE_FILES`."""
    drawn = {
        "reward_against_flops": comparison_figure(searches),
        "best_reward_over_n": best_reward_over_n(searches),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": "toa_trl"})
        figure.savefig(folder / f"{name}.svg", dpi=150, metadata={"Creator": "toa_trl"})


def is_figure(path: Path) -> bool:
    """Return whether `save_figures` drew a picture; before the marker, matplotlib beside a run."""
    head = head_of(path)
    old = b"Matplotlib" in head and any(path.parent.glob("*/journal.sqlite"))
    return DRAWN in head or b">toa_trl</dc:title>" in head or old


def inline_svg(figure: Figure, label: str, name: str) -> Markup:
    """Return an <svg> for the page: colours as CSS variables, ids under `name`, no addresses."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # the text is measured in another font than the reader's
        warnings.filterwarnings("ignore", "Glyph")
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    _, _, svg = buffer.getvalue().partition("<svg")
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<metadata>.*?</metadata>|<style type=.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'\b(?:xlink:)?(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r'style="[^"]*"', lambda m: _with_variables(m[0]), body)
    return Markup(f'<svg {box[0] if box else ""} role="img" aria-label="{escape(label)}">{body}')


def _with_variables(style: str) -> str:
    for drawn, variable in VARIABLES.items():
        style = style.replace(drawn, f"var({variable})")
    return style


def _range(values: Floats) -> tuple[float, float, int]:
    """Return the range to draw, without far outliers (5 sigma of a normal), and their number."""
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = (float(q) for q in np.quantile(values, [0.1, 0.9]))
    reach = 1.5 * (inner_high - inner_low)
    if reach > 0:
        low, high = max(low, inner_low - reach), min(high, inner_high + reach)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return low, high, int(((values < low) | (values > high)).sum())


def _has_point(search: Mapping[str, Any], x: str, y: str) -> bool:
    return bool(search.get(x)) and search.get(y) is not None and math.isfinite(search[y])


def _draw_intervals(
    axes: Any, at: Sequence[float], intervals: Sequence[Sequence[float] | None], shade: str
) -> None:
    for x, interval in zip(at, intervals, strict=True):
        if interval:
            axes.plot([x, x], interval, color=shade, lw=0.8, alpha=0.5, zorder=1)


def _log_ticks(axes: Any, values: Sequence[float], exact: bool) -> None:
    low, high = values[0], values[-1]
    if exact and len(values) <= 6:
        ticks = list(values)
    else:  # 1, 2, 5 per decade, or decades alone where there are many
        steps = (1, 2, 5) if high / low < 1e3 else (1,)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**decade for decade, step in product(decades, steps)]
        ticks = [tick for tick in ticks if low / 1.6 <= tick <= high * 1.6]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    write: Callable[[float], str] = "{:g}".format if exact else power
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def power(value: float) -> str:
    """Return 3.4e15 as 3.4×10¹⁵; numbers below 100,000 are unchanged."""
    if abs(value) < 1e5:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    digits, exponent = f"{value:.1e}".split("e")
    digits = digits.removesuffix(".0")
    raised = str(int(exponent)).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"10{raised}" if digits == "1" else f"{digits}×10{raised}"


def _end_labels(axes: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write names at the right edge, as near to the ends of their lines as possible."""
    low, high = axes.get_ylim()
    heights = [(y - low) / (high - low) for y, *_ in sorted(ends)]
    gap = 0.072
    for _ in range(50):  # push neighbours apart until they have room
        for i in range(1, len(heights)):
            overlap = gap - (heights[i] - heights[i - 1])
            if overlap > 1e-9:
                heights[i] += overlap / 2
                heights[i - 1] -= overlap / 2
    arrow = {"arrowstyle": "-", "color": RULE, "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
    style = {"textcoords": "axes fraction", "va": "center", "fontsize": 8.5, "arrowprops": arrow}
    for (y, x, name, shade), height in zip(sorted(ends), heights, strict=True):
        axes.annotate(name, (x, y), (1.03, height), color=shade, **style)
