"""The section of the page about the audit: overlaps, and signs of reward hacking."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup

from toa_trl.report.audit import Audit, findings
from toa_trl.report.html import DASH, Section, Table, bar, count, many

SHOWN_CHARS = 160  # of an overlap's words


def audit_section(audit: Audit) -> Section:
    """Show the warnings, then the findings."""
    section = Section("audit", "Audit")
    section.blocks += [
        Markup("<strong>{}</strong>").format(_with_code(said)) for said in findings.warnings(audit)
    ]
    found = audit.contamination
    section.blocks.append(_with_code(findings.describe_overlaps(found)))
    if found is not None and found.overlaps:
        rows = []
        for each in findings.longest(found.overlaps):
            problem = f"{Path(each.file).name}, {each.problem_id}"
            shared = (
                each.words if len(each.words) <= SHOWN_CHARS else each.words[:SHOWN_CHARS] + "…"
            )
            rows.append([shared, count(each.num_words), each.prompt_id, each.side, problem])
        hidden = len(found.overlaps) - len(rows)
        caption = "The most consecutive words that the run shares with an evaluation set."
        caption += f" There are {many(hidden, 'more row')} in audit.json." if hidden else ""
        section.blocks.append(
            Table(
                ["words in common", "number", "of prompt", "side", "of problem"],
                rows,
                caption,
                wrap=True,
            )
        )
    reward = audit.reward
    section.blocks.append(findings.describe_length(reward.length))
    if reward.pairs is not None:
        link = Markup('<a href="#pairs">Chosen against rejected</a>')
        section.blocks.append(Markup("For the lengths of the pairs see {}.").format(link))
    section.blocks.append(_with_code(findings.describe_second_reward(reward)))
    if not reward.best.num_prompts:
        return section
    cells = [
        [what, count(num), count(of), bar(num, of) if of else DASH]
        for what, num, of in findings.faults_of_best_plays(reward)
    ]
    caption = "Faults of the best plays, one of each prompt."
    languages = [
        f"{asked} asked for, {answered} answered: {count(num)}"
        for asked, answered, num in reward.best.languages
    ]
    caption += f" Languages: {'; '.join(languages[:5])}." if languages else ""
    section.blocks.append(
        Table(["the best play is", "plays", "of", "share"], cells, caption, wrap=True)
    )
    return section


def _with_code(said: str) -> Markup:
    """Return text with code between backticks as HTML."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(Markup.escape(said))))
