"""Notation of final answers: one spelling for what a person reads as the same."""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

_SIGNS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "×": r"\times ", "✕": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "∕": "/", "∞": r"\infty ", "≤": r"\le ",
    "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≦": r"\le ", "≧": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "≡": r"\equiv ", "°": r"^\circ ", "º": r"^\circ ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅": r"\emptyset ", "±": r"\pm ",
    "∓": r"\mp ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ",
    "∣": "|", "⟨": r"\langle ", "⟩": r"\rangle ", "…": r"\ldots ", "⋯": r"\ldots ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}", "。": ".", "、": ",", "«": "", "»": "", "“": "", "”": "",
}  # fmt: skip
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_LABELS = "⓪①-⑳㉑-㉟㊱-㊿⓫-⓴⓵-⓾❶-❿➀-➓⑴-⒇⒈-⒛"  # digits that name a statement or an option
_BETWEEN_LABELS = re.compile(rf"(?<=[\d{_LABELS}])(?=[{_LABELS}])|(?<=[{_LABELS}])(?=\d)")
_NUMBER = r"[-+]?\d+(?:\.\d*)?"
_SPACED = re.compile(rf"(?<!\\)\[\s*({_NUMBER}(?:(?:\s+|\s*;\s*){_NUMBER})+)\s*(?<!\\)\]")
_SPACE = re.compile(r"(?<=[\d.])\s+(?=[-+\d])")
_CALL = re.compile(r"(?<![\\A-Za-z])(abs|floor|ceil)\s*(?=\()")
_CALLS = {"abs": "|{}|", "floor": r"\lfloor {} \rfloor", "ceil": r"\lceil {} \rceil"}
_POWERS = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "百": 2, "千": 3, "万": 4, "萬": 4,
    "亿": 8, "億": 8, "만": 4, "억": 8, "тысяч": 3, "миллион": 6, "миллиард": 9,
}  # fmt: skip
_FUNCTIONS = (
    r"(?:sin|cos|tan|cot|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|sqrt)(?![A-Za-z])"
    r"|(?:sec|gcd|lcm|max|min)(?=\()"  # sec and min are units, too
)
_Replacement = str | Callable[[re.Match[str]], str]
_RULES: list[tuple[str, _Replacement]] = [  # in the order of their application
    (r"\\\\\s*\[[^\]]*\]", r"\\\\"),  # the distance between two rows of a matrix
    (r"\\?\$|(?<!\\)\\[()\[\]]", ""),  # dollar signs, and delimiters of formulas
    (r"^[*\s]+|[*\s]+$", ""),  # bold text in Markdown
    (r"\*\*", "^"),  # a power, as written in Python
    (r"\\(?:mathrm|text)\s*\{\s*([ie])\s*\}", r"\1"),  # e and i are not units
    (r"\\(?:mbox|mathrm|textrm|textbf|textit|textnormal|textsf|operatorname)\b", r"\\text"),
    (r"\\text\s*\{\s*(exp|ln|log|sin|cos|tan|gcd|lcm)\s*\}", r"\\\1 "),
    (r"(?<!\\)\\(?:bf|rm|it|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
    (r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf)\s*(?=\{)", ""),
    (r"\\(?:left|right)\s*\.|\\(?:color|textcolor)\s*\{\w+\}", ""),  # invisible brackets; colours
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])", ""),
    (r"\\varnothing\b", r"\\emptyset"),
    (r"\\(?:d|t|c)frac\b", r"\\frac"),
    (r"\\([lgn]e)q(?:slant)?(?![A-Za-z])", r"\\\1"),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"<=|=<", r"\\le "),
    (r">=", r"\\ge "),
    (r"(?<![\d!])!=|\\not\s*=", r"\\ne "),
    (r"\+/-|\+-", r"\\pm "),
    (r"\\(?:dots|cdots|dotsc|dotsb|dotso)(?![A-Za-z])|\.\.\.+", r"\\ldots "),
    (r"\\(?:mid|vert|lvert|rvert)(?![A-Za-z])", "|"),
    (r"\\(lbrace|rbrace)(?![A-Za-z])", lambda match: r"\{" if match[1] == "lbrace" else r"\}"),
    (r"√\s*(\w+|\([^()]*\))", r"\\sqrt{\1}"),
    (r"∛\s*(\w+|\([^()]*\))", r"\\sqrt[3]{\1}"),
    (r"∜\s*(\w+|\([^()]*\))", r"\\sqrt[4]{\1}"),
    (r"\\text\s*\{\s*(abs|floor|ceil)\s*\}", r"\1"),
    (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
    (rf"(?<![\\A-Za-z])({_FUNCTIONS})(?!\s*\}})", r"\\\1"),
    # thousands: 1{,}000, 1\,000, 1 000
    (r"(?<=\d)(?<![_^]\d)(?:\{,\}|,\\!|\\[,;: ]|~|\s)+(?=\d{3}(?!\d))", ""),
    (r"(?<!\\)\\!", ""),
    (r"(?<!\\)\\(?:q?quad(?![A-Za-z])|[,;:> ]|$)|~", " "),  # spaces in LaTeX
    (r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}"),  # 1 1/2
    (r"(\d+)分之(\d+)", r"\\frac{\2}{\1}"),
    (
        rf"(?<=\d)\s*(\\text\s*\{{)?\s*({'|'.join(_POWERS)})(?![a-z])(?:[аиовй]+(?=\W|$))?",
        lambda match: rf"\times 10^{{{_POWERS[match[2].lower()]}}}{match[1] or ''}",
    ),
    (
        r"(\d{0,99})\.(\d{0,99})\\overline\s*\{?(\d{1,99})\}?",
        lambda match: _repeating(*match.groups()),
    ),
    (r"\s*\\text\s*\{\s*per\s?cent\s*\}|\s*\bper\s?cent\b", r"\\%"),
    (r"(?<!\\)%", r"\\%"),
    (r"\\text\s*\{\s*((?:,\s*)?\b(?:and|or)\b|[,;])\s*\}", r" \1 "),
    # text before the answer
    (r"^\\text\s*\{(?!\s*\(?[A-J]\)?\s*:)[^{}]*(?:\bis|\bare|[:=])\s*\}(?!.*[:=])", ""),
    (r"^=\s*", ""),
    (r"(\^\s*\{?\s*\\circ\s*\}?)\s*(?:\\text\s*\{\s*[CF]\s*\}|[CF])$", r"\1"),  # of temperature
    (r"^(?:it is|(?:the )?(?:final )?answer(?: is|:))\s", ""),
    (r"^(?:约|大约|共|一共|总共|(?:答案)?[是为]|答案?:)(?=\s*[-\d])", ""),
    (r"^(?:\\text\s*\{)?\s*(?:approximately|approx\.?|about|roughly|around)\s*\}?\s*(?=[-\d.\\])",
     r"\\approx "),
    (r"[\s.,;]+$|^\s+", ""),
    (r"^\\\{\s*\\\}$", r"\\emptyset"),
]  # fmt: skip
_COMPILED = [(re.compile(pattern, re.I), by) for pattern, by in _RULES]

