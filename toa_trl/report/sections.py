"""The sections of the page about the run, from its `Summary` and configuration."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
from markupsafe import Markup

from toa_trl.hub.dataset_card import reward_name
from toa_trl.report import figures
from toa_trl.report.html import (
    DASH,
    Facts,
    Picture,
    Section,
    Table,
    bar,
    chip,
    count,
    histogram_rows,
    listed,
    many,
    plain,
    rewards,
    share,
    signed,
)
from toa_trl.report.rollout_tables import Floats
from toa_trl.report.rollouts import Summary, Tally
from toa_trl.sampling.budget import PlaysPerPrompt, describe_budget, is_adaptive

MAX_DEPTHS = 8  # rows of the depth panel; the last one includes deeper plays
MAX_PATHS = 10
MAX_REASONS = 12  # rows of the table of failures
KINDS = {
    "refine": "a refinement",
    "aggregate": "an aggregate of several drafts",
    "answer": "an answer",
}


def what_ran(run: Mapping[str, Any], summary: Summary, agents: Mapping[str, int]) -> Section:
    """Show the configuration, the plays and their costs, and failures."""
    section = Section("ran", "What ran", [_totals(run, summary, agents), _facts(run, summary)])
    entries = [entry for entry in run.get("agents") or [] if isinstance(entry, Mapping)]
    entry_of = {entry.get("name"): entry for entry in entries}
    rows = []
    for name, tally in summary.tallies.items():
        entry = entry_of.get(name, {})
        model = plain(entry.get("model") or entry.get("engine"))
        rows.append([chip(agents, name), model, *_agent_cells(tally)])
    header = "agent, model, plays, answers, refinements, aggregates, failed, truncated"
    header += ", tokens a play, FLOPs"
    section.blocks.append(Table(header.split(", "), rows, "The agents and their plays."))
    silent = [name for name, tally in summary.tallies.items() if tally.failed == tally.plays]
    # a search of one agent alone leaves the others out on purpose
    if silent and "agent" not in (run.get("search_params") or {}):
        text = f"No usable play of {', '.join(silent)}: the data have nothing of it."
        section.blocks.insert(0, Markup("<strong>{}</strong>").format(text))
    failed, unscored = summary.total("failed"), summary.num_unscored_prompts
    if not failed:
        section.blocks.append("No play failed.")
        return section
    text = f"{many(failed, 'play')} ({share(failed, summary.total('plays'))}) failed"
    text += f"; {many(unscored, 'prompt')} got no reward at all." if unscored else "."
    section.blocks += [text, _failures(summary, agents)]
    return section


def _totals(run: Mapping[str, Any], summary: Summary, agents: Mapping[str, int]) -> Markup:
    """Describe the totals of a run."""
    plays, truncated, known = map(summary.total, ("plays", "truncated", "num_flops"))
    flops, reward_flops = map(summary.total, ("flops", "reward_flops"))
    scored = plays - summary.total("failed")
    text = Markup("{} worked on {} under the search <b>{}</b>: {}").format(
        listed(chip(agents, name) for name in agents),
        many(len(summary.prompt_ids), "prompt"),
        run.get("search", "?"),
        many(plays, "play"),
    )
    text += f", of which {count(scored)} {'has' if scored == 1 else 'have'} a reward."
    text += f" The agents read {count(summary.total('prompt_tokens'))} tokens and wrote "
    text += count(summary.total("completion_tokens"))
    estimated = summary.total("num_estimated")
    text += f" (estimated from the texts of {many(estimated, 'play')})" if estimated else ""
    text += f", with {figures.power(flops)} FLOPs" if known else "; their FLOPs are not known"
    if 0 < known < scored:
        text += f" (known for {share(known, scored)} of the plays)"
    text += f", and the reward model spent {figures.power(reward_flops)}." if reward_flops else "."
    if not truncated:
        return text + " No response was cut short by the token limit."
    return text + (
        f" {many(truncated, 'response')} ({share(truncated, scored)}) ended at the token limit."
    )


def _agent_cells(tally: Tally) -> list[str]:
    kinds = [tally.kinds[kind] for kind in ("answer", "refine", "aggregate")]
    tokens = count(tally.completion_tokens / tally.plays) if tally.plays else DASH
    cost = figures.power(tally.flops) if tally.num_flops else DASH
    numbers = (tally.plays, *kinds, tally.failed, tally.truncated)
    return [*map(count, numbers), tokens, cost]


def reward_distribution(summary: Summary, agents: Mapping[str, int]) -> Section:
    """Show the distribution of rewards per agent and per depth."""
    section = Section("rewards", "Rewards")
    everything = summary.select()
    if not len(everything):
        section.blocks.append("No play has a reward.")
        return section
    write = rewards(everything)
    if everything.min() == everything.max():
        equal = f"All {many(len(everything), 'reward')} equal {write(everything[0])}"
        section.blocks.append(f"{equal}: the search had no signal.")
        return section
    of_agents = {name: summary.select(name) for name in agents}
    by_agent = {name: values for name, values in of_agents.items() if len(values)}
    by_depth = _rewards_by_depth(summary)
    panel, num_beyond = _histograms(by_agent, agents, "agent")
    panels = [panel]
    means = {name: float(values.mean()) for name, values in by_agent.items()}
    best, worst = max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])
    if len(means) > 1:
        text = f"Mean rewards run from {write(means[worst])} ({worst}) to "
        text += f"{write(means[best])} ({best})"
    else:
        text = f"The mean reward of {best} is {write(means[best])}"
    if len(by_depth) > 1:
        panels.append(_histograms(by_depth, {}, "depth")[0])
        first, *_, last = (f"{write(v.mean())} ({label})" for label, v in by_depth.items())
        text += f"; by depth from {first} to {last}."
    else:
        text += "; every play is at depth 0: nothing was refined."
    text += " The mark is the median."
    if num_beyond:
        text += f" Beyond the axis and drawn at its ends: {many(num_beyond, 'reward')}."
    rows = []
    for name, values in (by_agent | by_depth if len(by_depth) > 1 else by_agent).items():
        numbers = (values.mean(), values.std(), *np.quantile(values, [0.05, 0.5, 0.95]))
        label = chip(agents, name) if name in by_agent else name
        rows.append([label, count(len(values)), *(write(float(number)) for number in numbers)])
    kinds = [f"{k} {write(s / n)}" for k, (n, s) in sorted(summary.rewards_by_kind.items()) if n]
    caption = f"Raw rewards. Mean by kind of play: {', '.join(kinds)}."
    table = Table(["", "plays", "mean", "sd", "5 %", "median", "95 %"], rows, caption)
    section.blocks += [Picture(panels, text), table]
    return section


def _rewards_by_depth(summary: Summary) -> dict[str, Floats]:
    depths = sorted({depth for _, depth in summary.rewards})
    groups = [[depth] for depth in depths[: MAX_DEPTHS - 1]]
    deeper = depths[MAX_DEPTHS - 1 :]
    rewards_of = {f"depth {group[0]}": summary.select(depths=group) for group in groups}
    if deeper:
        label = f"depth {deeper[0]}" + (f" to {deeper[-1]}" if len(deeper) > 1 else "")
        rewards_of[label] = summary.select(depths=deeper)
    return rewards_of


def _histograms(
    groups: Mapping[str, Floats], agents: Mapping[str, int], name: str
) -> tuple[Markup, int]:
    """Return the histograms of groups of rewards, and the number of rewards beyond the axis."""
    figure, num_beyond = figures.distributions(histogram_rows(groups, agents), "reward")
    return figures.inline_svg(figure, f"rewards per {name}", f"rewards-{name}"), num_beyond


def winners(summary: Summary, agents: Mapping[str, int]) -> Section:
    """Show which agents made the best plays, by which path, and the gain of refinements."""
    section = Section("winners", "Best plays and their paths")
    num, plays = summary.curve.num_prompts, summary.total("plays")
    if not num:
        section.blocks.append("No prompt has a scored play, so none has a winner.")
        return section
    write = rewards(summary.select())
    best = summary.best
    kinds = [f"in {share(best[kind], num)} {text}" for kind, text in KINDS.items() if best[kind]]
    text = f"The best play of a prompt is {listed(kinds)} ({many(num, 'prompt')})"
    fresh = f", {count(best['fresh'])} times from a fresh arm deeper in the tree"
    rows = []
    for name, tally in sorted(summary.tallies.items(), key=lambda item: -item[1].wins):
        style = f"--c:var(--c{agents[name] % len(figures.PALETTE)})"
        bars = [bar(tally.wins, num, style), bar(tally.plays, plays)]
        rows.append([chip(agents, name), count(tally.wins), *bars])
    leader, tally = max(summary.tallies.items(), key=lambda item: item[1].wins)
    caption = f"{leader} made {share(tally.wins, num)} of the best plays with "
    caption += f"{share(tally.plays, plays)} of all plays."
    header = ["agent", "prompts won", "of all prompts", "of all plays"]
    section.blocks += [f"{text}{fresh if best['fresh'] else ''}.", Table(header, rows, caption)]
    paths = sorted(summary.paths.items(), key=lambda item: (-item[1][0], item[0]))
    rows = []
    for steps, (times, total) in paths[:MAX_PATHS]:
        rows.append([_path(steps, agents), count(times), bar(times, num), write(total / times)])
    caption = "The most frequent paths to a prompt's best play, of "
    caption += f"{many(len(paths), 'path')} in total."
    header = ["path", "prompts", "of all", "mean reward"]
    section.blocks.append(Table(header, rows, caption, wrap=True))
    section.blocks.append(
        _gain_table(summary, agents)
        if summary.gains
        else "Nothing was refined in this run, so there is no table of gains."
    )
    return section


def best_against_plays(summary: Summary) -> Section:
    """Show the best reward so far against the number of plays."""
    section = Section("curve", "Best reward against plays")
    curve = summary.curve
    if not curve.num_prompts:
        section.blocks.append("No play has a reward, so there is no curve.")
        return section
    mean, half = curve.mean, curve.half_width
    write = rewards(summary.select())
    if len(mean) == 1:
        section.blocks.append(f"One scored play per prompt; their mean reward is {write(mean[0])}.")
        return section
    rise = mean - mean[0]
    text = f"Over {many(curve.num_prompts, 'prompt')} the mean best reward is {write(mean[0])} "
    text += f"after one play and {write(mean[-1])} after {len(mean)}"
    text += f" (95 % band ±{write(half[-1])})." if curve.num_prompts > 1 else "."
    if rise[-1] > 0:
        halfway = int(np.argmax(rise >= rise[-1] / 2)) + 1
        text += f" Half of the gain is reached after {many(halfway, 'play')}."
    text += " The thin line is the mean reward of the play itself."
    if curve.num_short:
        short = many(curve.num_short, "prompt")
        text += f" {short} with fewer scored plays keep their best reward."
    figure = figures.best_so_far(mean, half, curve.own)
    panel = figures.inline_svg(figure, "best reward against plays", "curve")
    section.blocks.append(Picture([panel], text))
    return section


def opening(summary: Summary) -> str:
    """Summarize the run in two sentences."""
    num, everything = summary.curve.num_prompts, summary.select()
    if not num:
        return "No play of this run has a reward."
    write, best = rewards(everything), float(summary.curve.mean[-1])
    text = f"A play's mean reward is {write(everything.mean())}; the best play of a prompt has "
    text += f"{write(best)} on average."
    improved = num - summary.best["answer"]
    if improved:
        text += f" {share(improved, num)} of those best plays improve on earlier ones."
    return text


def _facts(run: Mapping[str, Any], summary: Summary) -> Facts:
    reward, started = run.get("reward"), run.get("started") or run.get("created")
    params, in_flight = run.get("search_params"), run.get("plays_in_flight", 1)
    plays, allocation = None, DASH
    if is_adaptive(run):
        plays, allocation = PlaysPerPrompt.of(summary.num_scored), plain(run["allocation"])
    facts = {
        "search": plain(run.get("search")) + (f" ({plain(params)})" if params else ""),
        "budget": f"{describe_budget(run.get('budget', '?'), plays)}, {in_flight} in flight",
        "allocation": allocation,
        "seed": plain(run.get("seed")),
        "sampling": plain(run.get("sampling")),
        "reward": reward_name(reward).replace("`", "") if reward else DASH,
        "prompts": plain(run.get("prompts")),
        "pairs": plain(run.get("preference")),
        "started": plain(started),
        "wall time": _wall_time(started, run.get("finished")),
        "versions": plain(run.get("versions")),
        "fingerprint": plain(run.get("fingerprint")),
    }
    return Facts([(term, value) for term, value in facts.items() if value != DASH])


def _wall_time(started: Any, finished: Any) -> str:
    try:
        # YAML reads some times as datetimes, others as text
        start, end = datetime.fromisoformat(str(started)), datetime.fromisoformat(str(finished))
        seconds = int((end - start).total_seconds())
    except (ValueError, TypeError):  # not recorded, or in different zones
        return DASH
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"


def _failures(summary: Summary, agents: Mapping[str, int]) -> Table:
    totals: Counter[str] = Counter()
    for (reason, _), num in summary.reasons.items():
        totals[reason] += num
    failing = [name for name, tally in summary.tallies.items() if tally.failed]
    rows, rest = [], totals.total()
    for reason, total in totals.most_common(MAX_REASONS):
        by_agent = [count(summary.reasons.get((reason, name), 0)) for name in failing]
        rows.append([reason, *by_agent, count(total)])
        rest -= total
    if rest:
        num_rarer = len(totals) - MAX_REASONS
        rows.append([f"{num_rarer} rarer reasons", *[DASH] * len(failing), count(rest)])
    header = ["reason", *(chip(agents, name) for name in failing), "plays"]
    return Table(header, rows, "Why plays failed, by agent.", wrap=True)


def _path(steps: tuple[tuple[str, str], ...], agents: Mapping[str, int]) -> Markup:
    verbs = {"answer": "answered", "refine": "refined", "aggregate": "aggregated"}
    return Markup(", ").join(
        Markup("{} by {}").format(verbs[kind], chip(agents, agent)) for kind, agent in steps
    )


def _gain_table(summary: Summary, agents: Mapping[str, int]) -> Table:
    write = rewards(summary.select())
    gains = {pairing: (num, total / num) for pairing, (num, total, _) in summary.gains.items()}
    largest = max(abs(mean) for _, mean in gains.values()) or 1.0
    authors, refiners = {author for author, _ in gains}, {refiner for _, refiner in gains}
    columns = [name for name in agents if name in refiners]
    cell = Markup('<span class="gain {}" style="--g:{:.0f}%">{} <small>{}</small></span>')
    rows = []
    for author in (*agents, None):
        if author not in authors:
            continue
        row = ["best of several drafts" if author is None else chip(agents, author)]
        for refiner in columns:
            num, mean = gains.get((author, refiner), (0, 0.0))
            tint, direction = 40 * abs(mean) / largest, "up" if mean > 0 else "down"
            text = cell.format(direction, tint, signed(write(mean)), count(num))
            row.append(text if num else DASH)
        rows.append(row)
    num, total, better = (sum(column) for column in zip(*summary.gains.values(), strict=True))
    # rare pairings are uncertain
    frequent = [pairing for pairing, (times, _) in gains.items() if times >= num / len(gains) / 2]
    author, refiner = max(frequent, key=lambda pairing: gains[pairing][1])
    top_num, top = gains[author, refiner]
    draft = "the best of several drafts" if author is None else f"a draft of {author}"
    caption = f"Of {many(num, 'play')} that saw drafts {share(better, num)} beat the best of them; "
    caption += f"the mean gain is {signed(write(total / num))}. The best frequent pairing is "
    caption += f"{refiner} with {draft}: {signed(write(top))} over {many(top_num, 'play')}. Rows: "
    caption += "agent that wrote the draft. Columns: agent that refined it. Small figures: number "
    caption += "of plays."
    return Table(["draft of", *(chip(agents, name) for name in columns)], rows, caption)
