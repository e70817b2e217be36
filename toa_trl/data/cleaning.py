"""What is left out before rows are made, and rows that are dropped afterwards, counted by reason.

Prompts and responses are judged once, in one pass over the run. A response that is left out is
treated as if it had never been sampled: it is neither chosen nor rejected, and ranks are those
among the others. Thresholds of rewards drop rows.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from toa_trl.data.duplicates import Duplicates
from toa_trl.data.plays import Row, text
from toa_trl.errors import ConfigError
from toa_trl.types import Prompt, Rollout, as_dicts
from toa_trl.utils.config import FiniteFloat, NonNegativeFloat, PositiveInt
from toa_trl.utils.language import NAMES, asked_language, language_of

Share = Annotated[float, Field(gt=0, lt=1)]
# how refusals of common models begin
UNABLE = r"(?:can't|cannot|can not|won't|will not|'m unable|am unable|'m not able|am not able)"
ACTION = r"(?:help|assist|provide|comply|fulfil|answer|create|generate|write|discuss|engage)"
REFUSAL = (
    rf"^\W*(?:(?:i'm|i am|we're|we are) (?:very |so |really )?(?:sorry|afraid)\W+(?:but |that )*"
    rf"(?:i|we) ?{UNABLE}\b"
    rf"|(?:sorry\W+(?:but )?|unfortunately\W+)?(?:i|we) ?(?:{UNABLE}(?: to)?|must decline to)"
    rf" {ACTION}(?! but)"
    r"|as an ai(?: language model| assistant| model)?,? i\b)"
)
REFUSAL_CHARACTERS = 300  # of the response's beginning
EMPTIED = "every response was left out"


class Cleaning:
    """Filters, all off by default.

    Args:
        exact_duplicates: leave out prompts that equal an earlier one, and responses of one prompt
            that equal a better one, apart from case and spaces.
        near_duplicates: leave out prompts and responses of one prompt that share this part of their
            three-word sequences with an earlier prompt or a better response, in (0, 1), such as
            0.8; estimated by MinHash. Exact duplicates are left out, too.
        min_prompt_characters: leave out shorter prompts.
        max_prompt_characters: leave out longer prompts, all messages counted.
        prompt_languages: codes such as [en, de]; leave out prompts whose last message is certainly
            in another language.
        min_characters: leave out shorter responses.
        max_characters: leave out longer responses.
        languages: leave out responses that are certainly in another language than these.
        same_language: leave out responses that are certainly in another language than asked for.
        refusals: leave out responses that begin as an English refusal does.
        refusal_patterns: further regular expressions of refusals, searched for in the first 300
            characters, without regard to case.
        min_reward: drop rows whose completion, chosen response, desirable response or best response
            has a lower raw reward.
        min_margin: drop pairs whose rewards, and groups whose best and worst reward, differ less.

    Raises:
        ConfigError: a language is unknown, or a pattern is not a regular expression.
    """

    def __init__(
        self,
        exact_duplicates: bool = False,
        near_duplicates: Share | None = None,
        min_prompt_characters: PositiveInt | None = None,
        max_prompt_characters: PositiveInt | None = None,
        prompt_languages: Sequence[str] = (),
        min_characters: PositiveInt | None = None,
        max_characters: PositiveInt | None = None,
        languages: Sequence[str] = (),
        same_language: bool = False,
        refusals: bool = False,
        refusal_patterns: Sequence[str] = (),
        min_reward: FiniteFloat | None = None,
        min_margin: NonNegativeFloat | None = None,
    ) -> None:
        for key, codes in (("prompt_languages", prompt_languages), ("languages", languages)):
            for code in codes:
                if code not in NAMES.values():
                    raise ConfigError(
                        f"clean.{key}: {code!r} is not the code of a known language, such as en"
                    )
        patterns = [*([REFUSAL] if refusals else []), *refusal_patterns]
        try:
            self._refusals = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
        except re.error as error:
            raise ConfigError(f"clean.refusal_patterns: {error.pattern!r}: {error}") from error
        self._exact, self._near = exact_duplicates, near_duplicates
        self._prompt_length = (min_prompt_characters, max_prompt_characters)
        self._length = (min_characters, max_characters)
        self._prompt_languages, self._languages = prompt_languages, languages
        self._same_language = same_language
        self._min_reward, self._min_margin = min_reward, min_margin

    def judge(self, rollouts: Iterable[Rollout]) -> "Cleaned":
        """Return the rollouts without what is left out, judged in one pass over them."""
        cleaned = Cleaned(rollouts)
        duplicates = Duplicates(self._exact, self._near)
        for rollout in rollouts:
            if not rollout.scored:
                continue
            fault = self._prompt_fault(rollout.prompt)
            faults: dict[int, str] = {}
            if fault is None:
                faults = self._response_faults(rollout, duplicates)
                if len(faults) == len(rollout.scored):
                    fault = EMPTIED
            if fault is None and duplicates.prompt(rollout.prompt):  # of a prompt that gives rows
                fault, faults = "duplicate of an earlier prompt", {}
            cleaned.leave_out(rollout.prompt.id, fault, faults)
        return cleaned

    def row_fault(self, row: Row) -> str | None:
        """Return why a row of any format is dropped, or None."""
        if "rewards" in row:
            best, worst = max(row["rewards"]), min(row["rewards"])
        else:
            best = row["chosen_reward"] if "chosen" in row else row["reward"]
            worst = row.get("rejected_reward")
        # an undesirable response may be as bad as it is
        if self._min_reward is not None and row.get("label", True) and best < self._min_reward:
            return f"reward below {self._min_reward:g}"
        if self._min_margin is not None and worst is not None and best - worst < self._min_margin:
            return f"difference of rewards below {self._min_margin:g}"
        return None

    def _prompt_fault(self, prompt: Prompt) -> str | None:
        length = sum(len(message.text) for message in prompt.messages)
        fault = _length_fault(length, self._prompt_length)
        return fault or _language_fault(prompt.messages[-1].content, self._prompt_languages)

    def _response_faults(self, rollout: Rollout, duplicates: Duplicates) -> dict[int, str]:
        """Return why plays are left out, by index."""
        asked = None
        if self._same_language:
            asked = asked_language(as_dicts(rollout.prompt.messages), rollout.prompt.metadata)
        faults, is_duplicate = {}, duplicates.of_responses()
        for play in rollout.ranked:  # the best of several duplicates is kept
            response = text(play)
            fault = self._response_fault(response, asked)
            if fault is None and is_duplicate(response):
                fault = "duplicate of a better response"
            if fault is not None:
                faults[play.index] = fault
        return faults

    def _response_fault(self, response: str, asked: str | None) -> str | None:
        fault = _length_fault(len(response), self._length)
        if fault is not None:
            return fault
        beginning = response[:REFUSAL_CHARACTERS].replace("’", "'")
        if any(pattern.search(beginning) for pattern in self._refusals):
            return "refusal"
        fault = _language_fault(response, self._languages)
        if fault is None and asked is not None and language_of(response) not in (None, asked):
            return "another language than asked for"
        return fault


class Cleaned:
    """The rollouts of a run, without what was left out."""

    def __init__(self, rollouts: Iterable[Rollout]) -> None:
        self._rollouts = rollouts
        self._left_out: dict[str, int] = {}  # prompt id -> plays as bits, -1: the whole prompt
        self.prompts = Counter[str]()  # left out, by reason
        self.responses = Counter[str]()  # left out of the prompts that were judged, by reason

    def leave_out(self, prompt_id: str, fault: str | None, faults: dict[int, str]) -> None:
        """Record why a prompt, or which of its plays are left out."""
        self.responses.update(faults.values())
        if fault is not None:
            self.prompts[fault] += 1
            self._left_out[prompt_id] = -1
        elif faults:
            self._left_out[prompt_id] = sum(1 << index for index in faults)

    def __iter__(self) -> Iterator[Rollout]:
        """Yield the rollouts of the prompts that are not left out, without the left out plays."""
        for rollout in self._rollouts:
            bits = self._left_out.get(rollout.prompt.id, 0)
            if bits == 0:
                yield rollout
            elif bits > 0:
                kept = tuple(play for play in rollout.plays if not bits >> play.index & 1)
                yield replace(rollout, plays=kept)


def _length_fault(length: int, limits: tuple[int | None, int | None]) -> str | None:
    shortest, longest = limits
    if shortest is not None and length < shortest:
        return f"shorter than {shortest} characters"
    if longest is not None and length > longest:
        return f"longer than {longest} characters"
    return None


def _language_fault(content: str, allowed: Collection[str]) -> str | None:
    if allowed and language_of(content) not in (None, *allowed):
        return f"another language than {', '.join(allowed)}"
    return None
