"""Whether two formulas have the same value: parsed by math-verify's parser, compared exactly.

sympy's own comparison rounds: to it, 1/2^99 is 1/2^98. Rational expressions are compared modulo a
large prime, with a number in place of each letter, which computes no enormous power; all others
numerically, relative to their size.
"""

import itertools
import math
import re
import zlib
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended import latex2sympy, normalize_latex  # type: ignore[import-untyped]
from latex2sympy2_extended.latex2sympy2 import (  # type: ignore[import-untyped]
    ConversionConfig,
    NormalizationConfig,
)
from math_verify import verify
from sympy.core.function import AppliedUndef  # type: ignore[import-untyped]
from sympy.core.relational import Relational  # type: ignore[import-untyped]

from toa_trl.rewards.structures import matched

_PRIME = 2**521 - 1
_LONGEST_EXPONENT = 64  # bits; a larger exponent is not computed
_DIGITS = 50  # of a numerical comparison
_MOST_DIGITS = 2000
_POINTS = (0.377, 1.931, 3.217, -0.713, -2.459)  # where formulas with letters are compared
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_LARGEST = 4000  # digits of a number that is read without the parser
_DEEPEST = 30  # brackets in brackets
_NOTATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
)
_CONVERSION = ConversionConfig(lowercase_symbols=False)


@lru_cache(maxsize=1024)
def parse(text: str) -> Any:
    """Return what a formula means as a sympy object, or None if it cannot be parsed."""
    text = text.strip()
    if _NUMBER.fullmatch(text) and len(text) < _LARGEST:
        return sympy.Rational(text.rstrip(".") if "." in text else int(text))
    depths = itertools.accumulate((char in "([{") - (char in ")]}") for char in text)
    if max(depths, default=0) > _DEEPEST:  # the parser needs minutes
        return None
    if re.search(r"(?<![_\d])\d+\s+\d", text):  # the parser adds them
        return None
    # the parser reads the variable I as the imaginary unit
    text = re.sub(r"(\\[A-Za-z]+)|I", lambda match: match[1] or r"\iota ", text)
    try:
        parsed = latex2sympy(
            normalize_latex(text, _NOTATION),
            is_real=True,
            normalization_config=None,
            conversion_config=_CONVERSION,
        )
    except Exception:  # the parser's errors have no class of their own
        return None
    if not isinstance(parsed, sympy.Basic | sympy.MatrixBase):
        return None
    return parsed


def same(correct: str, given: str) -> bool | None:
    """Return whether two formulas mean the same, or None if one cannot be parsed."""
    left, right = parse(correct), parse(given)
    if left is None or right is None:
        return None
    return _same(left, right)


def is_rounding(decimal: str, exact: str) -> bool:
    """Return whether a decimal has at least six digits and is the other number, rounded."""
    mantissa = decimal.lstrip("-+")
    if "." not in mantissa or len(mantissa.replace(".", "").lstrip("0")) < 6:
        return False
    return near(decimal, exact)


def near(decimal: str, exact: str) -> bool:
    """Return whether a decimal is the other number, rounded or cut to as many places."""
    left, right = parse(decimal), parse(exact)
    if not _is_number(left) or not _is_number(right):
        return False
    unit = sympy.Rational(10) ** -len(decimal.partition(".")[2])
    number = _evaluate(right, {}, _DIGITS)
    return bool(number is not None and number.is_real and abs(left - number) < unit)


def is_number(text: str) -> bool:
    """Return whether a formula is a number, without letters."""
    return _is_number(parse(text))


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, sympy.Expr) and not value.free_symbols and not value.atoms(AppliedUndef)
    )


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, sympy.MatrixBase) or isinstance(right, sympy.MatrixBase):
        shapes = getattr(left, "shape", None), getattr(right, "shape", None)
        return shapes[0] == shapes[1] and all(map(_same, left, right))
    for value in (left, right):
        if value.has(sympy.nan, sympy.zoo):
            return False
    if left == right:
        return True
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        return _same_expressions(left, right)
    are_relations = isinstance(left, Relational) and isinstance(right, Relational)
    if are_relations and _same_relations(left, right):
        return True
    sets = [_as_set(value) for value in (left, right)]
    if None not in sets:
        return _same_sets(*sets)
    if isinstance(left, sympy.Expr) or isinstance(right, sympy.Expr):
        return False  # a number and a relation
    parts = [getattr(value, "_unsorted_args", ()) for value in (left, right)]
    return len(parts[0]) == len(parts[1]) > 0 and all(map(_same, *parts))


