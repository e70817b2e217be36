"""How rollouts look in a notebook: as text, as HTML, and a prompt's tree as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from toa_trl.types import AgentCounts, Play, Rollout

NUM_SHOWN = 5  # prompts in the HTML view
LONGEST = 200  # characters of a text in it
STEP_X, STEP_Y, RADIUS = 46, 74, 15  # pixels of a tree
TABLE = '<table style="border-collapse:collapse">'
CELL = 'style="text-align:left;vertical-align:top;padding:2px 10px"'


class SVG(str):
    """An image, which notebooks show and `Path.write_text` saves."""

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)


class ShownRollout(Rollout):
    """A rollout that draws its tree."""

    __slots__ = ("agents",)
    agents: tuple[str, ...]  # of the run; their order decides the colours

    def tree(self) -> SVG:
        """Return the tree of the plays: a row per depth, a colour per agent.

        A line goes from a play to the draft below which it hangs in the tree. The best response has
        a thick border, failed plays are empty; the text of a play is its tooltip.
        """
        from toa_trl.report.figures import color  # matplotlib

        played = [play.action.agent for play in self.plays]
        order = {agent: color(n) for n, agent in enumerate(dict.fromkeys([*self.agents, *played]))}
        colors = {agent: shade for agent, shade in order.items() if agent in played}
        places = _places(self.plays)
        best = self.ranked[0].index if self.ranked else None
        parts = [*_edges(self.plays, places)]
        for play in self.plays:
            parts.append(_node(play, places[play.index], colors[play.action.agent], best))
        width = int(max((x for x, _ in places.values()), default=0)) + STEP_X
        height = int(max((y for _, y in places.values()), default=0)) + STEP_Y
        for number, (agent, shade) in enumerate(colors.items()):
            y = height + 18 * number
            parts.append(f'<circle cx="14" cy="{y}" r="6" fill="{shade}"/>')
            parts.append(f'<text x="26" y="{y + 4}">{_text(agent)}</text>')
            width = max(width, 40 + 8 * len(agent))
        size = f'width="{width}" height="{height + 18 * len(colors)}"'
        style = 'font-family="sans-serif" font-size="12" fill="#333"'
        return SVG(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>')

    def _repr_html_(self) -> str:
        return f"<p>{_text(self.prompt.messages[-1].text)}</p>{self.tree()}"


def shown(rollout: Rollout, agents: tuple[str, ...] = ()) -> ShownRollout:
    """Return a rollout that draws its tree."""
    drawn = ShownRollout(rollout.prompt, rollout.plays)
    object.__setattr__(drawn, "agents", agents)  # the class is frozen
    return drawn


def settings_text(identity: Mapping[str, Any]) -> str:
    """Return the settings of a sampler as text."""
    return ", ".join(f"{key}={value!r}" for key, value in _settings(identity))


def settings_table(identity: Mapping[str, Any]) -> str:
    """Return the settings of a sampler as HTML."""
    return html_table(("setting", "value"), _settings(identity))


def _settings(identity: Mapping[str, Any]) -> list[tuple[str, Any]]:
    keys = ("search", "search_params", "budget", "seed", "reward", "task", "sampling")
    return [("agents", list(identity["agents"])), *((key, identity[key]) for key in keys)]


def html_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an HTML table; every cell is text."""
    lines = [f"<tr>{''.join(f'<th {CELL}>{_text(cell)}</th>' for cell in head)}</tr>"]
    for row in rows:
        lines.append(f"<tr>{''.join(f'<td {CELL}>{_text(cell)}</td>' for cell in row)}</tr>")
    return f"{TABLE}{''.join(lines)}</table>"


def html_view(
    title: str, agents: Mapping[str, AgentCounts], rollouts: Sequence[Rollout], num_prompts: int
) -> str:
    """Return the HTML view of a run: totals, agents, and the best responses of some prompts."""
    counts = []
    for name, of_agent in agents.items():
        tokens = of_agent.prompt_tokens + of_agent.completion_tokens
        row = (of_agent.num_scored, of_agent.num_failed, tokens)
        counts.append((name, *(f"{number:,}" for number in row)))
    best = []
    for rollout in rollouts:
        asked = rollout.prompt.messages[-1].text
        if rollout.ranked and (done := rollout.ranked[0].completion) is not None:
            reward = f"{rollout.ranked[0].reward:.4g}"
            best.append((rollout.prompt.id, asked, done.text, reward, len(rollout.plays)))
        else:
            best.append((rollout.prompt.id, asked, "", "", len(rollout.plays)))
    more = num_prompts - len(rollouts)
    further = f"<p>and {more:,} more prompts</p>" if more > 0 else ""
    return (
        f"<p><b>{_text(title)}</b></p>"
        + html_table(("agent", "scored", "failed", "tokens"), counts)
        + html_table(("id", "prompt", "best response", "reward", "plays"), best)
        + further
    )


def _text(value: object) -> str:
    text = str(value)
    return escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")


def _places(plays: Sequence[Play]) -> dict[int, tuple[float, float]]:
    """Return x and y of every play: leaves side by side, a parent in the middle of its children."""
    known = {play.index for play in plays}
    children: dict[int | None, list[Play]] = {}
    for play in plays:
        parent = play.action.parent if play.action.parent in known else None
        children.setdefault(parent, []).append(play)
    places: dict[int, tuple[float, float]] = {}
    next_x = float(STEP_X) / 2 + 4

    def place(play: Play, level: int) -> float:
        nonlocal next_x
        below = [place(child, level + 1) for child in children.get(play.index, ())]
        if below:
            x = sum(below) / len(below)
        else:
            x, next_x = next_x, next_x + STEP_X
        places[play.index] = (x, RADIUS + 6 + STEP_Y * level)
        return x

    for root in children.get(None, ()):
        place(root, 0)
    return places


def _edges(plays: Sequence[Play], places: Mapping[int, tuple[float, float]]) -> Iterator[str]:
    for play in plays:
        parent = play.action.parent
        if parent in places and parent is not None:
            (x1, y1), (x2, y2) = places[parent], places[play.index]
            yield f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#bbb"/>'


def _node(play: Play, place: tuple[float, float], color: str, best: int | None) -> str:
    x, y = place
    failed = play.reward is None
    border = 'stroke="#222" stroke-width="3"' if play.index == best else f'stroke="{color}"'
    reward = "failed" if failed else f"{play.reward:.3g}"
    said = play.error if failed else play.completion.text if play.completion else ""
    title = f"{play.action.agent}, {play.action.kind}, {reward}: {said}"
    return (
        f'<g><title>{_text(title)}</title><circle cx="{x}" cy="{y}" r="{RADIUS}" '
        f'fill="{"#fff" if failed else color}" {border}/>'
        f'<text x="{x}" y="{y + 4}" text-anchor="middle" '
        f'fill="{"#333" if failed else "#fff"}">{play.index}</text>'
        f'<text x="{x}" y="{y + RADIUS + 13}" text-anchor="middle" font-size="10">{reward}</text>'
        "</g>"
    )
