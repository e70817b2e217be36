"""Final answers to mathematical problems: find one in a text, and compare two.

math-verify (Hugging Face's Math-Verify) compares them. Notation that it reads differently from a
person is rewritten by `normalise` first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

TAIL = 10_000  # characters at the end of a text that are searched for an unmarked answer
LONGEST = 2000  # characters; a longer text is not an answer

# the start of a box, or a brace
_BRACE = re.compile(r"\\(?:boxed|fbox)\b\s*(?:(\{)|([^\s{}$\\]+))|\\?[{}]")
_MARK = re.compile(r"(?<!#)####(?!#)[ \t]*(.*)")
# a Markdown heading of one step of a solution
_HEADING = re.compile(r"\W*(?:step|part|case)\b|\d+[.):]\s+[a-z]", re.I)

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ",
        "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "°": r"^\circ ", "∪": r"\cup ", "∈": r"\in ",
        "∅": r"\emptyset ", "±": r"\pm ", "²": "^2", "³": "^3",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "€": "", "£": "", "¥": "", "₹": "",
    }
)  # fmt: skip
_POWERS = {"thousand": 3, "million": 6, "billion": 9}
_RULES: list[
    tuple[str, str | Callable[[re.Match[str]], str]]
] = [  # in the order of their application
    (r"\\\\\s*\[[^\]]*\]", r"\\\\"),  # the distance between two rows of a matrix
    (r"\\?\$|(?<!\\)\\[()\[\]]", ""),  # dollar signs, and delimiters of formulas
    (r"^[*\s]+|[*\s]+$", ""),  # bold text in Markdown
    (r"\*\*", "^"),  # a power, as written in Python
    (r"\\(?:mathrm|text)\s*\{\s*([ie])\s*\}", r"\1"),  # e and i are not units
    (r"\\(?:mbox|mathrm|textrm|textbf|textit|textnormal)\b", r"\\text"),
    (r"\\(?:left|right)\s*\.|\\(?:color|textcolor)\s*\{\w+\}", ""),  # invisible brackets; colours
    (r"\\varnothing\b", r"\\emptyset"),
    (r"√\s*(\w+|\([^()]*\))", r"\\sqrt{\1}"),
    (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
    # thousands: 1{,}000, 1\,000, 1 000
    (r"(?<=\d)(?:\{,\}|,\\!|\\[,;: ]|~|\s)+(?=\d{3}(?!\d))", ""),
    (r"(?<!\\)\\(?: |$)|~", " "),  # spaces in LaTeX
    (r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}"),  # 1 1/2
    (
        r"(?<=\d)\s*(\\text\s*\{)?\s*(thousand|million|billion)\b",
        lambda match: rf"\times 10^{{{_POWERS[match[2].lower()]}}}{match[1] or ''}",
    ),
    (
        r"(\d{0,99})\.(\d{0,99})\\overline\s*\{?(\d{1,99})\}?",
        lambda match: _repeating(*match.groups()),
    ),
    (r"\s*\\text\s*\{\s*per\s?cent\s*\}|\s*\bper\s?cent\b", r"\\%"),
    (r"^\\text\s*\{[^{}]*(?:\bis|\bare|[:=])\s*\}", ""),  # text before the answer
    (r"^(?:it is|(?:the )?(?:final )?answer(?: is|:))\s", ""),
    (r"[\s.,;]+$|^\s+", ""),
]
_COMPILED = [(re.compile(pattern, re.I), by) for pattern, by in _RULES]


def final_answer(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} (or \fbox), else the text after the last ####.

    Boxes that are not closed or empty are ignored. A box has priority over ####, which is also a
    Markdown heading; a line after #### without a digit and with text below it is such a heading.
    Return None if there is neither.
    """
    boxes: dict[int, str] = {}  # start of the content -> content
    opened: list[int | None] = []  # open braces; for a box, where its content starts
    for token in _BRACE.finditer(text):
        if token[2]:
            boxes[token.start()] = token[2]  # without braces
        elif token[1] or token[0] == "{":
            opened.append(token.end() if token[1] else None)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start is not None:
                boxes[start] = text[start : token.start()].strip()
    filled = [start for start, content in boxes.items() if content]
    if filled:
        return boxes[max(filled)]
    for mark in reversed(list(_MARK.finditer(text))):
        line = mark[1].strip(" *")
        ends_text = not text[mark.end() :].strip()
        if line and not _HEADING.match(line) and (ends_text or re.search(r"\d", line)):
            return line
    return None


def judge(answer: str, response: str) -> bool:
    """Return whether the response's final answer equals `answer`, without a time limit.

    Args:
        answer: the correct answer, or a solution with a marked final answer.
        response: a model's response.
    """
    correct = normalise(final_answer(answer) or answer)
    marked = final_answer(response)
    if marked is None:
        return _judge_unmarked(correct, response)
    given = normalise(marked) if len(marked) <= LONGEST else ""
    if not given or correct == given:
        return bool(given)
    choice = _CHOICE.fullmatch(_bare(correct))
    if choice:
        chosen = _CHOSEN.match(_bare(given))
        if chosen:
            return choice[1].casefold() == (chosen[1] or chosen[2]).casefold()
    elif _is_prose(correct):  # math-verify reads a word as a product of its letters: Amy = May
        return _plain(_bare(correct)) == _plain(normalise(_bare(given)))
    number, other_number = _BASE.fullmatch(_bare(correct)), _BASE.fullmatch(_bare(given))
    if number and other_number:
        is_numeric = (number[2] + other_number[2]).isdigit()
        return number[1] == other_number[1] and (number[2] == other_number[2] or not is_numeric)
    return _equal_quantities(*_split_unit(correct), *_split_unit(given))


