"""What a pilot says, as text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from tabulate import tabulate

from toa_trl.evaluation.pilot import Pilot
from toa_trl.evaluation.pilot.demand import NEITHER, Hours, Part
from toa_trl.evaluation.pilot.figures import Figure
from toa_trl.sampling.progress import human

WIDTH = 100
NAME = 14  # characters of a name that are shown in a table
MISSING, UNKNOWN = "-", "unknown"


def describe(pilot: Pilot, engines: Mapping[str | None, str]) -> str:
    """Return the text.

    Args:
        pilot: what to say.
        engines: engine by name of the agent, and the kind of the reward by None.
    """
    sections = [_full_run(pilot, engines), _budget(pilot), _tau(pilot)]
    sections += [_allocation(pilot), _agents(pilot)]
    return "\n\n".join("\n".join(section) for section in sections)


def _full_run(pilot: Pilot, engines: Mapping[str | None, str]) -> Iterator[str]:
    run, demand = pilot.full_run, pilot.demand
    yield from _wrapped(
        f"From {pilot.num_prompts:,} prompts; brackets are 95 % intervals over prompts. The full "
        f"run: {run.num_prompts:,} prompts x {run.budget:,} plays.",
        indent="",
    )
    for number, state in (
        (pilot.num_without_plays, "no scored play and counts for nothing here"),
        (pilot.num_unfinished, "fewer plays than the budget"),
    ):
        if number:
            prompts = "1 prompt has" if number == 1 else f"{number:,} prompts have"
            yield from _wrapped(f"{prompts} {state}.", indent="")
    if demand.hours is None:
        yield from _item("hours", "unknown, because no call was timed")
    else:
        yield from _hours(pilot, demand.hours)
    yield f"  tokens      {_amount(demand.tokens)}"
    yield f"  FLOPs       {_amount(demand.flops) if demand.flops else UNKNOWN}"
    if pilot.unknown_flops:
        names = ", ".join(pilot.unknown_flops)
        yield from _item("", f"without those of {names}; `config` in an entry makes them known")
    cost = _amount(demand.cost) if demand.cost else f"{UNKNOWN}: no agent and no reward has a price"
    yield f"  price       {cost}"
    rows = [_times(part, engines.get(part.name, "")) for part in demand.parts]
    yield ""
    yield from _table([*rows, _times(demand.reward, engines.get(None, ""))])
    yield ""
    yield from _table([_amounts(part) for part in (*demand.parts, demand.reward)])


def _hours(pilot: Pilot, hours: Hours) -> Iterator[str]:
    run = pilot.full_run
    yield from _item(
        "hours",
        f"{_short(hours.at_pilot_pace)} at the pilot's pace, with at most "
        f"{run.pilot_in_flight:,} plays in flight",
    )
    yield from _item(
        "",
        f"{_short(hours.if_as_fast)} with {run.plays_in_flight:,} in flight, if a call takes no "
        "longer then",
    )
    agents = _percent(hours.agents_share)
    value, low, high = hours.agents_share
    reward = _percent(Figure(1 - value, 1 - high, 1 - low))
    if hours.bottleneck == NEITHER:
        found = f"neither: agents {agents} of the time of a play, reward {reward}"
    elif hours.bottleneck == "agents":
        found = f"the agents: {agents} of the time of a play, the reward has the rest"
    else:
        found = f"the reward: {reward} of the time of a play, the agents have the rest"
    yield from _item("bottleneck", found)
    yield from _item("", f"{_whole(hours.idle_share)} of the pilot's time passed without any call")
    yield from _item(
        "assumed",
        "the same servers, and as long responses as in the pilot. Which of the two hours is nearer "
        "depends on whether servers have capacity left; nobody else must use it.",
    )


def _times(part: Part, engine: str) -> dict[str, str]:
    return {
        "who": _name(part.name),
        "engine": _name(engine),
        "hours busy": _amount(part.busy_hours),
        "busy": MISSING if part.busy_share is None else _whole(part.busy_share),
        "at once": MISSING if part.concurrency is None else f"{part.concurrency:.3g}",
        "price": _amount(part.cost),
    }


def _amounts(part: Part) -> dict[str, str]:
    return {
        "who": _name(part.name),
        "seconds per call": _amount(part.latency_s),
        "tokens": _amount(part.tokens),
        "FLOPs": _amount(part.flops),
    }


def _budget(pilot: Pilot) -> Iterator[str]:
    advice, budget = pilot.budget, pilot.full_run.budget
    share = f"{100 * advice.gain_share:g} %"
    bounds = f"[{_number(advice.low, budget)}, {_number(advice.high, budget)}]"
    yield f"Budget: {_number(advice.budget, budget)} {bounds}"
    text = (
        f"the smallest from which on doubling the plays gains less than {share} of what the "
        f"pilot's {budget:,} gained over the first."
    )
    if advice.budget is None:
        text = (
            f"even beyond {budget:,} plays, a doubling would gain {share} or more of what the "
            "pilot gained in all: if you have the compute, try a larger budget."
        )
    yield from _wrapped(text)
    if not pilot.anytime:
        yield from _wrapped(
            "The search is not anytime: its first n plays are not those of a run with budget n, so "
            "the values at other budgets are approximate. For toa, search_params: {width: anytime} "
            "makes those of smaller budgets exact."
        )
    rows = []
    for plays, value in advice.curve.items():
        note = "extrapolated from the last two doublings" if plays > budget else ""
        rows.append({"plays": f"{plays:,}", "mean best reward": _short(value), " ": note})
    yield from _table(rows)


def _tau(pilot: Pilot) -> Iterator[str]:
    advice = pilot.tau
    if advice is None:
        yield "Tau: nothing to choose: the search has none, or every reward is the same"
        return
    current = f"{advice.current:g}"
    yield f"Tau: {f'keep {current}' if advice.keep else f'{advice.suggested.value:.2g}'}"
    yield from _wrapped(
        f"With tau = {current}, {_percent(advice.saturated_share)} of the rewards are 0 or 1 to a "
        f"millionth after squashing, and it {'keeps' if advice.keep else 'does not keep'} the "
        f"others apart; half the size or spread of the rewards is {_short(advice.suggested)}."
    )


def _allocation(pilot: Pilot) -> Iterator[str]:
    advice = pilot.allocation
    if advice is None:
        yield "Allocation: unknown, because the budget of the pilot is too small to divide it"
        return
    yield f"Allocation: {advice.kind}"
    plays, low, high = (f"{number:.0f}" for number in advice.as_uniform)
    yield from _wrapped(
        f"With {advice.mean_plays:,} of its plays per prompt, the pilot reaches a mean best reward "
        f"of {_short(advice.uniform)}; given out again as adaptive, {_short(advice.adaptive)} with "
        f"{advice.adaptive_plays.value:.3g} plays per prompt. Difference {_short(advice.gain)}; "
        f"uniform needs {plays} [{low}, {high}] plays for the same. A prompt can get no more than "
        f"the {pilot.full_run.budget:,} plays of the pilot here; in a run it can."
    )
    yield from _wrapped(
        f"A quarter of the prompts has {_percent(advice.late_gain_share)} of what the second half "
        "of the plays gains (in hindsight)."
    )


def _agents(pilot: Pilot) -> Iterator[str]:
    yield "Agents"
    cost = f"{pilot.cost_measure} share"
    yield from _table(
        [
            {
                "agent": _name(place.agent),
                "best responses": _percent(place.best_share),
                cost: _percent(place.cost_share),
                "loss without it": _short(place.loss),
                "net of its cost": _short(place.net_loss),
            }
            for place in pilot.agents
        ]
    )
    for place in pilot.agents:
        yield from _wrapped(f"{place.agent}: {place.verdict}")
    yield from _wrapped(
        "Loss: mean best reward without the agent's plays and those that rest on them; net: less "
        "what as many first plays as cost the rest have reached. `toa-trl compare` with and "
        "without an agent is the exact answer."
    )


def _number(plays: int | None, budget: int) -> str:
    return f"more than {budget:,}" if plays is None else f"{plays:,}"


def _amount(figure: Figure | None) -> str:
    """Return an amount >= 0 in at most 26 characters."""
    if figure is None:
        return MISSING
    value, low, high = (human(part) if part >= 1 else f"{part:.2g}" for part in figure)
    return f"{value} [{low}, {high}]"


def _short(figure: Figure | None) -> str:
    if figure is None:
        return MISSING
    return f"{figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]"


def _percent(figure: Figure) -> str:
    value, low, high = (f"{100 * part:.0f}" for part in figure)
    return f"{value} [{low}, {high}] %"


def _whole(share: float) -> str:
    return f"{100 * share:.0f} %"


def _name(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 3]}..."


def _item(name: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, initial_indent=f"  {name:12}", subsequent_indent=" " * 14)


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _table(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield a table, or where that is too wide, a paragraph for each row."""
    table = tabulate(rows, headers="keys", tablefmt="plain", disable_numparse=True)
    lines = [f"  {line}".rstrip() for line in table.splitlines()]
    if max(map(len, lines)) <= WIDTH:
        yield from lines
        return
    for row in rows:
        (_, name), *cells = row.items()
        yield from _wrapped(f"{name}: {', '.join(f'{key} {cell}' for key, cell in cells)}")
