"""Final answers in words: choices, names, yes and no, and numbers with labels.

Each comparison returns None where it does not apply; `same` compares parts of the answers.
"""

import re

from toa_trl.rewards.notation import TEXT, Same, bare, inside, normalise, split, words
from toa_trl.rewards.units import split_unit

_CHOICE = re.compile(r"\(([A-Ja-j])\)|([A-J])")
_CHOSEN = re.compile(r"\(([A-Za-z])\)(?!\w)|([A-Za-z])(?:$|[.:)](?!\w))")
_OTHER_CHOICE = re.compile(r"(?:^|\b(?:or|and)\b|[,;/.])\s*\(?[A-J]\)?\s*(?:$|[.,;)])")
_REASON = re.compile(
    r"\s*[,;.:-]?\s*(?:\(|because\b|since\b|as\b|due to\b|for\b|given\b|so\b|when\b|where\b|which\b"
    r"|by\b|i\.e\.|in fact\b|it is\b|\\because|因为)"
)
_CONTRADICTION = re.compile(r"\b(?:yes|no|not|true|false|or|but|however|maybe|sometimes)\b|n't\b")
_SHORT_WORDS = {"yes", "no", "true", "false", "none", "even", "odd", "dne"}
_QUANTITY = r"-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\\frac\s*(?:\{\d+\}\{\d+\}|\d\d)|\\sqrt\{?\d+\}?)"
_LABEL = r"(?:[^\W\d_]{2,}|(?<=\s)[hms](?![^\W\d_]))(?:[\s'-]+[^\W\d_]+)*"
_LABEL_BEHIND = re.compile(rf"({_QUANTITY})\s*({_LABEL})")
_LABEL_BEFORE = re.compile(rf"([^\W\d_]+(?:[\s'-]+[^\W\d_]+)*)\s*(?:[:=]|\bis\b)\s*({_QUANTITY})")
_BETWEEN_LABELS = re.compile(r"(?:[\s,;.&]|\band\b)*")


_INFINITELY_MANY = re.compile(
    r"(?:there (?:are|exist|is) |it has |(?:it )?has )?"
    r"(?:infinitely many|infinite(?: number of)?|an infinite number of)\s*([a-z]*?)s?"
)


def infinities(correct: str, given: str, same: Same) -> bool | None:
    """Compare "infinitely many", "infinitely many solutions" and infinity."""
    nouns = []
    for answer in (correct, given):
        found = _INFINITELY_MANY.fullmatch(words(bare(answer)))
        if not found and answer.strip() != r"\infty":
            return None
        nouns.append(found[1] if found else "")
    return not all(nouns) or nouns[0] == nouns[1]


def choices(correct: str, given: str, same: Same) -> bool | None:
    """Compare the letters of choices; a value or a reason may follow."""
    choice = _CHOICE.fullmatch(bare(correct))
    if not choice:
        letters = [item.strip("()") for item in split(bare(correct))]
        if len(letters) > 1 and all(map(_CHOICE.fullmatch, letters)):
            together = re.fullmatch(r"[A-J]+", bare(given))  # ABC for A, B, C
            return sorted(letters) == sorted(together[0]) if together else None
        return None
    given = bare(re.sub(r"^(?:option|choice)\s+", "", bare(given), flags=re.I))
    chosen = _CHOSEN.match(given)
    letter = (choice[1] or choice[2]).casefold()
    if not chosen:
        reason, rest = re.match(rf"{letter}\b", given, re.I), given[1:]
        return True if reason and _REASON.match(rest) and not _OTHER_CHOICE.search(rest) else None
    if _OTHER_CHOICE.search(given[chosen.end() :]):
        return False
    return letter == (chosen[1] or chosen[2]).casefold()


