"""Final answers with conditions: congruences, families over the integers, inequalities and sets.

Each comparison returns None where it does not apply; `same` compares parts of the answers.
"""

import re
from itertools import chain

from toa_trl.rewards import values
from toa_trl.rewards.notation import Same, compact, inside, split
from toa_trl.rewards.structures import matched, signs

_SIGN = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>]")
_OR = re.compile(r"\s*(?:\bor\b|\\(?:lor|vee)\b)\s*")
_AND = re.compile(r"\s*(?:\band\b|\\(?:land|wedge)\b)\s*")
_CONGRUENCE = re.compile(
    r"(?:(.*?)\\equiv)?(.+?)[\s(,]*\\?(?:pmod|bmod|mod)(?![A-Za-z])\s*\{?\s*([^{}()]+?)\s*\}?\)?\s*"
)
_INTEGERS = r"(?:\\mathbb\s*\{?\s*[ZN]\s*\}?|\\[ZN]|\{?[ZN]\}?)(?:\s*[_^]\s*\{?[^{}]*\}?)?"
_FAMILY = re.compile(
    r"(.+?)[\s,;(]*(?:\\text\s*\{)?\s*(?:(?:where|for|with|and|all|any|some|integers?)\s*)*\}?\s*"
    rf"([A-Za-z])\s*(?:\\in\s*({_INTEGERS})|(?:\\text\s*\{{)?\s*(?:is|are|being)?\s*(?:an?|any)?\s*"
    r"(integer)s?\s*\}?)\s*\)?"
)
_ANY_INTEGER = re.compile(
    r"\\text\s*\{[\s,]*(?:for|where|with)?\s*(?:any|all|every|some|an?)?\s*integers?\s*\}\s*([A-Za-z])$"
)
_BUILDER = re.compile(r"\s*([^|:]+?)\s*(?:\||:)\s*(.+)", re.S)
_REALS = re.compile(r"\s*\\in\s*(?:\\mathbb\s*\{?\s*R\s*\}?|\\R|R)\s*$")


def congruences(correct: str, given: str, same: Same) -> bool | None:
    """Compare residues, and their moduli if both have one."""
    one, other = (
        _CONGRUENCE.fullmatch(each) if "mod" in each else None for each in (correct, given)
    )
    if not one and not other:
        return None
    if not other:
        return bool(one and not one[1] and same(one[2].strip(), given))
    if not one:  # the residue
        return same(correct, other[2].strip())
    if not same(one[3].strip(), other[3].strip()):
        return False
    variables = [(each[1] or "").strip() for each in (one, other)]
    if all(variables) and variables[0].casefold() != variables[1].casefold():
        return False
    residues = [each[2] for each in (one, other)]
    modulus = one[3].strip()
    if modulus.isdigit() and int(modulus):
        residues = [
            re.sub(r"-?\d+", lambda match: str(int(match[0]) % int(modulus)), each)
            if re.fullmatch(r"(?:[-\d\s,]|and|or)+", each)
            else each
            for each in residues
        ]
    return same(residues[0].strip(), residues[1].strip())


def families(correct: str, given: str, same: Same) -> bool | None:
    r"""Compare k\pi, k \in \mathbb{Z} under renaming of k and another first member."""
    if not all(r"\in" in each or "integer" in each for each in (correct, given)):
        return None
    one, other = (
        _FAMILY.fullmatch(_ANY_INTEGER.sub(r", \1 \\in \\mathbb{Z}", each))
        for each in (correct, given)
    )
    if not one or not other:
        return None
    domains = [re.sub(r"\\mathbb|[\s{}\\]", "", each[3] or "Z") for each in (one, other)]
    if domains[0] != domains[1]:
        return False
    sets = [
        split(
            re.sub(
                rf"(?<![\\A-Za-z]){each[2]}(?![a-z])|(?<=\\pi ){each[2]}",
                r" \\kappa ",
                re.sub(r"^[A-Za-z]\s*=", "", each[1]),
            )
        )
        for each in (one, other)
    ]
    members = [list(chain.from_iterable(map(signs, parts))) for parts in sets]
    if domains[0] != "Z":  # with a first member
        return matched(members[0], members[1], same)
    return matched(members[0], members[1], values.same_family)


def builders(correct: str, given: str, same: Same) -> bool | None:
    r"""Compare \{x \mid x > 2\} under renaming of x, or its condition with an interval."""
    conditions = []
    for answer in (correct, given):
        inner = inside(answer)
        found = _BUILDER.fullmatch(inner[1]) if inner and inner[0] == "{" else None
        conditions.append((_REALS.sub("", found[1]), found[2]) if found else None)
    one, other = conditions
    if one and other:
        if all(re.fullmatch("[A-Za-z]", each[0]) for each in (one, other)):
            letter = rf"(?<![\\A-Za-z]){other[0]}(?![A-Za-z])"
            other = one[0], re.sub(letter, one[0], other[1])
        return same(one[0], other[0]) and same(one[1], other[1])
    if one and re.fullmatch("[A-Za-z]", one[0]):
        return same(one[1], given)
    if other and re.fullmatch("[A-Za-z]", other[0]):
        return same(correct, other[1])
    return None


def sets_of_reals(correct: str, given: str, same: Same) -> bool | None:
    """Compare inequalities joined by "or" and "and" with intervals."""
    joined = []
    for answer in (correct, given):
        text = re.sub(r"\\text\s*\{\s*(or|and)\s*\}", r" \1 ", answer)
        text = re.sub(r"^[A-Za-z]\s*\\in\s*(?=[(\[\\])", "", text)
        for pattern, sign in ((_OR, r"\cup"), (_AND, r"\cap")):
            parts = split(text, pattern)
            if len(parts) > 1 and all(_SIGN.search(part) or r"\infty" in part for part in parts):
                text = f" {sign} ".join(parts)
        if text.startswith("<") and text.endswith(">"):
            return None  # a vector
        joined.append(f"x {text}" if _SIGN.match(text) else text)
    if [correct, given] != joined:
        return same(joined[0], joined[1])
    if not any(_SIGN.search(text) or r"\cup" in text or r"\cap" in text for text in joined):
        return None
    if not all(_SIGN.search(t) or r"\cup" in t or inside(t) or "mathbb" in t or r"\infty" in t
               for t in joined):  # fmt: skip
        return compact(joined[0]) == compact(joined[1])
    lists = [split(text) for text in joined]
    is_list = len(lists[0]) > 1 or len(lists[1]) > 1
    if is_list and not inside(joined[0]) and not inside(joined[1]):
        return matched(lists[0], lists[1], same)
    return values.same_sets(*joined)
