"""Two answers to a problem of mathematics.

Where an answer stands in a text, and whether two say the same.

By math-verify (Hugging Face's Math-Verify); what a person reads otherwise is `normalise`d before.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

TAIL = 10_000  # characters at the end: where an answer without a mark is looked for
LONGEST = 2000  # characters: what is longer is no answer

_BRACE = re.compile(
    r"\\(?:boxed|fbox)\b\s*(?:(\{)|([^\s{}$\\]+))|\\?[{}]"
)  # a box, or what it ends with
_MARK = re.compile(r"(?<!#)####(?!#)[ \t]*(.*)")
_HEADING = re.compile(r"\W*(?:step|part|case)\b|\d+[.):]\s+[a-z]", re.I)  # of a step, in Markdown

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ",
        "∞": r"\infty ", "≤": r"\le ",
        "≥": r"\ge ", "°": r"^\circ ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\emptyset ",
        "±": r"\pm ", "²": "^2", "³": "^3",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "\u00a0": " ",
        "\u2009": " ", "\u202f": " ",
        "€": "", "£": "", "¥": "", "₹": "",
    }
)  # fmt: skip
_POWERS = {"thousand": 3, "million": 6, "billion": 9}
_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [  # applied in this order
    (r"\\\\\s*\[[^\]]*\]", r"\\\\"),  # the distance between the rows of a matrix
    (r"\\?\$|(?<!\\)\\[()\[\]]", ""),  # dollars, and marks of formulas
    (r"^[*\s]+|[*\s]+$", ""),  # bold type in Markdown
    (r"\*\*", "^"),  # a power in Python
    (r"\\(?:mathrm|text)\s*\{\s*([ie])\s*\}", r"\1"),  # no units
    (r"\\(?:mbox|mathrm|textrm|textbf|textit|textnormal)\b", r"\\text"),
    (r"\\(?:left|right)\s*\.|\\(?:color|textcolor)\s*\{\w+\}", ""),  # an invisible bracket; colours
    (r"\\varnothing\b", r"\\emptyset"),
    (r"√\s*(\w+|\([^()]*\))", r"\\sqrt{\1}"),
    (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
    (
        r"(?<=\d)(?:\{,\}|,\\!|\\[,;: ]|~|\s)+(?=\d{3}(?!\d))",
        "",
    ),  # thousands: 1{,}000, 1\,000, 1 000
    (r"(?<!\\)\\(?: |$)|~", " "),  # spaces of LaTeX
    (r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}"),  # 1 1/2
    (
        r"(?<=\d)\s*(\\text\s*\{)?\s*(thousand|million|billion)\b",
        lambda found: rf"\times 10^{{{_POWERS[found[2].lower()]}}}{found[1] or ''}",
    ),
    (
        r"(\d{0,99})\.(\d{0,99})\\overline\s*\{?(\d{1,99})\}?",
        lambda found: _repeating(*found.groups()),
    ),
    (r"\s*\\text\s*\{\s*per\s?cent\s*\}|\s*\bper\s?cent\b", r"\\%"),
    (r"^\\text\s*\{[^{}]*(?:\bis|\bare|[:=])\s*\}", ""),  # words before it
    (r"^(?:it is|(?:the )?(?:final )?answer(?: is|:))\s", ""),
    (r"[\s.,;]+$|^\s+", ""),
]
_COMPILED = [(re.compile(pattern, re.I), by) for pattern, by in _RULES]


def final_answer(text: str) -> str | None:
    r"""What stands in the last \boxed{...} (or \fbox) that is closed and not empty.

    Else what follows the last ####.

    A box counts before ####, which begins a heading in Markdown too; such a heading is a line
    without a digit that has text below it. None where there is neither.
    """
    boxes: dict[int, str] = {}
    opened: list[int | None] = []  # braces; of a box, where its content begins
    for token in _BRACE.finditer(text):
        if token[2]:
            boxes[token.start()] = token[2]  # without braces
        elif token[1] or token[0] == "{":
            opened.append(token.end() if token[1] else None)
        elif token[0] == "}" and opened and (start := opened.pop()) is not None:
            boxes[start] = text[start : token.start()].strip()
    if boxes := {start: content for start, content in boxes.items() if content}:
        return boxes[max(boxes)]
    for mark in reversed(list(_MARK.finditer(text))):
        line = mark[1].strip(" *")
        is_last = not text[mark.end() :].strip()
        if line and not _HEADING.match(line) and (is_last or re.search(r"\d", line)):
            return line
    return None


def judge(answer: str, response: str) -> bool:
    """Whether the response's final answer is `answer`.

    Computes for as long as it takes, in a main thread or any other.
    """
    wanted = normalise(final_answer(answer) or answer)
    given = final_answer(response)
    if given is None:
        said = re.escape(_plain(_bare(wanted)))
        if _is_words(wanted) or _CHOICE.fullmatch(_bare(wanted)):
            return bool(re.search(rf"\banswer (?:is |was )?{said}\b", _plain(_bare(response))))
        return _math_verify(boxed(wanted), response[-TAIL:])
    found = normalise(given) if len(given) <= LONGEST else ""
    if not found or wanted == found:
        return bool(found)
    if choice := _CHOICE.fullmatch(_bare(wanted)):
        if chosen := _CHOSEN.match(_bare(found)):
            return choice[1].casefold() == (chosen[1] or chosen[2]).casefold()
    elif _is_words(wanted):  # to math-verify a word is a product of its letters: Amy = May
        return _plain(_bare(wanted)) == _plain(normalise(_bare(found)))
    if (based := _BASE.fullmatch(_bare(wanted))) and (other := _BASE.fullmatch(_bare(found))):
        return based[1] == other[1] and (
            based[2] == other[2] or not (based[2] + other[2]).isdigit()
        )
    (wanted, unit), (found, other_unit) = _split_unit(wanted), _split_unit(found)
    if unit and other_unit and unit != other_unit:
        return False
    if (
        _DECIMAL.fullmatch(wanted)
        and _DECIMAL.fullmatch(found)
        and Fraction(wanted) != Fraction(found)
    ):
        return False  # math-verify rounds to six places
    if _math_verify(boxed(wanted), boxed(found)):
        return True
    whole, other_whole = _PERCENT.sub("", wanted), _PERCENT.sub("", found)
    one_percent = (whole == wanted) != (
        other_whole == found
    )  # "what per cent": 12.5 and 12.5 % say the same
    return one_percent and _math_verify(boxed(whole), boxed(other_whole))


def normalise(answer: str) -> str:
    """As math-verify reads it: what it takes otherwise than a person is written differently."""
    answer = answer.translate(_SIGNS)
    for pattern, by in _COMPILED:
        answer = pattern.sub(by, answer)
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
_UNITS = {
    alias + plural: names.split()[0]
    for names in (
        *(
            "mm millimeter millimetre",
            "cm centimeter centimetre",
            "m meter metre",
            "km kilometer kilometre",
            "inch in",
        ),
        *(
            "foot feet ft",
            "yard yd",
            "mile mi",
            "g gram",
            "kg kilogram",
            "l liter litre",
            "ml milliliter millilitre",
        ),
        *(
            "s sec second",
            "min minute",
            "h hr hour",
            "day",
            "week",
            "month",
            "year",
            "cent",
            "dollar",
            "degree",
        ),
    )
    for alias in names.split()
    for plural in ("", "s", "es")
}


def _bare(answer: str) -> str:
    return _TEXT.sub(r"\1", answer).strip()


def _plain(text: str) -> str:
    """Its words and numbers alone, in small letters."""
    return re.sub(r"\W+", " ", text.casefold()).strip()


def _is_words(answer: str) -> bool:
    bare = _bare(answer)
    word = r"[^\W\d_]{3}" if bare != answer else r"[A-Z][a-z]{2}|[a-z]{4}"  # xyz may be a product
    return bool(re.fullmatch(r"[^\W\d_][^\d_\\^=+*/]*", bare) and re.search(word, bare))


def _split_unit(answer: str) -> tuple[str, str]:
    """Split an answer into the part before its unit and the unit, "" where it is not well known."""
    if not (found := _UNIT.search(answer)):
        return answer, ""
    words = [
        word for word in re.findall("[a-z]+", (found[1] or found[2] or "").lower()) if word != "per"
    ]
    exponent = found[3] or (_EXPONENTS.get(words[0]) if words else None)
    names = [_UNITS.get(word, "") for word in words if word not in _EXPONENTS]
    unit = "/".join(names) + f"^{exponent or 1}" if names and all(names) else ""
    apart = answer[found.start()].isspace() and all(
        word in _UNITS or len(word) > 2 for word in words
    )  # unlike 5x
    return answer[: found.start()] if unit or apart or found[1] is not None else answer, unit


def _repeating(whole: str, fixed: str, period: str) -> str:
    r"""0.1\overline{6} as a fraction."""
    value = Fraction(
        int(whole + fixed + period) - int(whole + fixed or 0),
        10 ** len(fixed) * (10 ** len(period) - 1),
    )
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def boxed(answer: str) -> str:
    """As a response ends with it."""
    return rf"\boxed{{{answer}}}"


def _math_verify(answer: str, response: str) -> bool:
    from math_verify import parse, verify

    gold, found = (parse(text, parsing_timeout=None) for text in (answer, response))
    return bool(verify(gold, found, timeout_seconds=None, allow_set_relation_comp=True))
