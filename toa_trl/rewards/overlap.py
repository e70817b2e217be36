"""How near is it to a reference? chrF and BLEU of one response, by sacrebleu."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.rewards.base import RewardModel, column_of
from toa_trl.types import Prompt

# sacrebleu's own tokenizer parts words at spaces, which these languages do not write
TOKENIZERS = {"chinese": "zh", "zh": "zh"} | dict.fromkeys(
    ("japanese", "ja", "thai", "th", "lao", "lo", "khmer", "km", "burmese", "my"), "char"
)


def bleu_tokenizer(language: object) -> str:
    """sacrebleu's name of the tokenizer for a language, given by its English name or its code ("Chinese", "zh-TW")."""
    return TOKENIZERS.get(re.split(r"[^a-z]", str(language).strip().lower())[0], "13a")


class ChrfReward(RewardModel):
    """chrF (Popovic 2015) of a response against the references, 0 to 100, with sacrebleu's settings: chrF2, 6 characters.

    Args:
        column: of the prompts file, which holds a reference, or a list of them.
    """

    graded = True  # not right or wrong

    def __init__(self, column: str = "reference") -> None:
        from sacrebleu.metrics import CHRF

        self._column, self._metric = column, CHRF()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        return _scores(self._metric, "reward 'chrf'", prompt, self._column, responses)


class BleuReward(RewardModel):
    """BLEU of one response against the references, 0 to 100, as sacrebleu's sentence_bleu.

    Exponential smoothing and the effective order, without which a short response that shares no 4-gram would be 0. The
    column target_language decides the tokenizer: see `bleu_tokenizer`.

    Args:
        column: of the prompts file, which holds a reference, or a list of them.
    """

    graded = True

    def __init__(self, column: str = "reference") -> None:
        from sacrebleu.metrics import BLEU

        self._column, self._metric = (
            column,
            cache(lambda tokenize: BLEU(effective_order=True, tokenize=tokenize)),
        )

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        metric = self._metric(bleu_tokenizer(prompt.metadata.get("target_language", "")))
        return _scores(metric, "reward 'bleu'", prompt, self._column, responses)


def _scores(
    metric: Any, place: str, prompt: Prompt, column: str, responses: Sequence[str]
) -> list[float]:
    references = column_of(place, prompt, column)
    references = [references] if isinstance(references, str) else references
    if not isinstance(references, list | tuple) or not all(
        isinstance(text, str) for text in references
    ):
        raise RewardError(
            f"{place}: the column {column!r} holds neither a text nor a list of texts for {prompt.id!r}"
        )
    return [float(metric.sentence_score(response, references).score) for response in responses]
