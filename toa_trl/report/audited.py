"""What the page says of an audit: overlaps with evaluation sets, and signs of a hacked reward."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup

from toa_trl.report.audit import Audit, words
from toa_trl.report.words import DASH, Section, Table, bar, count, many

SHOWN_CHARS = 160  # of an overlap's words


def audited(audit: Audit) -> Section:
    """The warnings first, then what was looked at."""
    section = Section("audit", "Audit")
    section.blocks += [
        Markup("<strong>{}</strong>").format(_with_code(said)) for said in words.warnings(audit)
    ]
    found = audit.contamination
    section.blocks.append(_with_code(words.overlaps_said(found)))
    if found is not None and found.overlaps:
        rows = []
        for each in words.longest(found.overlaps):
            problem = f"{Path(each.file).name}, {each.problem_id}"
            shared = (
                each.words if len(each.words) <= SHOWN_CHARS else each.words[:SHOWN_CHARS] + "…"
            )
            rows.append([shared, count(each.num_words), each.prompt_id, each.side, problem])
        hidden = len(found.overlaps) - len(rows)
        caption = "The longest words in a row that the run and an evaluation set share."
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
    section.blocks.append(words.length_said(reward.length))
    if reward.pairs is not None:
        link = Markup('<a href="#pairs">Chosen against rejected</a>')
        section.blocks.append(
            Markup("What the lengths of the pairs may teach a student stands under {}.").format(
                link
            )
        )
    section.blocks.append(_with_code(words.second_said(reward)))
    if not reward.best.num_prompts:
        return section
    cells = [
        [what, count(num), count(of), bar(num, of) if of else DASH]
        for what, num, of in words.best_said(reward)
    ]
    caption = "What is wrong with the best plays, one of each prompt."
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
    """Code between backticks as the page has it."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(Markup.escape(said))))
