"""Whether two final answers are equal as a person reads them.

What has a structure is taken apart by the comparisons; `values` compares the formulas that are
left. What cannot be parsed is compared as text, never as a number found inside it.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import product

from toa_trl.rewards import values
from toa_trl.rewards.conditions import builders, congruences, families, sets_of_reals
from toa_trl.rewards.notation import Same, bare, compact, ungroup
from toa_trl.rewards.structures import components, matrices, sequences, structures
from toa_trl.rewards.units import split_unit
from toa_trl.rewards.wording import choices, dimensions, infinities, is_prose, labels, prose

_DEEPEST = 6  # lists in lists
_BASE = re.compile(r"(\d+)_\{?(\w+)\}?")
_DECIMAL = re.compile(r"[-+]?(?:\d{1,99}\.?\d{0,99}|\.\d{1,99})")
_PERCENT = re.compile(r"\s*\\%$")
_EQUALS = re.compile(r"(?<![<>!:\\])=(?!=)")
_APPROX = re.compile(r"\\(?:approx|simeq|sim)(?![A-Za-z])")


def equal(correct: str, given: str, depth: int = 0) -> bool:
    """Return whether two final answers, normalised, are equal; `correct` is the reference."""
    if not correct or not given or depth > _DEEPEST:
        return False
    if compact(correct) == compact(given):
        return True
    same = partial(equal, depth=depth + 1)
    for compare in _COMPARISONS:
        decided = compare(correct, given, same)
        if decided is not None:
            return decided
    return _equal_values(correct, given)


def _bases(correct: str, given: str, same: Same) -> bool | None:
    number, other = _BASE.fullmatch(bare(correct)), _BASE.fullmatch(bare(given))
    if number and other:
        is_numeric = (number[2] + other[2]).isdigit()
        return number[1] == other[1] and (number[2] == other[2] or not is_numeric)
    if number and _DECIMAL.fullmatch(given):
        return number[1] == given
    if other and _DECIMAL.fullmatch(correct):
        return other[1] == correct
    return None


def _approximations(correct: str, given: str, same: Same) -> bool | None:
    parts = [_APPROX.split(answer) for answer in (correct, given)]
    if all(len(each) == 1 for each in parts):
        return None
    readings = []
    for each in parts:
        exact, rounded = each[0].strip(), each[-1].strip()
        if len(each) > 2:
            return False
        if len(each) == 2 and exact and values.is_number(_sides(exact)[-1]):
            number, _ = split_unit(rounded)
            if not _DECIMAL.fullmatch(number) or not values.near(number, _sides(exact)[-1]):
                return False  # two numbers
            readings.append([exact, rounded])
        else:
            readings.append([f"{exact} = {rounded}" if exact and len(each) == 2 else rounded])
    return any(same(a, b) for a, b in product(*readings))


def _sides(text: str) -> list[str]:
    return [side.strip() for side in _EQUALS.split(text)]


def _equations(correct: str, given: str, same: Same) -> bool | None:
    one, other = _sides(correct), _sides(given)
    if len(one) == len(other) == 1:
        return None
    if not all(one) or not all(other):
        return False
    if len(other) > 1 and len(one) > 1:
        named, other_named = _name(one), _name(other)
        if named and other_named:
            (name, value), (other_name, other_value) = named, other_named
            if is_prose(name) or is_prose(other_name) or name.casefold() == other_name.casefold():
                return same(value, other_value)
        elif not len(one) == len(other) == 2:
            return False
        return bool(values.same(correct, given))
    equation = one if len(one) > 1 else other
    named_value = _name(equation)
    if named_value:
        value = named_value[1]
    elif equation is one:
        return False
    else:  # 3 + 5 = 8, but not 6 = 5
        quantities = [split_unit(side)[0] for side in equation]
        for side in quantities[1:]:
            if not values.is_number(side) or not _equal_values(quantities[0], side):
                return False
        value = equation[-1]
    if equation is one:
        return same(value, given)
    return same(correct, value)


def _name(sides: list[str]) -> tuple[str, str] | None:
    r"""Return what an equation such as x = 5, f(3) = 8 or \text{Area} = 12 names, and its value."""
    if len(sides) == 2 and re.fullmatch(r"[A-Za-z]", sides[1]) and values.is_number(sides[0]):
        sides = [sides[1], sides[0]]
    name, value = sides[0], sides[-1]
    is_name = re.fullmatch(
        r"(?:\\?[A-Za-z]+'*|\\text\s*\{[^{}]*\}|\\overline\s*\{\w+\}|\|[A-Z]\w*\|"
        r"|\\(?:angle|triangle)\s*\w+)(?:_\{?\w+\}?)?(?:\s*\([^()=]*\))?",
        name,
    )
    if not is_name or (re.fullmatch("[a-z]{2,3}", name) and not is_prose(name)):
        return None
    numbers = [side for side in sides[1:] if values.is_number(side)]
    if any(not _equal_values(numbers[0], side) for side in numbers[1:]):
        return None
    if re.fullmatch("[A-Za-z]", name) and re.search(rf"(?<![\\A-Za-z]){name}(?![A-Za-z])", value):
        return None
    return name, value


def _ratios(correct: str, given: str, same: Same) -> bool | None:
    one, other = (answer.split(":") for answer in (correct, given))
    if max(len(one), len(other)) < 3:
        return None
    if len(one) != len(other):
        return False
    return all(
        _equal_values(rf"\frac{{{a}}}{{{one[0]}}}", rf"\frac{{{b}}}{{{other[0]}}}")
        for a, b in zip(one[1:], other[1:], strict=True)
    )


def _equal_values(correct: str, given: str) -> bool:
    correct, given = ungroup(correct), ungroup(given)
    if _same_value(correct, given):
        return True
    given_value, given_unit = split_unit(given)
    value, unit = split_unit(correct, strict=given_value == given)
    if unit and given_unit and unit != given_unit:
        return False
    value, given_value = value.strip(), given_value.strip()
    if (value, given_value) != (correct, given) and _same_value(value, given_value):
        return True
    # "what per cent": 12.5 and 12.5 % are equal
    without, given_without = _PERCENT.sub("", value), _PERCENT.sub("", given_value)
    percents = without != value, given_without != given_value
    if not any(percents):
        return False
    if _same_value(without, given_without):
        return True
    if percents[0]:
        return not percents[1] and _same_value(rf"\frac{{{without}}}{{100}}", given_without)
    return _same_value(without, rf"\frac{{{given_without}}}{{100}}")


def _same_value(correct: str, given: str) -> bool:
    if _DECIMAL.fullmatch(correct) and _DECIMAL.fullmatch(given):
        return Fraction(correct) == Fraction(given)
    readings = [(correct, given)]
    # 1e-3, unless e is a letter of the other answer
    scientific = [re.sub(r"(?<=\d)[eE]([+-]?\d+)(?![\w.])", r" \\times 10^{\1}", each)
                  for each in (correct, given)]  # fmt: skip
    if scientific[1] != given and not re.search(r"(?<![\\A-Za-z])[eE]", correct):
        readings = [(correct, scientific[1])]
    elif scientific[0] != correct:
        readings.append((scientific[0], scientific[1]))
    for one, other in readings:
        same = values.same(one, other)
        if same or (same is None and compact(one) == compact(other)):
            return True
        for decimal, exact in ((one, other), (other, one)):
            if _DECIMAL.fullmatch(decimal) and values.is_rounding(decimal, exact):
                return True
    return False


_COMPARISONS: tuple[Callable[[str, str, Same], bool | None], ...] = (
    infinities, choices, prose, sequences, congruences, families, builders, _bases, labels,
    dimensions, components, matrices, _approximations, sets_of_reals, structures, _equations,
    _ratios,
)  # fmt: skip
