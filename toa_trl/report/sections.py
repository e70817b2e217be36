"""The sections of the page about the run, from its `Summary` and configuration."""

from __future__ import annotations

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
    decimals,
    listed,
    many,
    plain,
    rewards,
    share,
    signed,
)
from toa_trl.report.rollouts import Summary

MAX_DEPTHS = 8  # rows of the depth panel; the last one includes deeper plays
MAX_PATHS = 10
MAX_REASONS = 12  # rows of the table of failures


def what_ran(run: Mapping[str, Any], summary: Summary, agents: Mapping[str, int]) -> Section:
    """Show the configuration, the plays and their costs, and failures."""
    plays, failed, truncated = (summary.total(name) for name in ("plays", "failed", "truncated"))
    section = Section("ran", "What ran")
    text = Markup("{} worked on {}").format(
        listed(chip(agents, a) for a in agents), many(_num_prompts(summary), "prompt")
    )
    text += Markup(" under the search <b>{}</b>: {}, of which {} a reward.").format(
        run.get("search", "?"),
        many(plays, "play"),
        f"{count(plays - failed)} {'has' if plays - failed == 1 else 'have'}",
    )
    flops, reward_flops, known = (
        summary.total(name) for name in ("flops", "reward_flops", "num_flops")
    )
    read, wrote = summary.total("prompt_tokens"), summary.total("completion_tokens")
    text += f" The agents read {count(read)} tokens and wrote {count(wrote)}"
    text += f", with {figures.power(flops)} FLOPs" if known else "; their FLOPs are not known"
    text += (
        f" (known for {share(known, plays - failed)} of the plays)"
        if 0 < known < plays - failed
        else ""
    )
    text += f", and the reward model spent {figures.power(reward_flops)}." if reward_flops else "."
    text += (
        f" {many(truncated, 'response')} ({share(truncated, plays - failed)}) ended at the token "
        "limit."
        if truncated
        else " No response was cut short by the token limit."
    )
    section.blocks += [text, _facts(run)]
    known_agents = {
        entry.get("name"): entry for entry in run.get("agents") or [] if isinstance(entry, Mapping)
    }
    rows = []
    for name, tally in summary.tallies.items():
        entry = known_agents.get(name, {})
        numbers = (
            tally.plays,
            tally.kinds["answer"],
            tally.kinds["refine"],
            tally.kinds["aggregate"],
            tally.failed,
        )
        tokens = f"{tally.completion_tokens / tally.plays:,.0f}" if tally.plays else DASH
        model = plain(entry.get("model") or entry.get("engine"))
        cost = figures.power(tally.flops) if tally.num_flops else DASH
        rows.append(
            [chip(agents, name), model, *map(count, numbers), count(tally.truncated), tokens, cost]
        )
    header = [
        "agent",
        "model",
        "plays",
        "answers",
        "refinements",
        "aggregates",
        "failed",
        "truncated",
        "tokens a play",
    ]
    section.blocks.append(Table([*header, "FLOPs"], rows, "The agents and their plays."))
    if not failed:
        section.blocks.append("No play failed.")
        return section
    section.blocks.append(
        f"{many(failed, 'play')} ({share(failed, plays)}) failed"
        + (
            f"; {many(summary.num_unscored_prompts, 'prompt')} got no reward at all."
            if summary.num_unscored_prompts
            else "."
        )
    )
    section.blocks.append(_failures(summary, agents))
    return section


def reward_distribution(summary: Summary, agents: Mapping[str, int]) -> Section:
    """Show the distribution of rewards per agent and per depth."""
    section = Section("rewards", "Rewards")
    everything = summary.select()
    if not len(everything):
        section.blocks.append("No play has a reward.")
        return section
    write = rewards(everything)
    by_agent = {name: values for name in agents if len(values := summary.select(name))}
    depths = sorted({depth for _, depth in summary.rewards})
    groups = [[d] for d in depths[: MAX_DEPTHS - 1]] + [g for g in [depths[MAX_DEPTHS - 1 :]] if g]
    labels = [f"depth {g[0]}" + (f" to {g[-1]}" if len(g) > 1 else "") for g in groups]
    by_depth = {label: summary.select(depths=g) for label, g in zip(labels, groups, strict=True)}
    if everything.min() == everything.max():
        text = (
            f"All {many(len(everything), 'reward')} equal {write(everything[0])}: the search "
            "had no signal."
        )
        section.blocks.append(text)
        return section
    agent_rows = [
        (f"{name}, {many(len(v), 'play')}", figures.color(agents[name]), v)
        for name, v in by_agent.items()
    ]
    figure, beyond = figures.distributions(agent_rows, "reward")
    panels = [figures.inline_svg(figure, "rewards per agent", "rewards-agent")]
    best = max(by_agent, key=lambda name: float(by_agent[name].mean()))
    if len(by_agent) > 1:
        worst = min(by_agent, key=lambda name: float(by_agent[name].mean()))
        text = (
            f"Mean rewards run from {write(by_agent[worst].mean())} ({worst}) to "
            f"{write(by_agent[best].mean())} ({best})"
        )
    else:
        text = f"The mean reward of {best} is {write(by_agent[best].mean())}"
    if len(by_depth) > 1:
        figure, _ = figures.distributions(
            [(f"{k}, {many(len(v), 'play')}", figures.MUTED, v) for k, v in by_depth.items()],
            "reward",
        )
        panels.append(figures.inline_svg(figure, "rewards per depth", "rewards-depth"))
        means = [write(v.mean()) for v in by_depth.values()]
        text += f"; by depth from {means[0]} ({labels[0]}) to {means[-1]} ({labels[-1]})."
    else:
        text += "; every play is at depth 0: nothing was refined."
    text += " The mark is the median."
    text += f" {many(beyond, 'reward')} beyond the axis are drawn at its ends." if beyond else ""
    rows = []
    for name, values in (by_agent | by_depth).items() if len(by_depth) > 1 else by_agent.items():
        low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
        figures_of = (values.mean(), values.std(), low, median, high)
        label = chip(agents, name) if name in by_agent else name
        rows.append([label, count(len(values)), *(write(float(v)) for v in figures_of)])
    kinds = [f"{k} {write(s / n)}" for k, (n, s) in sorted(summary.rewards_by_kind.items()) if n]
    caption = f"Raw rewards. Mean by kind of play: {', '.join(kinds)}."
    section.blocks.append(Picture(panels, text))
    section.blocks.append(
        Table(["", "plays", "mean", "sd", "5 %", "median", "95 %"], rows, caption)
    )
    return section


