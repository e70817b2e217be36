"""The section of the page about the audit: overlaps, and signs of reward hacking."""

import re
from pathlib import Path

from markupsafe import Markup

from toa_trl.report.audit import Audit, findings
from toa_trl.report.html import DASH, Section, Table, bar, count, many

SHOWN_CHARS = 160  # of an overlap's words


def audit_section(audit: Audit) -> Section:
    """Show the warnings, then the findings."""
    section = Section("audit", "Audit")
    bold = Markup("<strong>{}</strong>")
    section.blocks += [bold.format(_with_code(text)) for text in findings.warnings(audit)]
    section.blocks.append(_with_code(findings.describe_overlaps(audit.contamination)))
    overlaps = audit.contamination.overlaps if audit.contamination is not None else ()
    if overlaps:
        rows = []
        for overlap in findings.longest(overlaps):
            problem = f"{Path(overlap.file).name}, {overlap.problem_id}"
            text = overlap.words[:SHOWN_CHARS]
            text += "…" if len(overlap.words) > SHOWN_CHARS else ""
            rows.append([text, count(overlap.num_words), overlap.prompt_id, overlap.side, problem])
        hidden = len(overlaps) - len(rows)
        caption = "The most consecutive words that the run shares with an evaluation set."
        caption += f" There are {many(hidden, 'more row')} in audit.json." if hidden else ""
        header = ["words in common", "number", "of prompt", "side", "of problem"]
        section.blocks.append(Table(header, rows, caption, wrap=True))
    reward = audit.reward
    section.blocks.append(findings.describe_length(reward.length))
    if reward.pairs is not None:
        link = Markup('<a href="#pairs">Chosen against rejected</a>')
        section.blocks.append(Markup("For the lengths of the pairs see {}.").format(link))
    section.blocks.append(_with_code(findings.describe_second_reward(reward)))
    if not reward.best.num_prompts:
        return section
    rows = []
    for fault, num, total in findings.faults_of_best_plays(reward):
        rows.append([fault, count(num), count(total), bar(num, total) if total else DASH])
    caption = "Faults of the best plays, one of each prompt."
    languages = []
    for asked, answered, num in reward.best.languages[:5]:
        languages.append(f"{asked} asked for, {answered} answered: {count(num)}")
    caption += f" Languages: {'; '.join(languages)}." if languages else ""
    header = ["the best play is", "plays", "of", "share"]
    section.blocks.append(Table(header, rows, caption, wrap=True))
    return section


def _with_code(text: str) -> Markup:
    """Return text with code between backticks as HTML."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(Markup.escape(text))))