Same = Callable[[str, str], bool]  # compares two parts of answers

OPEN = {"(", "[", "{", r"\{", r"\langle", r"\begin"}
CLOSE = {")", "]", "}", r"\}", r"\rangle", r"\end"}
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.S)
_SEPARATOR = re.compile(r"\s*(?:[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\?&|和|与|或)\s*")
_THOUSANDS = re.compile(r"([-+]?\d{1,3})((?:,\d{3})+|(?:,\d{2})*,\d{3})(?![\d,])(\.\d+)?(.*)", re.S)
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def normalise(answer: str) -> str:
    """Rewrite notation that math-verify reads differently from a person."""
    if not answer.isascii():
        answer = _ascii(answer)
    answer = _SPACED.sub(lambda match: f"[{re.sub(_SPACE, ', ', match[1])}]", answer)
    answer = re.sub(r"\]\s+\[", "], [", answer)  # rows of a matrix, as numpy prints it
    for pattern, replacement in _COMPILED:
        answer = pattern.sub(replacement, answer)
    return _arguments(_calls(answer))


def _calls(text: str) -> str:
    """Return abs(x), floor(x) and ceil(x) as formulas have them."""
    found = _CALL.search(text)
    while found:
        rest = text[found.end() :]
        end = closing(rest)
        if end is None:
            return text
        form = _CALLS[found[1].lower()]
        text = text[: found.start()] + form.format(rest[1:end]) + rest[end + 1 :]
        found = _CALL.search(text)
    return text


