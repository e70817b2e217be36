"""Similarity to a reference: chrF and BLEU of one response, computed by sacrebleu."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.rewards.base import RewardModel, column_of
from toa_trl.types import Prompt

# sacrebleu's default tokenizer splits at spaces, which these languages do not write.
TOKENIZERS = {"chinese": "zh", "zh": "zh"} | dict.fromkeys(
    ("japanese", "ja", "thai", "th", "lao", "lo", "khmer", "km", "burmese", "my"), "char"
)


def bleu_tokenizer(language: object) -> str:
    """Return sacrebleu's tokenizer for an English language name or a code ("Chinese", "zh-TW")."""
    return TOKENIZERS.get(re.split(r"[^a-z]", str(language).strip().lower())[0], "13a")


class ChrfReward(RewardModel):
    """chrF2 (Popovic 2015, up to 6 characters) of a response against the references, 0 to 100.

    Args:
        column: column of the prompts file with a reference or a list of references.
    """

    graded = True

    def __init__(self, column: str = "reference") -> None:
        from sacrebleu.metrics import CHRF

        self._column, self._metric = column, CHRF()

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """See `RewardModel`."""
        return _scores(self._metric, "reward 'chrf'", prompt, self._column, responses)


class BleuReward(RewardModel):
    """BLEU of one response against the references, 0 to 100, as sacrebleu's sentence_bleu.

    With exponential smoothing and effective order; otherwise a short response without a common
    4-gram would be 0. The column target_language decides the tokenizer: see `bleu_tokenizer`.

    Args:
        column: column of the prompts file with a reference or a list of references.
    """

    graded = True

    def __init__(self, column: str = "reference") -> None:
        from sacrebleu.metrics import BLEU

        self._column = column
        self._metric = cache(lambda tokenize: BLEU(effective_order=True, tokenize=tokenize))

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
            f"{place}: the column {column!r} holds neither a text nor a list of texts "
            f"for {prompt.id!r}"
        )
    return [float(metric.sentence_score(response, references).score) for response in responses]
