"""Final answers with parts: lists, sets, points, intervals, vectors, matrices and sequences.

Each comparison returns None where it does not apply; `same` compares parts of the answers.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

from toa_trl.rewards.notation import TEXT, Same, compact, inside, split, ungroup

T = TypeVar("T")
_TRANSPOSED = r"\s*\^\s*\{?\s*(?:T|\\top|\\intercal)\s*\}?"
_MATRIX = re.compile(
    r"\\begin\s*\{([pbB]?matrix|array|smallmatrix)\}(?:\s*\{[lcr| ]*\})?(.*)\\end\s*\{\1\}"
    rf"({_TRANSPOSED})?",
    re.S,
)
# a unit vector in bold, with a hat or an arrow
_UNIT = re.compile(
    r"(?:\\(?:hat|vec|widehat|overrightarrow)\s*)*(?:\{\s*)*"
    r"(?<![A-Za-z])(?:\\hat\s*|\\vec\s*)?(\\[ij]math|[ijk])(?![A-Za-z])(?:\s*\})*"
)
_TERM = re.compile(
    r"([-+]?)((?:\\d?frac(?:\{[^{}]*\}\{[^{}]*\}|\d\d)|\([^()]*\)|\\sqrt\{[^{}]*\}|\\pi|[\d.]"
    r"|[a-hl-z])*?)(?:\\cdot|\*)?([ijk])(?![A-Za-z])"
)
_TRANSPOSE = re.compile(rf"{_TRANSPOSED}$")
_PAIRS = {"()", "[]", "{}", "<>"}


def sequences(correct: str, given: str, same: Same) -> bool | None:
    """Compare sequences with dots, member by member."""
    if r"\ldots" not in correct + given:
        return None
    comma = re.compile(r"\s*,\s*")
    one, other = split(correct, comma), split(given, comma)
    return len(one) == len(other) and all(
        compact(a) == compact(b) or (r"\ldots" not in a + b and same(a, b))
        for a, b in zip(one, other, strict=True)
    )


def components(correct: str, given: str, same: Same) -> bool | None:
    """Compare sums of the unit vectors i, j and k, also with points and matrices."""
    one, other = _components(correct), _components(given)
    if one and other:
        return all(same(one.get(unit, "0"), other.get(unit, "0")) for unit in {**one, **other})
    if not one and not other:
        return None
    parts, answer = (one, given) if one else (other, correct)
    inner = inside(answer)
    rows = _rows(answer)
    size = len(split(inner[1])) if inner else 0
    if rows:
        size = max(len(rows), len(rows[0]))
    if parts is None or size not in (2, 3) or (size == 2 and "k" in parts):
        return None
    vector = f"({', '.join(parts.get(unit, '0') for unit in 'ijk'[:size])})"
    return same(vector, given) if one else same(correct, vector)


def _components(answer: str) -> dict[str, str] | None:
    """Return the components of a sum of unit vectors, one of which is not i, by unit."""
    text = compact(_UNIT.sub(lambda match: match[1].removeprefix("\\")[0], answer))
    parts: dict[str, str] = {}
    at = 0
    while at < len(text):
        term = _TERM.match(text, at)
        if term is None or term[3] in parts or (at and not term[1]):
            return None
        parts[term[3]] = f"{term[1].removeprefix('+')}{term[2] or '1'}"
        at = term.end()
    return parts if len(parts) > 1 else None


def matrices(correct: str, given: str, same: Same) -> bool | None:
    """Compare matrices, and vectors in any brackets."""
    one, other = _rows(correct), _rows(given)
    if not one and not other:
        return None
    if not one or not other:
        rows, answer = (one, given) if one else (other, correct)
        answer = re.sub(r"^[^=(\[]*=\s*(?=[(\[\\<])", "", answer)  # v = (1, 2)
        inner = inside(_TRANSPOSE.sub("", answer))
        if inner and inner[0] == "{":
            return False
        entries = split(inner[1]) if inner else split(answer)
        if rows is None or (len(entries) < 2 and len(rows) > 1):
            return None
        column = [[entry] for entry in entries]
        vector = [entries] if len(rows) == 1 else column
        one, other = (rows, vector) if one else (vector, rows)
    assert one
    assert other
    if [len(row) for row in one] != [len(row) for row in other]:
        return False
    return all(map(same, chain.from_iterable(one), chain.from_iterable(other)))


def _rows(answer: str) -> list[list[str]] | None:
    found = _MATRIX.fullmatch(answer.strip())
    if found:
        lines = split(found[2], re.compile(r"\s*\\\\\s*"))
        rows = [split(line, re.compile(r"\s*&\s*")) for line in lines]
        return [list(column) for column in zip(*rows, strict=False)] if found[3] else rows
    inner = inside(answer)
    if not inner or inner[0] == "{":
        return None
    if ";" in inner[1]:
        lines = split(inner[1], re.compile(r"\s*;\s*"))
        return [split(line) for line in lines]
    rows = []
    for row in split(inner[1]):
        part = inside(row)
        if not part or part[0] != inner[0] or part[0] == "(":
            return None
        rows.append(split(part[1]))
    return rows if len(rows) > 1 else None


def structures(correct: str, given: str, same: Same) -> bool | None:
    """Compare lists and sets without order; points and intervals with it, and with their ends."""
    inners = [inside(answer) for answer in (correct, given)]
    unwrapped = []
    for answer, inner in zip((correct, given), inners, strict=True):
        alone = inner is not None and len(_items(inner[1])) == 1 and inner[0] + inner[2] in _PAIRS
        whole = TEXT.fullmatch(answer.strip())
        unwrapped.append(inner[1].strip() if alone and inner else whole[1] if whole else answer)
    if unwrapped != [correct, given]:
        return same(unwrapped[0], unwrapped[1])
    one, other = inners
    if one and other:
        ends = (one[0], one[2]), (other[0], other[2])
        if ends[0] != ends[1] and "<" not in one[0] + other[0] and len(split(one[1])) == 2:
            return False  # intervals
        if (one[0] == "{") != (other[0] == "{"):
            return False
    lists = [_items(inner[1] if inner else answer)
             for inner, answer in zip(inners, (correct, given), strict=True)]  # fmt: skip
    for number, point in enumerate((other, one)):
        if point and point[0] == "(" and inners[number] is None:
            lists[number] = _by_name(lists[number])
    if not one and not other and len(lists[0]) == len(lists[1]) == 1:
        return None
    if (one and not other and len(lists[1]) == 1) or (other and not one and len(lists[0]) == 1):
        return None if len(lists[0]) == 2 or len(lists[1]) == 2 else False
    ordered = any(inner and inner[0] != "{" for inner in inners)
    if ordered:
        return len(lists[0]) == len(lists[1]) and all(map(same, *lists))
    return matched(lists[0], lists[1], same)


def _by_name(items: list[str]) -> list[str]:
    """Return equations such as y = 5, x = 3 in the order of their names, as a point has them."""
    named = {item.partition("=")[0].strip(): item for item in items}
    is_point = len(named) == len(items) > 1 and all(re.fullmatch("[a-z]", name) for name in named)
    return [named[name] for name in sorted(named)] if is_point else items


def _items(text: str) -> list[str]:
    items: list[str] = []
    ungrouped = ungroup(text)
    for part in split(text) if "," in ungrouped else split(ungrouped):
        items += signs(part)
    unique: dict[str, str] = {compact(item): item for item in items}
    return list(unique.values())


def signs(text: str) -> list[str]:
    """Return both readings of a plus or minus."""
    if r"\pm" not in text:
        return [text]
    return [text.replace(r"\pm", sign).replace(r"\mp", other) for sign, other in ("+-", "-+")]


def matched(correct: Sequence[T], given: Sequence[T], same: Callable[[T, T], bool]) -> bool:
    """Return whether two lists are equal without regard to order."""
    if len(correct) != len(given):
        return False
    rest = list(given)
    for item in correct:
        fitting = next((other for other in rest if same(item, other)), None)
        if fitting is None:
            return False
        rest.remove(fitting)
    return True