def _judge_unmarked(correct: str, response: str) -> bool:
    bare = _bare(correct)
    if _is_prose(correct) or _CHOICE.fullmatch(bare):
        pattern = rf"\banswer (?:is |was )?{re.escape(_plain(bare))}\b"
        return bool(re.search(pattern, _plain(_bare(response))))
    return _math_verify(boxed(correct), response[-TAIL:])


def _equal_quantities(correct: str, unit: str, given: str, other_unit: str) -> bool:
    if unit and other_unit and unit != other_unit:
        return False
    both_decimal = _DECIMAL.fullmatch(correct) and _DECIMAL.fullmatch(given)
    if both_decimal and Fraction(correct) != Fraction(given):
        return False  # math-verify rounds to six places
    if _math_verify(boxed(correct), boxed(given)):
        return True
    # "what per cent": 12.5 and 12.5 % are equal
    without_percent, given_without = _PERCENT.sub("", correct), _PERCENT.sub("", given)
    one_has_percent = (without_percent == correct) != (given_without == given)
    return one_has_percent and _math_verify(boxed(without_percent), boxed(given_without))


def normalise(answer: str) -> str:
    """Rewrite notation that math-verify reads differently from a person."""
    answer = answer.translate(_SIGNS)
    for pattern, replacement in _COMPILED:
        answer = pattern.sub(replacement, answer)
    return answer


_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?([A-Z])\)?")
_CHOSEN = re.compile(r"\(([A-Za-z])\)(?!\w)|([A-Za-z])(?:$|[.:)](?!\w))")
_BASE = re.compile(r"(\d+)_\{?(\w+)\}?")
_DECIMAL = re.compile(r"-?(?:\d{1,99}\.?\d{0,99}|\.\d{1,99})")
_PERCENT = re.compile(r"\s*\\?%$")
_UNIT = re.compile(
    r"(?<=[\d})\]])(?:\s*\\text\s*\{([^{}]*)\}|\s*([A-Za-z][A-Za-z ./]*))(?:\s*\^\s*\{?(\d)\}?)?$"
)
_EXPONENTS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
_UNIT_NAMES = (  # each name, then its other spellings
    "mm millimeter millimetre; cm centimeter centimetre; m meter metre; km kilometer kilometre;"
    "inch in; foot feet ft; yard yd; mile mi; g gram; kg kilogram; l liter litre;"
    "ml milliliter millilitre; s sec second; min minute; h hr hour; day; week; month; year;"
    "cent; dollar; degree"
)
_UNITS: dict[str, str] = {}  # spelling, singular or plural -> name
for _names in _UNIT_NAMES.split(";"):
    for _spelling in _names.split():
        for _plural in ("", "s", "es"):
            _UNITS[_spelling + _plural] = _names.split()[0]


def _bare(answer: str) -> str:
    return _TEXT.sub(r"\1", answer).strip()


def _plain(text: str) -> str:
    """Return only the words and numbers, in lower case."""
    return re.sub(r"\W+", " ", text.casefold()).strip()


def _is_prose(answer: str) -> bool:
    bare = _bare(answer)
    word = r"[^\W\d_]{3}" if bare != answer else r"[A-Z][a-z]{2}|[a-z]{4}"  # xyz may be a product
    return bool(re.fullmatch(r"[^\W\d_][^\d_\\^=+*/]*", bare) and re.search(word, bare))


def _split_unit(answer: str) -> tuple[str, str]:
    """Return the answer without its unit, and the unit (such as cm^2 or m/s) or "" if unknown."""
    match = _UNIT.search(answer)
    if not match:
        return answer, ""
    text = (match[1] or match[2] or "").lower()
    parts = [part for part in re.findall("[a-z]+", text) if part != "per"]
    exponent = match[3] or (_EXPONENTS.get(parts[0]) if parts else None)
    names = [_UNITS.get(part, "") for part in parts if part not in _EXPONENTS]
    unit = "/".join(names) + f"^{exponent or 1}" if names and all(names) else ""
    # unlike 5x
    is_separate = answer[match.start()].isspace() and all(
        part in _UNITS or len(part) > 2 for part in parts
    )
    is_unit = unit or is_separate or match[1] is not None
    return answer[: match.start()] if is_unit else answer, unit


def _repeating(whole: str, fixed: str, period: str) -> str:
    r"""Return a repeating decimal, such as 0.1\overline{6}, as a fraction."""
    numerator = int(whole + fixed + period) - int(whole + fixed or 0)
    denominator = 10 ** len(fixed) * (10 ** len(period) - 1)
    value = Fraction(numerator, denominator)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def boxed(answer: str) -> str:
    r"""Return \boxed{answer}, as a response ends."""
    return rf"\boxed{{{answer}}}"


def _math_verify(answer: str, response: str) -> bool:
    from math_verify import parse, verify

    correct, given = (parse(text, parsing_timeout=None) for text in (answer, response))
    return bool(verify(correct, given, timeout_seconds=None, allow_set_relation_comp=True))