def _same_expressions(left: Any, right: Any) -> bool:
    left, right = _prepare(left), _prepare(right)
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    seeds = {symbol: zlib.crc32(str(symbol).encode()) + 2 for symbol in symbols}
    residues = _residue(left, seeds), _residue(right, seeds)
    if None not in residues:
        return residues[0] == residues[1]
    digits = _DIGITS + min(_MOST_DIGITS, _digits(left) + _digits(right))
    compared = False
    for point in _POINTS if symbols else _POINTS[:1]:
        values = {
            symbol: sympy.Rational(str(round(point + seeds[symbol] % 997 / 7001, 6)))
            for symbol in symbols
        }
        pair = [_evaluate(value, values, digits) for value in (left, right)]
        if None in pair:
            continue
        if point < 0 and (_leaves_reals(left, values) or _leaves_reals(right, values)):
            continue  # a root or a logarithm that is meant for positive numbers
        tolerance = sympy.Float(10) ** -(digits - 20) * max(map(abs, pair))
        if abs(pair[0] - pair[1]) > tolerance:
            return False
        compared = True
    return compared or bool(verify(left, right, timeout_seconds=None))


def _prepare(value: Any) -> Any:
    """Return the expression with exact decimals, i as a number, and f(x) as a letter."""
    changes = {number: sympy.Rational(str(number)) for number in value.atoms(sympy.Float)}
    changes |= {call: sympy.Symbol(str(call)) for call in value.atoms(AppliedUndef)}
    for each in value.atoms(sympy.UnevaluatedExpr):
        changes[each] = each.args[0]
    if not value.atoms(sympy.Sum, sympy.Product):
        changes |= {each: sympy.I for each in value.free_symbols if each.name == "i"}
    if not changes:
        return value
    with sympy.evaluate(False):
        return value.xreplace(changes)


def _residue(value: Any, seeds: dict[Any, int]) -> int | None:
    """Return a rational expression modulo a prime, or None if it has no such residue."""
    if value.is_Rational:
        return int(value.p * pow(int(value.q), -1, _PRIME) % _PRIME)
    if (
        isinstance(value, sympy.factorial)
        and value.args[0].is_Integer
        and 0 <= value.args[0] < _LARGEST
    ):
        return math.factorial(int(value.args[0])) % _PRIME
    if value.is_Symbol:
        return seeds[value]
    if value.is_Pow:
        base, exponent = _residue(value.base, seeds), _integer(value.exp)
        if base is None or exponent is None or (base == 0 and exponent < 1):
            return None
        return pow(base, exponent, _PRIME)
    if value.is_Add or value.is_Mul:
        total = int(value.is_Mul)
        for each in value.args:
            part = _residue(each, seeds)
            if part is None:
                return None
            total = (total * part if value.is_Mul else total + part) % _PRIME
        return total
    return None


def _integer(value: Any) -> int | None:
    """Return an exponent, or None if it is not an integer or too large."""
    if value.is_Integer:
        return int(value) if int(value).bit_length() <= _LONGEST_EXPONENT else None
    if not (value.is_Add or value.is_Mul or value.is_Pow):
        return None
    parts = [_integer(each) for each in value.args]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if not value.is_Pow:
        return sum(known) if value.is_Add else math.prod(known)
    base, exponent = known
    if exponent < 0 or base.bit_length() * exponent > _LONGEST_EXPONENT:
        return None
    return int(base**exponent)


def _digits(value: Any) -> int:
    """Return about how many digits the integer powers in a number have together."""
    total = 0.0
    for power in value.atoms(sympy.Pow):
        exponent = _integer(power.exp)
        if exponent is not None and power.base.is_Integer and power.base != 0:
            total += abs(exponent) * math.log10(abs(int(power.base)) + 1)
    return int(min(total, _MOST_DIGITS))


def _evaluate(value: Any, values: dict[Any, Any], digits: int) -> Any:
    try:
        number = value.evalf(digits, subs=values, maxn=2 * digits + 100)
    except Exception:  # sympy raises errors of many classes
        return None
    if not number.is_number or number.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return None
    real, imaginary = number.as_real_imag()
    parts = [
        sympy.Float(0) if getattr(part, "_prec", 2) == 1 else part for part in (real, imaginary)
    ]
    if not all(part.is_Number for part in parts):
        return None
    return parts[0] + sympy.I * parts[1]