def prose(correct: str, given: str, same: Same) -> bool | None:
    """Compare words without regard to letter case; a reason may follow."""
    if not is_prose(correct):  # as a formula, a word is a product of its letters: Amy = May
        return None
    one, other = _plain(bare(correct)), _plain(normalise(bare(given)))
    if one == other:
        return True
    parts = [split(bare(each)) for each in (correct, given)]
    if len(parts[0]) > 1 and len(parts[0]) == len(parts[1]):
        return sorted(map(words, parts[0])) == sorted(map(words, parts[1]))
    text = bare(given).casefold()
    start = re.match(re.escape(bare(correct).casefold()) + r"(?!\w)", text)
    if not start or len(parts[0]) > 1:
        return False
    rest = text[start.end() :]
    is_decision = words(bare(correct)) in {"yes", "no", "true", "false"}
    is_answer = is_decision and rest.lstrip().startswith((",", ".", ";", ":"))
    return bool((is_answer or _REASON.match(rest)) and not _CONTRADICTION.search(rest))


def _plain(text: str) -> str:
    return re.sub(r"^(?:an?|the) ", "", words(text)).removesuffix("s")


def labels(correct: str, given: str, same: Same) -> bool | None:
    """Compare numbers with labels as mappings: 3 red, 4 blue."""
    one, other = _labelled(correct), _labelled(given)
    if not one and not other:
        return None
    if one and other:
        if len(one) != len(other):
            return False
        rest = dict(other)
        for label, number in one.items():
            names = set(label.split())
            fitting = [each for each in rest
                       if names <= set(each.split()) or set(each.split()) <= names]  # fmt: skip
            if len(fitting) != 1 or not same(number, rest.pop(fitting[0])):
                return False
        return True
    labelled, unlabelled = (one, given) if one else (other, correct)
    if r"\begin" in unlabelled:
        return None
    inner = inside(unlabelled)
    numbers = split(inner[1] if inner else unlabelled)
    if len(numbers) != len(labelled):
        return False
    if inner and inner[0] == "(" and all(len(label) == 1 for label in labelled):
        labelled = dict(sorted(labelled.items()))  # a point has its coordinates in this order
    return all(same(a, b) for a, b in zip(labelled.values(), numbers, strict=True))


def _labelled(answer: str) -> dict[str, str]:
    text = TEXT.sub(r" \1 ", answer)
    for pattern, label, number in ((_LABEL_BEHIND, 2, 1), (_LABEL_BEFORE, 1, 2)):
        found = list(pattern.finditer(text))
        labels = {_singular(each[label]): each[number] for each in found}
        if len(found) == len(labels) > 1 and _BETWEEN_LABELS.fullmatch(pattern.sub("", text)):
            return labels
    return {}


def _singular(label: str) -> str:
    parts = [part for part in words(label).split() if part not in {"and", "the", "of"}]
    units = [split_unit(f"1 {part}")[1] for part in parts]
    return " ".join(unit or part.removesuffix("s") for unit, part in zip(units, parts, strict=True))


def dimensions(correct: str, given: str, same: Same) -> bool | None:
    """Compare 3 x 4 matrices, grids and rectangles: rows and columns have an order."""
    numbers = []
    for answer in (correct, given):
        found = re.fullmatch(r"((?:\d+\s*\\times\s*)+\d+)\s*(.*)", answer)
        if not found or found[2].startswith(("^", r"\times")):
            return None
        numbers.append((re.findall(r"\d+", found[1]), words(bare(found[2]))))
    if not numbers[0][1] and not numbers[1][1]:
        return None
    return numbers[0][0] == numbers[1][0]


def is_prose(answer: str) -> bool:
    """Return whether an answer consists of words, not of letters that stand for numbers."""
    text = bare(answer)
    if text.casefold() in _SHORT_WORDS:
        return True
    if not re.fullmatch(r"[^\W\d_][^\d_\\^=+*/<>]*", text):
        return False
    if re.search(r"(?![A-Za-z])[^\W\d_]", text):  # another script
        return True
    word = r"[^\W\d_]{2}" if text != answer else r"[A-Z][a-z]{2}|[a-z]{4}"  # xyz may be a product
    return bool(re.search(word, text))
