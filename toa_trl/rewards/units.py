"""Units behind a number: 5 cm, 10 m/s, 12 square feet."""

import re

_UNIT = re.compile(
    r"(?<=[\d})\]!iek])(?:\s*\\text\s*\{([^{}]*)\}|\s*([A-Za-z][A-Za-zÀ-ɏ ./]*)"
    r"|\s*((?:(?![A-Za-z])[^\W\d_])[^\d_\\^=+*/<>()]*))(?:\s*\^\s*\{?(\d)\}?)?$"
)
_EXPONENTS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3", "平方": "2", "立方": "3"}
_UNIT_NAMES = (  # each name, then its other spellings
    "mm millimeter millimetre 毫米 мм; cm centimeter centimetre 厘米 см; m meter metre 米 м метр;"
    "km kilometer kilometre 千米 公里 км; inch in; foot feet ft; yard yd; mile mi; g gram 克 г;"
    "kg kilogram 千克 公斤 кг; l liter litre 升 л; ml milliliter millilitre 毫升 мл;"
    "s sec second 秒 сек; min minute 分钟 мин; h hr hour 小时 час часа часов; day 天 день дней;"
    "week 周; month 个月; year 年 год лет; cent; dollar 美元; yuan 元 块; jiao 角; degree 度;"
    "ruble руб рубль рубля рублей; dozen"
)
_UNITS: dict[str, str] = {}  # spelling, singular or plural -> name
for _names in _UNIT_NAMES.split(";"):
    for _spelling in _names.split():
        for _plural in ("", "s", "es"):
            _UNITS[_spelling + _plural] = _names.split()[0]
_NO_UNIT = re.compile(
    r"\b(?:or|not|no|than|least|most|half|dozens?|squared|cubed|factorial|remainder|mod|wrong"
    r"|incorrect|if|plus|minus|over|base|and)\b|半|余|不|以|多|少|[或和]",
    re.I,
)
_COMMANDS = re.compile(r"\\(?:frac|sqrt|pi|cdot|times|pm|ln|log|circ|text)(?![A-Za-z])|e(?=\^)")


def split_unit(answer: str, *, strict: bool = False) -> tuple[str, str]:
    """Return the answer without its unit, and the unit (such as cm^2 or m/s) or "" if unknown.

    Letters are a unit only behind a number without variables.

    Args:
        answer: a normalised answer.
        strict: a single letter is a unit only behind digits and a space: 20 m, but not 20m.
    """
    match = _UNIT.search(answer)
    if not match:
        return answer, ""
    text, number = (match[1] or match[2] or match[3] or "").strip(), answer[: match.start()]
    prefixed = re.sub("(平方|立方)", r"\1 ", text.lower())
    parts = [part for part in re.findall(r"[^\W\d_]+", prefixed) if part != "per"]
    exponent = match[4] or (_EXPONENTS.get(parts[0]) if parts else None)
    names = [_UNITS.get(part, "") for part in parts if part not in _EXPONENTS]
    unit = "/".join(names) + f"^{exponent or 1}" if names and all(names) else ""
    if _NO_UNIT.search(text) or not re.search(r"\d|\\pi|\\infty", number):
        return answer, ""
    if match[2]:
        is_spaced = bool(re.search(r"\d\s$", answer[: match.start(2)]))
        is_word = is_spaced and all(part in _UNITS or len(part) > 2 for part in parts)
        has_letters = re.search("[A-Za-z]", _COMMANDS.sub("", number))
        is_variable = strict and len(text) == 1 and not is_spaced
        if has_letters or is_variable or not (unit or is_word):
            return answer, ""
    return number, unit
