"""An audit in sentences, for the data set card and the report, with warnings.

Code stands between backticks, as in Markdown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toa_trl.report.audit.contamination import Contamination, Overlap
from toa_trl.report.audit.correlation import Correlation
from toa_trl.report.audit.reward import RewardAudit
from toa_trl.utils.escape import code, for_markdown, prose

if TYPE_CHECKING:
    from toa_trl.report.audit import Audit

# Cohen's medium effect (Statistical Power Analysis for the Behavioral Sciences, 1988)
LENGTH_CORRELATION = 0.3
# one row of the training data in twenty; the checks themselves are wrong far less often
FAULTY_SHARE = 0.05
# with fewer prompts the normal interval is too narrow
MIN_GAINED = 20
SHOWN = 20  # overlaps in the card and in the report; audit.json has all of them


def warnings(audit: Audit) -> Iterator[str]:
    """Yield what users of the data should know first, one sentence each."""
    contamination, best = audit.contamination, audit.reward.best
    if contamination is not None and contamination.num_kept:
        yield (
            f"{many(contamination.num_kept, 'prompt')} of the training data overlap with an "
            "evaluation set, so the scores of a student trained on them will be too high. "
            "`toa-trl data RUN --decontaminate FILE ...` removes them."
        )
    length = audit.reward.length.beyond_chance
    if abs(length) >= LENGTH_CORRELATION:
        yield (
            f"Within prompts the reward increases with {'longer' if length > 0 else 'shorter'} "
            f"responses (Spearman {_number(length)}): the search may have selected by length."
        )
    second = audit.reward.second
    gain = second.gain_interval if second and second.num_gained >= MIN_GAINED else None
    if gain and gain[0] <= 0:
        yield (
            "By the second reward the selected responses are not measurably better than random "
            "plays: the gain is visible only to the reward model that was optimized."
        )
    faults = (
        (
            best.num_truncated,
            best.num_prompts,
            "were cut short by max_tokens, which the reward does not penalize",
        ),
        (
            best.num_repeat_draft,
            best.num_with_draft,
            "that saw drafts repeat one of them, exactly or nearly",
        ),
        (best.num_repeat_prompt, best.num_prompts, "repeat their prompt"),
        (best.num_other_language, best.num_judged, "are in another language than asked for"),
    )
    for num, total, fault in faults:
        if num > FAULTY_SHARE * total:
            yield f"{share(num, total)} of the best plays {fault}."


def describe_overlaps(contamination: Contamination | None) -> str:
    """Describe the overlap with evaluation sets."""
    if contamination is None:
        return (
            "Overlap with evaluation sets was not checked. `toa-trl audit RUN --against FILE ...` "
            "checks it against the files (JSONL, JSON or parquet) that a student will be "
            "evaluated on."
        )
    sets = []
    for file in contamination.sets:
        sets.append(f"{Path(file.file).name} ({many(file.num_problems, 'problem')})")
    text = (
        f"{many(contamination.num_prompts, 'prompt')} and "
        f"{many(contamination.num_responses, 'chosen response')} were compared with "
        f"{'; '.join(sets)}: an overlap is 13 consecutive words, in lower case and without "
        "punctuation, or the whole of a shorter problem."
    )
    if not contamination.overlaps:
        return text + " There is none."
    pairs = {(overlap.side, overlap.prompt_id) for overlap in contamination.overlaps}
    num_by_side = Counter(side for side, _ in pairs)
    prompts, responses = num_by_side["prompt"], num_by_side["response"]
    text += (
        f" {many(prompts, 'prompt')} and the chosen responses to {many(responses, 'prompt')} "
        "overlap"
    )
    kept = contamination.num_kept
    if not kept:
        return text + "; the training data has no row of them (`rollouts` contains their plays)."
    return text + f"; {many(kept, 'overlapping prompt')} remain in the training data."


def describe_length(length: Correlation) -> str:
    """Describe how the reward correlates with the length."""
    if length.pearson is None:
        return (
            "The reward or the length is the same for all plays, so their correlation is undefined."
        )
    return (
        f"Over {many(length.num_plays, 'scored play')}, the correlation of reward and length in "
        f"characters is {_number(length.pearson)} (Pearson) and {_number(length.spearman)} "
        f"(Spearman){_within(length)}."
    )


def faults_of_best_plays(reward: RewardAudit) -> Iterator[tuple[str, int, int]]:
    """Yield (fault, number of best plays with it, number that were checked)."""
    best = reward.best
    yield "cut short by max_tokens", best.num_truncated, best.num_prompts
    yield "nearly the same as a draft it saw", best.num_repeat_draft, best.num_with_draft
    yield "nearly the same as the prompt", best.num_repeat_prompt, best.num_prompts
    yield (
        "in another language than asked for, if both are certain",
        best.num_other_language,
        best.num_judged,
    )


def describe_pairs(reward: RewardAudit) -> str:
    """Describe the lengths of chosen and rejected responses."""
    pairs = reward.pairs
    if pairs is None:
        return "There are no preference pairs, so there are no lengths to compare."
    return (
        f"Of {many(pairs.num_pairs, 'preference pair')} the chosen response is longer in "
        f"{share(pairs.num_longer, pairs.num_pairs)} and shorter in "
        f"{share(pairs.num_shorter, pairs.num_pairs)}; the mean length is "
        f"{pairs.mean_chosen:,.0f} characters against {pairs.mean_rejected:,.0f}."
    )


def describe_second_reward(reward: RewardAudit) -> str:
    """Describe whether a second reward model agrees."""
    second, num, total = reward.second, reward.num_with_second, reward.num_scored
    if not num:
        return (
            "No second reward was recorded, so it is unknown whether another reward model sees "
            "the gain of the search. `reward: {kind: held_out, reward: {...}, second: {...}}` "
            "records one, which never influences the search; if the run has one, it failed on "
            "every play."
        )
    missing = ""
    if num < total:
        missing = (
            f" {total - num:,} of {many(total, 'scored play')} have no second reward, because it "
            "failed."
        )
    if second is None:
        return (
            "The second reward failed on every selected response, so it is unknown whether it "
            f"sees the gain of the search.{missing}"
        )
    prompts = many(reward.best.num_prompts, "prompt")
    if second.num_prompts < reward.best.num_prompts:
        prompts = f"{second.num_prompts:,} of {prompts}"
    text = (
        f"A second reward model, which the search never saw, gives the selected responses of "
        f"{prompts} a mean of {_number(second.picks)}, random plays {_number(second.random)}, all "
        f"plays {_number(second.all_plays)}, and the plays that it ranks best "
        f"{_number(second.best)}"
    )
    if second.gain_interval is not None:
        low, high = (_number(bound) for bound in second.gain_interval)
        text += f"; selected against random plays: {low} to {high} (95 % interval)"
    text += (
        ". The selected response is also its best for "
        f"{100 * second.agreement:.0f} % of the prompts (a random play: "
        f"{100 * second.agreement_by_chance:.0f} %)"
    )
    both = second.correlation
    if both.spearman is not None:
        text += (
            f"; the correlation of both rewards is {_number(both.spearman)} (Spearman)"
            f"{_within(both)}"
        )
    return f"{text}.{missing}"


def card_section(audit: Audit) -> str:
    """Return the section "Audit" of the data set card, in Markdown, with its heading."""
    lines = ["## Audit", ""]
    lines += [f"**{prose(warning)}**\n" for warning in warnings(audit)]
    lines += [f"- {prose(describe_overlaps(audit.contamination))}"]
    overlaps = () if audit.contamination is None else audit.contamination.overlaps
    # without the texts: a published card must not spread the problems
    for overlap in longest(overlaps):
        lines.append(
            f"    - {for_markdown(overlap.side)} of {code(overlap.prompt_id)}, problem "
            f"{code(overlap.problem_id)} of {for_markdown(Path(overlap.file).name)}: "
            f"{many(overlap.num_words, 'consecutive word')}"
        )
    if len(overlaps) > SHOWN:
        lines.append(f"    - and {len(overlaps) - SHOWN:,} more, in `audit.json`")
    lines += [f"- {describe_length(audit.reward.length)}", f"- {describe_pairs(audit.reward)}"]
    lines += [
        f"- {prose(describe_second_reward(audit.reward))}",
        "- Of the best plays, one of each prompt:",
    ]
    for fault, num, total in faults_of_best_plays(audit.reward):
        lines.append(f"    - {fault}: {num:,} of {total:,} ({share(num, total)})")
    return "\n".join(lines) + "\n"


def longest(overlaps: Sequence[Overlap]) -> list[Overlap]:
    """Return the overlaps that are shown, the longest first."""
    return sorted(overlaps, key=lambda overlap: -overlap.num_words)[:SHOWN]


def share(part: float, whole: float) -> str:
    """Return a percentage; a dash if the whole is zero."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if 0 < percent < 10 or 99 < percent < 100 else f"{percent:.0f} %"


def many(number: float, noun: str) -> str:
    """Return a number with its noun: 1 play, 2 plays."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def _within(correlation: Correlation) -> str:
    if correlation.within_spearman is None:
        return ""
    return (
        f"; within prompts the mean is {_number(correlation.within_pearson)} and "
        f"{_number(correlation.within_spearman)} ({many(correlation.num_prompts, 'prompt')})"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value + 0.0:,.3g}".replace("-", "−")
