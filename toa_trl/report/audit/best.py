"""Faults of the best play of a prompt: truncated, repeats a draft or the prompt, wrong language."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toa_trl.report.audit.text import grams, words_of
from toa_trl.report.rollout_tables import questions_of
from toa_trl.utils.language import asked_language, language_of

# near duplicates as in "Deduplicating Training Data Makes Language Models Better" (arXiv
# 2107.06499, appendix A): 0.8 of all 5 consecutive words in common
GRAM, ALIKE = 5, 0.8
# shorter questions are often repeated before they are answered
LONG_QUESTION = 13


@dataclass(frozen=True)
class BestPlays:
    """Faults of the plays with the highest reward, one of each prompt."""

    num_prompts: int  # with a best play
    num_truncated: int  # cut short by max_tokens
    num_with_draft: int  # drafts in their prompt
    num_repeat_draft: int  # of these: repeat a draft, exactly or nearly
    num_repeat_prompt: int  # repeat the prompt, exactly or nearly
    num_judged: int  # the languages asked for and answered in are both certain
    num_other_language: int  # of these: they differ
    languages: tuple[tuple[str, str, int], ...]  # (asked for, answered in, number), descending


@dataclass
class BestPlaysCounter:
    """Collects the best plays of a run."""

    counts: Counter[str] = field(default_factory=Counter)
    languages: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(
        self,
        response: str,
        drafts: Sequence[str],
        finish_reason: str | None,
        messages: Sequence[Mapping[str, str]],
        columns: Mapping[str, Any],
    ) -> None:
        """Add the best play of a prompt."""
        questions = questions_of(columns, messages[-1]["content"] if messages else "")
        own, signed = words_of(response), words_of(response, signs=True)
        asked = asked_language(messages, columns)
        answered = language_of(response) if asked else None
        self.counts.update(
            prompts=1,
            truncated=finish_reason == "length",
            with_draft=bool(drafts),
            repeat_draft=any(nearly_same(signed, words_of(draft, signs=True)) for draft in drafts),
            repeat_prompt=any(holds(own, words_of(question)) for question in questions),
            judged=answered is not None,
        )
        if asked is not None and answered is not None and asked != answered:
            self.languages[asked, answered] += 1

    def result(self) -> BestPlays:
        """Return the counts of all plays added so far."""
        pairs = sorted(self.languages.items(), key=lambda item: (-item[1], item[0]))
        return BestPlays(
            num_prompts=self.counts["prompts"],
            num_truncated=self.counts["truncated"],
            num_with_draft=self.counts["with_draft"],
            num_repeat_draft=self.counts["repeat_draft"],
            num_repeat_prompt=self.counts["repeat_prompt"],
            num_judged=self.counts["judged"],
            num_other_language=self.languages.total(),
            languages=tuple((*pair, num) for pair, num in pairs),
        )


def nearly_same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether two texts are equal, or share 0.8 of their 5 consecutive words."""
    if one == other:
        return True
    mine, theirs = grams(one, GRAM), grams(other, GRAM)
    shared = len(np.intersect1d(mine, theirs, assume_unique=True))
    return shared > 0 and shared >= ALIKE * (len(mine) + len(theirs) - shared)


def holds(response: Sequence[str], question: Sequence[str]) -> bool:
    """Return whether a response is the question, or has 0.8 of a long one's 5 consecutive words."""
    if response == question:
        return bool(question)
    if len(question) < LONG_QUESTION:
        return False
    asked = grams(question, GRAM)
    shared = np.intersect1d(asked, grams(response, GRAM), assume_unique=True)
    return len(shared) >= ALIKE * len(asked)