def _leaves_reals(value: Any, values: dict[Any, Any]) -> bool:
    """Return whether a root or a logarithm of a number that is not positive is taken."""
    arguments = [each.args[0] for each in value.atoms(sympy.Pow) if _integer(each.exp) is None]
    arguments += [each.args[0] for each in value.atoms(sympy.log)]
    numbers = [_evaluate(each, values, 20) for each in arguments]
    return any(number is None or not number.is_positive for number in numbers)


def _same_relations(left: Any, right: Any) -> bool:
    """Return whether one relation is the other, turned round or multiplied by a constant."""
    turned = {sympy.Gt: sympy.Lt, sympy.Ge: sympy.Le}
    sides = []
    for relation in (left, right):
        kind, difference = type(relation), relation.lhs - relation.rhs
        if kind in turned:
            kind, difference = turned[kind], relation.rhs - relation.lhs
        if not isinstance(difference, sympy.Expr):
            return False
        sides.append((kind, _prepare(difference)))
    (kind, first), (other_kind, second) = sides
    if kind is not other_kind:
        return False
    if kind in (sympy.Eq, sympy.Ne):  # the same zeros, without denominators
        first, second = (sympy.fraction(sympy.together(side))[0] for side in (first, second))
    if first.free_symbols != second.free_symbols or not first.free_symbols:
        return False
    ones = {symbol: sympy.Rational(17 + index, 7) for index, symbol in
            enumerate(sorted(first.free_symbols, key=str))}  # fmt: skip
    numbers = [_evaluate(side, ones, _DIGITS) for side in (first, second)]
    if None in numbers or 0 in numbers:
        return False
    factor = sympy.nsimplify(numbers[0] / numbers[1], rational=True, tolerance=1e-30)
    if kind in (sympy.Lt, sympy.Le) and not factor.is_positive:
        return False
    return _same_expressions(first, factor * second)


def _as_set(value: Any) -> Any:
    if isinstance(value, sympy.Set):
        return value.doit()
    relations = getattr(value, "_unsorted_args", (value,))
    if not all(isinstance(each, Relational) for each in relations):
        return None
    if len(value.free_symbols) != 1 or all(isinstance(each, sympy.Eq) for each in relations):
        return None
    try:
        return sympy.Intersection(*(each.doit().as_set() for each in relations))
    except Exception:  # sympy cannot solve it
        return None


def _same_sets(left: Any, right: Any) -> bool:
    if left == right:
        return True
    parts = [
        list(each.args) if isinstance(each, sympy.Union | sympy.FiniteSet) else [each]
        for each in (left, right)
    ]
    return matched(parts[0], parts[1], _same_parts)


def _same_parts(left: Any, right: Any) -> bool:
    if isinstance(left, sympy.Interval) and isinstance(right, sympy.Interval):
        ends = _same(left.start, right.start) and _same(left.end, right.end)
        return ends and left.args[2:] == right.args[2:]
    if isinstance(left, sympy.Union | sympy.FiniteSet):
        return type(left) is type(right) and _same_sets(left, right)
    return bool(left == right) if isinstance(left, sympy.Set) else _same(left, right)


def same_sets(correct: str, given: str) -> bool:
    """Return whether two inequalities, intervals or unions of them are the same set."""
    sides = []
    for text in (correct, given):
        parsed = parse(text)
        if parsed is None:  # the parser knows no unions of inequalities
            parsed = _joined(text, r"\cup", sympy.Union) or _joined(
                text, r"\cap", sympy.Intersection
            )
        sides.append(parsed)
    return None not in sides and _same(*sides)


def _joined(text: str, sign: str, join: Any) -> Any:
    parts = [parse(part) for part in text.split(sign)]
    sets = [_as_set(part) for part in parts if part is not None]
    return join(*sets) if len(sets) == len(parts) > 1 and None not in sets else None


def same_family(correct: str, given: str) -> bool:
    r"""Return whether two formulas in \kappa have the same values over all integers \kappa."""
    left, right = parse(correct), parse(given)
    if left is None or right is None:
        return False
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        return _same(left, right)
    index = sympy.Symbol("kappa", real=True)
    left, right = (sympy.expand(_prepare(each).doit()) for each in (left, right))
    steps = [each.coeff(index, 1) for each in (left, right)]
    starts = [each.coeff(index, 0) for each in (left, right)]
    for whole, start, step in zip((left, right), starts, steps, strict=True):
        if step == 0 or not _same(whole, start + step * index):
            return _same(left, right)
    if not (_same(steps[0], steps[1]) or _same(steps[0], -steps[1])):
        return False
    shift = sympy.simplify((starts[0] - starts[1]) / steps[0])
    return bool(shift.is_integer)
