"""The language of a text, and the language that an answer was asked for in, if certain.

Detected by py3langid (a naive Bayes classifier over byte n-grams, 142 labels); short or ambiguous
texts are not judged. Of 30,000 real texts that it was certain about, WMT'22 in six languages and
AlpacaEval, four were wrong: English sentences full of Icelandic names, and a poem in Old English
(tests/utils/test_language.py measures this again).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

CONFIDENCE = 0.9  # normalised probability
SHORTEST = 40  # bytes of UTF-8: about 40 Latin letters, 20 Cyrillic ones or 13 Chinese characters
LONGEST = 2_000  # characters that are used
SHARE = 0.05  # of the texts; rarer languages are not listed
# code, formulas and addresses have no language
NO_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|https?://\S+", re.DOTALL)
# languages that short texts cannot distinguish are merged
SAME = {"wuu": "zh", "yue": "zh", "nn": "no", "nb": "no", "bs": "hr", "sr": "hr", "ms": "id"}
SAME |= {"ary": "ar", "arz": "ar"}
LANGUAGES = """
af afrikaans, am amharic, ar arabic, az azerbaijani, be belarusian, bg bulgarian, bn bengali,
bs bosnian, ca catalan, cs czech, cy welsh, da danish, de german, el greek, en english,
eo esperanto, es spanish, et estonian, eu basque, fa persian, fa farsi, fi finnish, fr french,
ga irish, gl galician, gu gujarati, ha hausa, he hebrew, hi hindi, hr croatian, hu hungarian,
hy armenian, id indonesian, ig igbo, is icelandic, it italian, ja japanese, jv javanese,
ka georgian, kk kazakh, km khmer, kn kannada, ko korean, ku kurdish, la latin, lt lithuanian,
lv latvian, mk macedonian, ml malayalam, mn mongolian, mr marathi, ms malay, my burmese, ne nepali,
nl dutch, no norwegian, pa punjabi, pl polish, ps pashto, pt portuguese, ro romanian, ru russian,
sa sanskrit, si sinhala, sk slovak, sl slovenian, so somali, sq albanian, sr serbian, sv swedish,
sw swahili, ta tamil, te telugu, th thai, tl tagalog, tr turkish, uk ukrainian, ur urdu, uz uzbek,
vi vietnamese, xh xhosa, yo yoruba, yue cantonese, zh chinese, zh mandarin, zu zulu
"""
NAMES = {name: code for code, name in map(str.split, LANGUAGES.split(","))}
# a prompt with one of these may ask for an answer in another language than its own
TRANSLATE = re.compile(
    rf"translat|übersetz|tradu[cirz]|перев[ео]д|翻[译譯訳]|\b(?:{'|'.join(NAMES)})\b", re.IGNORECASE
)


def language_of(text: str) -> str | None:
    """Return the code of a text's language (ISO 639-1 if it has one); None if uncertain."""
    prose = NO_PROSE.sub(" ", text[: 2 * LONGEST]).strip()[:LONGEST]
    if len(prose.encode(errors="replace")) < SHORTEST:
        return None
    shares: dict[str, float] = {}
    for label, probability in _identifier().rank(prose):
        code = SAME.get(label, label)
        shares[code] = shares.get(code, 0.0) + probability
    best = max(shares, key=lambda code: shares[code])
    return best if shares[best] >= CONFIDENCE else None


def asked_language(messages: Sequence[Mapping[str, str]], columns: Mapping[str, Any]) -> str | None:
    """Return the language that an answer was asked for in; None if uncertain.

    Args:
        messages: the prompt.
        columns: further columns of the prompt; target_language is a code or an English name.
    """
    target = columns.get("target_language")
    if isinstance(target, str):
        name = target.split()[-1].lower() if target.split() else ""  # "Brazilian Portuguese"
        code = NAMES.get(name, re.split("[-_]", name)[0])
        return SAME.get(code, code) if code in NAMES.values() else None
    last = messages[-1]["content"] if messages else ""
    return None if TRANSLATE.search(last) else language_of(last)


def main_languages(texts: Iterable[str]) -> list[str]:
    """Return the codes of the languages of texts, the most frequent first, if certain."""
    counts = Counter(map(language_of, texts))
    del counts[None]
    return [str(code) for code, count in counts.most_common() if count >= SHARE * counts.total()]


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
