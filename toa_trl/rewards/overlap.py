"""Similarity to a reference: chrF and BLEU of one response, computed by sacrebleu."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from toa_trl.errors import RewardError
from toa_trl.rewards.base import RewardModel, column_of
from toa_trl.types import Prompt

# Languages without spaces between words, by the tokenizer of sacrebleu that they need: its default
# splits at spaces.
CODES = {  # ISO 639-1, 639-2 and 639-3
    "zh": "zh zho chi cmn yue wuu nan hak gan hsn lzh cdo cjy",
    "char": "ja jpn th tha lo lao km khm my mya bur shn bo bod tib dz dzo",
}
NAMES = {
    "zh": "chinese mandarin cantonese hokkien hakka",
    "char": "japanese thai siamese lao laotian khmer cambodian burmese myanmar shan tibetan "
    "dzongkha 日本語",
}
SCRIPTS = {"zh": "hans hant hani", "char": "jpan hira kana hrkt thai laoo khmr mymr tibt"}
"""Scripts of ISO 15924, as in "zho_Hans"."""
CODE = re.compile(r"([a-z]{2,3})(?:[-_]([a-z]{4}))?(?:[-_][a-z0-9]+)*")
HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# kana, Thai, Lao, Tibetan, Burmese, Khmer
OTHERS = re.compile("[\u3040-\u30ff\u0e00-\u109f\u1780-\u17ff\uaa60-\uaa7f]")


def bleu_tokenizer(language: object, references: Iterable[str] = ()) -> str:
    """Return sacrebleu's tokenizer for a language.

    Args:
        language: an English name or a code, such as "Simplified Chinese", "zh-TW" or "zho_Hans".
        references: texts in this language, whose script decides for an unknown language.
    """
    name = language.strip().lower() if isinstance(language, str) else ""
    code = CODE.fullmatch(name)
    if code and code[2]:
        return _find([code[2]], SCRIPTS) or "13a"
    found = _find([code[1]], CODES) if code else _find(re.findall(r"[^\W\d_]+", name), NAMES)
    if found:
        return found
    text = "".join(references) or name
    num_han, num_others = len(HAN.findall(text)), len(OTHERS.findall(text))
    if 2 * (num_han + num_others) <= sum(map(str.isalpha, text)):
        return "13a"
    return "char" if num_others else "zh"


def _find(words: Sequence[str], known: Mapping[str, str]) -> str | None:
    """Return the tokenizer for the first word that is known."""
    tokenizers = dict[str, str]()
    for tokenizer, names in known.items():
        tokenizers |= dict.fromkeys(names.split(), tokenizer)
    return next((tokenizers[word] for word in words if word in tokenizers), None)


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
        references = _references("reward 'chrf'", prompt, self._column)
        return _scores(self._metric, references, responses)


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
        references = _references("reward 'bleu'", prompt, self._column)
        language = prompt.metadata.get("target_language", "")
        metric = self._metric(bleu_tokenizer(language, references))
        return _scores(metric, references, responses)


def _references(place: str, prompt: Prompt, column: str) -> Sequence[str]:
    references = column_of(place, prompt, column)
    references = [references] if isinstance(references, str) else references
    if not isinstance(references, list | tuple) or not all(
        isinstance(text, str) for text in references
    ):
        raise RewardError(
            f"{place}: the column {column!r} holds neither a text nor a list of texts "
            f"for {prompt.id!r}"
        )
    return references


def _scores(metric: Any, references: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(metric.sentence_score(response, references).score) for response in responses]