def winners(summary: Summary, agents: Mapping[str, int]) -> Section:
    """Show which agents made the best plays, by which path, and the gain of refinements."""
    section = Section("winners", "Best plays and their paths")
    num = summary.curve.num_prompts
    if not num:
        section.blocks.append("No prompt has a scored play, so none has a winner.")
        return section
    write = rewards(summary.select())
    kinds = {
        "refine": "a refinement",
        "aggregate": "an aggregate of several drafts",
        "answer": "an answer",
    }
    parts = [
        f"in {share(summary.best[kind], num)} {words}"
        for kind, words in kinds.items()
        if summary.best[kind]
    ]
    text = f"The best play of a prompt is {listed(parts)} ({many(num, 'prompt')})"
    fresh = summary.best["fresh"]
    section.blocks.append(
        text + (f", {count(fresh)} times from a fresh arm deeper in the tree." if fresh else ".")
    )
    plays, rows = summary.total("plays"), []
    for name, tally in sorted(summary.tallies.items(), key=lambda item: -item[1].wins):
        style = f"--c:var(--c{agents[name] % len(figures.PALETTE)})"
        rows.append(
            [
                chip(agents, name),
                count(tally.wins),
                bar(tally.wins, num, style),
                bar(tally.plays, plays),
            ]
        )
    leader = max(summary.tallies, key=lambda name: summary.tallies[name].wins)
    won, played = summary.tallies[leader].wins, summary.tallies[leader].plays
    caption = (
        f"{leader} made {share(won, num)} of the best plays with {share(played, plays)} of "
        "all plays."
    )
    section.blocks.append(
        Table(["agent", "prompts won", "of all prompts", "of all plays"], rows, caption)
    )
    paths = sorted(summary.paths.items(), key=lambda item: (-item[1][0], item[0]))
    rows = [
        [_path(p, agents), count(n), bar(n, num), write(total / n)]
        for p, (n, total) in paths[:MAX_PATHS]
    ]
    caption = (
        f"The most frequent paths to a prompt's best play, of {many(len(paths), 'path')} in total."
    )
    section.blocks.append(
        Table(["path", "prompts", "of all", "mean reward"], rows, caption, wrap=True)
    )
    if not summary.gains:
        section.blocks.append("Nothing was refined in this run, so there is no table of gains.")
        return section
    section.blocks.append(_gain_table(summary, agents))
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
    text = (
        f"Over {many(curve.num_prompts, 'prompt')} the mean best reward is {write(mean[0])} "
        "after one play and "
    )
    text += f"{write(mean[-1])} after {len(mean)}"
    text += f" (95 % band ±{write(half[-1])})." if curve.num_prompts > 1 else "."
    if rise[-1] > 0:
        halfway = int(np.argmax(rise >= rise[-1] / 2)) + 1
        text += f" Half of the gain is reached after {many(halfway, 'play')}."
    text += " The thin line is the mean reward of the play itself."
    if curve.num_short:
        text += (
            f" {many(curve.num_short, 'prompt')} with fewer scored plays keep their best reward."
        )
    figure = figures.best_so_far(mean, half, curve.own)
    section.blocks.append(
        Picture([figures.inline_svg(figure, "best reward against plays", "curve")], text)
    )
    return section