def _ascii(text: str) -> str:
    """Return the text with signs and digits of Unicode in LaTeX; words of other scripts stay."""
    text = _RAISED.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = _BETWEEN_LABELS.sub(", ", text)
    text = _LOWERED.sub(lambda match: f"_{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = re.sub(r"[Ͱ-Ͽϐ-ϡ]{1,2}(?![Ͱ-Ͽ])(?<![Ͱ-Ͽ]{3})", _greek, text)
    text = "".join(map(_sign, text))
    text = text.replace("\u2212", "-")  # from a raised minus
    return re.sub(r"(\d+)\u2044(\d+)", r"\\frac{\1}{\2}", text)


def _sign(char: str) -> str:
    if char in _SIGNS:
        return _SIGNS[char]
    category = unicodedata.category(char)
    if category == "Cf" or (category == "Sc" and char not in "$"):
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(char))
    plain = unicodedata.normalize("NFKC", char)
    numerator, slash, denominator = plain.partition("\u2044")
    if slash and denominator:
        return rf"\frac{{{numerator}}}{{{denominator}}}"
    return plain if plain == char else "".join(_SIGNS.get(each, each) for each in plain)


def _greek(match: re.Match[str]) -> str:
    letters = []
    for char in match[0]:
        words = unicodedata.name(char, "").split()
        name = words[-1].lower() if words[:1] == ["GREEK"] and words[-2:-1] == ["LETTER"] else ""
        if words[:1] == ["GREEK"] and words[-1] == "SYMBOL":
            name = f"var{words[1].lower()}"
        name = name.replace("lamda", "lambda")
        letters.append(f"\\{name.title() if 'CAPITAL' in words else name} " if name else char)
    return "".join(letters)


def _arguments(text: str) -> str:
    r"""Put what belongs to a root, a power or exp into braces, as in \sqrt(2) or x^(n+1)."""
    for name, form in ((r"\sqrt", r"\sqrt{{{}}}"), (r"\exp", "e^{{{}}}"), ("^", "^{{{}}}")):
        start = text.find(name)
        while start >= 0:
            rest = text[start + len(name) :]
            inner = rest.lstrip()
            end = closing(inner) if inner[:1] in ("(", "{") else None
            number = re.match(r"-\w", inner) if name == "^" else None
            if end is not None and (inner[0] == "(" or name == r"\exp"):
                text = text[:start] + form.format(inner[1:end]) + inner[end + 1 :]
            elif number:
                text = text[:start] + form.format(number[0]) + inner[number.end() :]
            start = text.find(name, start + 1)
    return text


def closing(text: str) -> int | None:
    """Return where the bracket at the start of a text closes, or None."""
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in OPEN:
            depth += 1
        elif token[0] in CLOSE:
            depth -= 1
            if depth == 0:
                return token.end() - 1
    return None


def split(text: str, separator: re.Pattern[str] = _SEPARATOR) -> list[str]:
    """Return the parts of a text between separators that stand in no brackets."""
    parts, depth, start, end = [], 0, 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] in OPEN:
            depth += 1
        elif token[0] in CLOSE:
            depth -= 1
        elif depth == 0 and token.start() >= end:
            found = separator.match(text, token.start())
            if found and found.end() > found.start():
                parts.append(text[start : found.start()])
                start = end = found.end()
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def inside(answer: str) -> tuple[str, str, str] | None:
    """Return the bracket that opens the answer, its content and the bracket that closes it."""
    text = re.sub(r"^\\langle\s*", "<", re.sub(r"\s*\\rangle$", ">", answer.strip()))
    if text.startswith("<") and text.endswith(">"):
        return "<", text[1:-1], ">"
    text = re.sub(r"^\\\{", "{", text)
    if text[:1] not in OPEN:
        return None
    end = closing(text)
    if end != len(text) - 1:
        return None
    return text[0], text[1:end].removesuffix("\\"), text[end]


def ungroup(number: str) -> str:
    """Return a number without the commas between its thousands."""
    found = _THOUSANDS.fullmatch(number.strip())
    return found[1] + found[2].replace(",", "") + (found[3] or "") + found[4] if found else number


def bare(answer: str) -> str:
    r"""Return the answer with the contents of \text{...} in place of it."""
    return TEXT.sub(r"\1", answer).strip()


def words(text: str) -> str:
    """Return only the words and numbers, in lower case."""
    return re.sub(r"\W+", " ", text.casefold()).strip()


def compact(text: str) -> str:
    """Return the text without spaces, except those between two digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _repeating(whole: str, fixed: str, period: str) -> str:
    r"""Return a repeating decimal, such as 0.1\overline{6}, as a fraction."""
    numerator = int(whole + fixed + period) - int(whole + fixed or 0)
    denominator = 10 ** len(fixed) * (10 ** len(period) - 1)
    value = Fraction(numerator, denominator)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
