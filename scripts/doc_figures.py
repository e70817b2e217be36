"""Draw the trees of the documentation from a real search of the bundled agents.

python scripts/doc_figures.py    # writes docs/concepts/toa_steps.svg and tree_to_rows.svg
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from toa_trl import TOASampler
from toa_trl.report.figures import INK, MUTED, RULE, STYLE, color
from toa_trl.types import Play, Rollout

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "toa_trl/demo"
AGENTS = ("add", "subtract", "multiply", "generalist")
BUDGET = 16


def search(prompt_id: str) -> Rollout:
    """Return the plays of one problem of the bundled world."""
    lines = (DEMO / "data/compare.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    sampler = TOASampler(
        [{"name": n, "engine": "transformers", "model": f"{DEMO}/weights/{n}"} for n in AGENTS],
        {
            "kind": "likelihood",
            "model": f"{DEMO}/weights/base",
            "aggregate": "sum",
            "floor": -4.0,
        },
        task=str(DEMO / "templates"),
        budget=BUDGET,
        search_params={"alpha": 0.05, "tau": 5.0},
        sampling={"temperature": 0.7, "max_tokens": 64},
        progress=False,
    )
    (rollout,) = sampler.sample([row for row in rows if row["id"] == prompt_id])
    return rollout


def places(plays: list[Play]) -> dict[int, tuple[float, float]]:
    """Return where each play of a tree is drawn: leaves in a row, parents above them."""
    children: dict[int | None, list[int]] = {}
    for play in plays:
        children.setdefault(play.action.parent, []).append(play.index)
    at: dict[int, tuple[float, float]] = {}
    column = 0.0

    def place(index: int, depth: int) -> float:
        nonlocal column
        below = [place(child, depth + 1) for child in children.get(index, [])]
        if below:
            x = (below[0] + below[-1]) / 2
        else:
            x, column = column, column + 1
        at[index] = x, -float(depth)
        return x

    for root in children.get(None, []):
        place(root, 1)
    return at


def shown(play: Play) -> str:
    """Return a reward with one digit, without the sign of zero."""
    return f"{round(play.reward or 0.0, 1) + 0.0:.1f}"


def draw_tree(axes: Axes, plays: list[Play], size: float = 150) -> dict[int, tuple[float, float]]:
    """Draw the tree of these plays; return where each is."""
    at = places(plays)
    best = max(plays, key=lambda play: (play.reward or -1e9, -play.index)).index
    top = (sum(x for x, y in at.values() if y == -1) / sum(y == -1 for _, y in at.values()), 0.0)
    for play in plays:
        x, y = at[play.index]
        above = top if play.action.parent is None else at[play.action.parent]
        axes.plot([above[0], x], [above[1], y], color=RULE, lw=1.2, zorder=1)
    axes.scatter(*top, s=size * 1.3, marker="s", color="white", edgecolor=INK, lw=1.2, zorder=2)
    axes.annotate("prompt", top, (0, 9), textcoords="offset points", ha="center", va="bottom")
    for play in plays:
        x, y = at[play.index]
        ring = {"edgecolor": INK, "lw": 2.4} if play.index == best else {"edgecolor": "white"}
        fill = color(AGENTS.index(play.action.agent))
        axes.scatter(x, y, s=size, color=fill, zorder=3, **ring)
        axes.annotate(str(play.index + 1), (x, y), ha="center", va="center", color="white", size=7)
        axes.annotate(
            shown(play),
            (x, y),
            (0, -13),
            textcoords="offset points",
            ha="center",
            color=MUTED,
            size=6.5,
        )
    axes.set_axis_off()
    axes.margins(0.12, 0.14)
    return at


def legend(figure: Figure) -> None:
    """Name the agents."""
    handles = [
        Line2D([], [], marker="o", ls="", color=color(i), label=name, ms=7)
        for i, name in enumerate(AGENTS)
    ]
    best = Line2D([], [], marker="o", ls="", mfc="none", mec=INK, mew=2, ms=8, label="best so far")
    figure.legend(handles=[*handles, best], loc="lower center", ncols=5, frameon=False)


def steps(rollout: Rollout) -> Figure:
    """Draw the tree after 4, 8 and 16 plays."""
    figure, all_axes = plt.subplots(1, 3, figsize=(9.5, 3.6), width_ratios=[1, 1.3, 2])
    for axes, number in zip(all_axes, (4, 8, BUDGET), strict=True):
        draw_tree(axes, [play for play in rollout.plays if play.index < number])
        axes.set_title(f"after {number} plays", color=INK, size=10)
        axes.set_ylim(-0.6 - max(-y for _, y in places(list(rollout.plays)).values()), 0.5)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.12, top=0.9, wspace=0.05)
    legend(figure)
    return figure


def box(axes: Axes, y: float, title: str, lines: list[tuple[str, Play]], height: float) -> None:
    """Draw one training row."""
    frame = FancyBboxPatch(
        (0, y), 1, height, boxstyle="round,pad=0.01,rounding_size=0.02", fc="white", ec=RULE, lw=1.2
    )
    axes.add_patch(frame)
    axes.text(0.03, y + height - 0.045, title, weight="bold", color=INK, size=9, va="top")
    step = (height - 0.13) / len(lines)
    for number, (name, play) in enumerate(lines):
        assert play.completion is not None
        text = textwrap.shorten(play.completion.text.replace("\n", "  "), 62, placeholder=" ...")
        top = y + height - 0.13 - number * step
        fill = color(AGENTS.index(play.action.agent))
        label = f"{name} (play {play.index + 1}, reward {shown(play)})"
        axes.text(0.03, top, label, color=fill, size=8, va="top", weight="bold")
        axes.text(0.03, top - 0.065, text, color=INK, size=7.5, va="top", family="monospace")


def rows(rollout: Rollout) -> Figure:
    """Draw a tree beside the SFT row and the preference pair that are made of it."""
    scored = [play for play in rollout.plays if play.reward is not None]
    ranked = sorted(scored, key=lambda play: (-(play.reward or 0.0), play.index))
    chosen, rejected = ranked[0], ranked[-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), width_ratios=[1, 1.05])
    draw_tree(left, list(rollout.plays))
    text = textwrap.fill(rollout.prompt.messages[-1].content, 64)
    right.text(0.0, 0.97, text, color=MUTED, size=8, va="top")
    box(right, 0.5, "SFT row", [("completion", chosen)], 0.3)
    box(right, 0.0, "preference pair", [("chosen", chosen), ("rejected", rejected)], 0.44)
    right.set_xlim(-0.02, 1.02)
    right.set_ylim(-0.03, 1)
    right.set_axis_off()
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.1, top=0.95, wspace=0.04)
    legend(figure)
    return figure


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/concepts")
    parser.add_argument("--prompt", default="compare-009", help="id in compare.jsonl")
    args = parser.parse_args()
    rollout = search(args.prompt)
    with mpl.rc_context(STYLE):
        for name, draw in (("toa_steps", steps), ("tree_to_rows", rows)):
            draw(rollout).savefig(args.output / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