def opening(summary: Summary) -> str:
    """Summarize the run in two sentences."""
    num, everything = summary.curve.num_prompts, summary.select()
    if not num:
        return "No play of this run has a reward."
    write, best = rewards(everything), float(summary.curve.mean[-1])
    text = (
        f"A play's mean reward is {write(everything.mean())}; the best play of a prompt has "
        f"{write(best)} on average."
    )
    improved = num - summary.best["answer"]
    return text + (
        f" {share(improved, num)} of those best plays improve on earlier ones." if improved else ""
    )


def reward_decimals(summary: Summary) -> int:
    """Return the decimals of rewards in the viewer."""
    return decimals(summary.select())


def _num_prompts(summary: Summary) -> int:
    return len(summary.prompt_ids)


def _facts(run: Mapping[str, Any]) -> Facts:
    reward, started = run.get("reward"), run.get("started") or run.get("created")
    items = [
        (
            "search",
            plain(run.get("search"))
            + (f" ({plain(p)})" if (p := run.get("search_params")) else ""),
        ),
        (
            "budget",
            f"{run.get('budget', '?')} plays per prompt, {run.get('plays_in_flight', 1)} in flight",
        ),
        ("seed", plain(run.get("seed"))),
        ("sampling", plain(run.get("sampling"))),
        ("reward", reward_name(reward).replace("`", "") if reward else DASH),
        ("prompts", plain(run.get("prompts"))),
        ("pairs", plain(run.get("preference"))),
        ("started", plain(started)),
        ("wall time", _wall_time(started, run.get("finished"))),
        ("versions", plain(run.get("versions"))),
        ("fingerprint", plain(run.get("fingerprint"))),
    ]
    return Facts([(term, value) for term, value in items if value != DASH])


def _wall_time(started: Any, finished: Any) -> str:
    try:
        start, end = (
            t if isinstance(t, datetime) else datetime.fromisoformat(str(t))
            for t in (started, finished)
        )
        seconds = (end - start).total_seconds()
    except (ValueError, TypeError):  # not recorded, or in different zones
        return DASH
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60:.0f} s"


def _failures(summary: Summary, agents: Mapping[str, int]) -> Table:
    totals: Counter[str] = Counter()
    for (reason, _), num in summary.reasons.items():
        totals[reason] += num
    failing = [name for name, tally in summary.tallies.items() if tally.failed]
    rows = []
    for reason, total in totals.most_common(MAX_REASONS):
        rows.append(
            [
                reason,
                *(count(summary.reasons.get((reason, name), 0)) for name in failing),
                count(total),
            ]
        )
    if len(totals) > MAX_REASONS:
        rest = totals.total() - sum(num for _, num in totals.most_common(MAX_REASONS))
        rows.append(
            [f"{len(totals) - MAX_REASONS} rarer reasons", *(DASH for _ in failing), count(rest)]
        )
    header = ["reason", *(chip(agents, name) for name in failing), "plays"]
    return Table(header, rows, "Why plays failed, by agent.", wrap=True)


def _path(steps: tuple[tuple[str, str], ...], agents: Mapping[str, int]) -> Markup:
    verbs = {"answer": "answered", "refine": "refined", "aggregate": "aggregated"}
    return Markup(", ").join(
        Markup("{} by {}").format(verbs[kind], chip(agents, agent)) for kind, agent in steps
    )


def _gain_table(summary: Summary, agents: Mapping[str, int]) -> Table:
    write = rewards(summary.select())
    gains = {key: (n, total / n) for key, (n, total, _) in summary.gains.items()}
    largest = max(abs(mean) for _, mean in gains.values()) or 1.0
    sources = [name for name in (*agents, None) if any(of == name for of, _ in gains)]
    refiners = [name for name in agents if any(by == name for _, by in gains)]
    rows = []
    for of in sources:
        row: list[Any] = ["best of several drafts" if of is None else chip(agents, of)]
        for by in refiners:
            num, mean = gains.get((of, by), (0, 0.0))
            tint = f"--g:{40 * abs(mean) / largest:.0f}%"
            cell = Markup('<span class="gain {}" style="{}">{} <small>{}</small></span>')
            row.append(
                cell.format("up" if mean > 0 else "down", tint, signed(write(mean)), count(num))
                if num
                else DASH
            )
        rows.append(row)
    num, total, better = (sum(values[i] for values in summary.gains.values()) for i in range(3))
    common = {
        key: gain for key, gain in gains.items() if gain[0] >= num / len(gains) / 2
    }  # rare pairings are uncertain
    (of, by), (top_num, top) = max(common.items(), key=lambda item: item[1][1])
    draft = "the best of several drafts" if of is None else f"a draft of {of}"
    caption = (
        f"Of {many(num, 'play')} that saw drafts {share(better, num)} beat the best of "
        f"them; the mean gain is {signed(write(total / num))}. "
    )
    caption += (
        f"The best frequent pairing is {by} with {draft}: {signed(write(top))} over "
        f"{many(top_num, 'play')}. "
    )
    caption += (
        "Rows: agent that wrote the draft. Columns: agent that refined it. Small figures: "
        "number of plays."
    )
    return Table(["draft of", *(chip(agents, name) for name in refiners)], rows, caption)
