"""An audit in plain sentences, for the data set card and the report; and which findings call for a warning.

What is code stands between backticks, as Markdown has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toa_trl.report.audit.contamination import Contamination, Overlap
from toa_trl.report.audit.correlation import Correlation
from toa_trl.report.audit.reward import RewardAudit

if TYPE_CHECKING:
    from toa_trl.report.audit import Audit

# Cohen's medium effect (Statistical Power Analysis for the Behavioral Sciences, 1988): nobody overlooks it
LENGTH_CORRELATION = 0.3
# one row of the training data in twenty; the checks themselves are wrong far less often
FAULTY_SHARE = 0.05
# with fewer prompts the normal interval is too narrow, and little is known either way
MIN_GAINED = 20
SHOWN = 20  # overlaps in the card and in the report; audit.json has them all


def warnings(audit: Audit) -> Iterator[str]:
    """What somebody who trains on the data should know first; one sentence each."""
    found, best = audit.contamination, audit.reward.best
    if found is not None and found.num_kept:
        yield (
            f"{many(found.num_kept, 'prompt')} of the training data overlap with an evaluation set, which a student trained "
            "on them will do better on than it should. `python -m toa_trl data RUN --decontaminate FILE ...` leaves them out."
        )
    length = audit.reward.length.beyond_chance
    if abs(length) >= LENGTH_CORRELATION:
        yield (
            f"Within a prompt the reward goes with {'longer' if length > 0 else 'shorter'} responses (Spearman "
            f"{_number(length)}): the search may have chosen by length."
        )
    second = audit.reward.second
    if (
        second
        and second.num_gained >= MIN_GAINED
        and second.gain_interval
        and second.gain_interval[0] <= 0
    ):
        yield (
            "By the second reward the picks are no better than random plays, as far as these prompts tell: "
            "what the search gained, only its own reward sees."
        )
    for num, of, words in (
        (
            best.num_truncated,
            best.num_prompts,
            "were cut short by max_tokens, which the reward does not mind",
        ),
        (
            best.num_repeat_draft,
            best.num_with_draft,
            "that saw drafts are the same as one of them, or nearly",
        ),
        (best.num_repeat_prompt, best.num_prompts, "repeat their prompt"),
        (best.num_other_language, best.num_judged, "are in another language than asked for"),
    ):
        if num > FAULTY_SHARE * of:
            yield f"{share(num, of)} of the best plays {words}."


def overlaps_said(found: Contamination | None) -> str:
    """What the run shares with evaluation sets."""
    if found is None:
        return (
            "Overlap with evaluation sets was not looked for. `python -m toa_trl audit RUN --against FILE ...` does so; the files "
            "are those, JSONL, JSON or parquet, of the evaluations that a student will be judged by."
        )
    sets = "; ".join(
        f"{Path(each.file).name} ({many(each.num_problems, 'problem')})" for each in found.sets
    )
    text = (
        f"{many(found.num_prompts, 'prompt')} and {many(found.num_responses, 'chosen response')} were compared with "
        f"{sets}: an overlap is 13 words in a row, in lower case and without punctuation, or the whole of a shorter problem."
    )
    if not found.overlaps:
        return text + " There is none."
    sides = {
        side: len({o.prompt_id for o in found.overlaps if o.side == side})
        for side in ("prompt", "response")
    }
    text += f" {many(sides['prompt'], 'prompt')} and the chosen responses to {many(sides['response'], 'prompt')} have one"
    return text + (
        f"; {many(found.num_kept, 'prompt')} with one {'has' if found.num_kept == 1 else 'have'} rows in the training data."
        if found.num_kept
        else "; none of them has a row in the training data (`rollouts` holds their plays)."
    )


def length_said(length: Correlation) -> str:
    """How the reward goes with the length."""
    if length.pearson is None:
        return "The reward or the length is the same for all plays, so nothing can be said of their correlation."
    text = (
        f"Over {many(length.num_plays, 'scored play')}, reward and length in characters correlate by "
        f"{_number(length.pearson)} (Pearson) and {_number(length.spearman)} (Spearman)"
    )
    return text + _within(length) + "."


def best_said(reward: RewardAudit) -> Iterator[tuple[str, int, int]]:
    """(what, how many, of how many) best plays."""
    best = reward.best
    yield "cut short by max_tokens", best.num_truncated, best.num_prompts
    yield "the same as a draft they saw, or nearly", best.num_repeat_draft, best.num_with_draft
    yield "the same as the prompt, or nearly", best.num_repeat_prompt, best.num_prompts
    yield (
        "in another language than asked for, of those where both are certain",
        best.num_other_language,
        best.num_judged,
    )


def pairs_said(reward: RewardAudit) -> str:
    """Chosen against rejected."""
    pairs = reward.pairs
    if pairs is None:
        return "There are no preference pairs, so no lengths to compare."
    return (
        f"Of {many(pairs.num_pairs, 'preference pair')} the chosen response is longer in "
        f"{share(pairs.num_longer, pairs.num_pairs)} and shorter in {share(pairs.num_shorter, pairs.num_pairs)}; "
        f"on average {pairs.mean_chosen:,.0f} characters against {pairs.mean_rejected:,.0f}."
    )


def second_said(reward: RewardAudit) -> str:
    """Whether another reward model agrees."""
    second, num, of = reward.second, reward.num_with_second, reward.num_scored
    if not num:
        return (
            "No second reward was recorded, so nothing tells whether another reward model sees what the search gained. "
            "`reward: {kind: held_out, reward: {...}, second: {...}}` records one, which never steers the search; where the "
            "run has it, it failed on every play."
        )
    missing = (
        f" {of - num:,} of {many(of, 'scored play')} have no second reward: it failed on them."
        if num < of
        else ""
    )
    if second is None:
        return f"The second reward failed on every pick, so nothing tells whether it sees what the search gained.{missing}"
    prompts = many(reward.best.num_prompts, "prompt")
    if second.num_prompts < reward.best.num_prompts:
        prompts = f"{second.num_prompts:,} of {prompts}"
    text = (
        f"A second reward model, which the search never saw, gives the picks of {prompts} "
        f"{_number(second.picks)} on average, a random play {_number(second.random)}, all plays {_number(second.all_plays)}, "
        f"and the plays that it likes best {_number(second.best)}"
    )
    if second.gain_interval is not None:
        low, high = second.gain_interval
        text += f"; picks against random plays: {_number(low)} to {_number(high)} (95 % interval)"
    text += (
        f". The pick is also its best play for {100 * second.agreement:.0f} % of the prompts (a random play: "
        f"{100 * second.agreement_by_chance:.0f} %)"
    )
    both = second.correlation
    if both.spearman is not None:
        text += f"; both rewards correlate by {_number(both.spearman)} (Spearman)" + _within(both)
    return f"{text}.{missing}"


def card_section(audit: Audit) -> str:
    """The section "Audit" of the data set card, in Markdown, from its heading on."""
    lines = ["## Audit", ""]
    lines += [f"**{warning}**\n" for warning in warnings(audit)]
    lines += [f"- {overlaps_said(audit.contamination)}"]
    overlaps = () if audit.contamination is None else audit.contamination.overlaps
    # without the words: a card is published, and shall not spread the problems
    for each in longest(overlaps):
        place = f"problem `{each.problem_id}` of {Path(each.file).name}"
        lines.append(
            f"    - {each.side} of `{each.prompt_id}`, {place}: {many(each.num_words, 'word')} in a row"
        )
    if len(overlaps) > SHOWN:
        lines.append(f"    - and {len(overlaps) - SHOWN:,} more, in `audit.json`")
    lines += [f"- {length_said(audit.reward.length)}", f"- {pairs_said(audit.reward)}"]
    lines += [f"- {second_said(audit.reward)}", "- Of the best plays, one of each prompt:"]
    lines += [
        f"    - {what}: {num:,} of {of:,} ({share(num, of)})"
        for what, num, of in best_said(audit.reward)
    ]
    return "\n".join(lines) + "\n"


def longest(overlaps: Sequence[Overlap]) -> list[Overlap]:
    """Those that are shown."""
    return sorted(overlaps, key=lambda overlap: -overlap.num_words)[:SHOWN]


def share(part: float, whole: float) -> str:
    """Percent; of nothing: a dash."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if 0 < percent < 10 or 99 < percent < 100 else f"{percent:.0f} %"


def _within(correlation: Correlation) -> str:
    if correlation.within_spearman is None:
        return ""
    return (
        f"; within a prompt on average by {_number(correlation.within_pearson)} and {_number(correlation.within_spearman)} "
        f"({many(correlation.num_prompts, 'prompt')})"
    )


def many(number: float, noun: str) -> str:
    """1 play, 2 plays."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value + 0.0:,.3g}".replace("-", "−")
