"""The bundled world: word problems of 2 to 4 chained steps, worked solutions, and a verifier.

    Eva has 16 coins. Next we add 8. Then 6 are lost. Now there are 3 times as many. How many
    coins are there now?
    So 16 + 8 = 24, 24 - 6 = 18, 18 * 3 = 54.
    #### 54

Half of the problems chain one operation, half mix them, so that the best agent depends on the
problem. A problem's *core* (start and steps, without names and phrases) decides its split, so that
no problem is in two splits under different names. Standard library only.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
LARGEST = 72  # every quantity of a right solution lies in 2..LARGEST
OPERATIONS = {"add": "+", "subtract": "-", "multiply": "*"}
OPERANDS = {"+": (2, 9), "-": (2, 9), "*": (2, 6)}  # inclusive
KINDS = ("add", "add", "subtract", "subtract", "multiply", *["mixed"] * 5)  # drawn evenly
NUM_STEPS = {"add": (3, 4), "subtract": (3, 4), "multiply": (2, 3), "mixed": (3, 4)}
NAMES = ("Ann", "Ben", "Eva", "Max", "Mia", "Tom")
THINGS = ("apples", "books", "cards", "coins", "cups", "stamps")
PHRASES = {
    "+": ("Next we add {n}.", "Then {n} are found.", "Now {name} buys {n} more."),
    "-": ("Next we take {n} away.", "Then {n} are lost.", "Now {name} sells {n}."),
    "*": ("Now there are {n} times as many.", "Then we make it {n} times as many."),
}
SLIPS = (-1, -2, -10)  # one sign only: slips that cancel would give a right answer
# percent of all cores
SPLITS = {"train": 55, "synthesis": 20, "validation": 5, "heldout": 12, "compare": 8}
# rows of the files in data/
SIZES = {"synthesis": 480, "validation": 200, "heldout": 480, "compare": 240}


@dataclass(frozen=True, slots=True)
class Problem:
    """One word problem."""

    text: str
    start: int
    steps: tuple[tuple[str, int], ...]  # (operation sign, operand)
    kind: str  # a key of NUM_STEPS

    @property
    def values(self) -> tuple[int, ...]:
        """The right quantity after each step."""
        return tuple(_chain(self.start, self.steps))

    @property
    def answer(self) -> str:
        """The right final quantity."""
        return str(self.values[-1])

    @property
    def split(self) -> str:
        """The split that the problem belongs to."""
        return split_of(self.start, self.steps)


@dataclass(frozen=True, slots=True)
class Skill:
    """Probabilities in [0, 1] of working correctly."""

    right: Mapping[str, float]  # by operation sign: of a right step without a draft
    keep: float = 0.8  # of keeping a right step of a draft; less if the drafts disagree


def apply(sign: str, value: int, operand: int) -> int:
    """Return the quantity after one step."""
    return value + operand if sign == "+" else value - operand if sign == "-" else value * operand


def split_of(start: int, steps: Sequence[tuple[str, int]]) -> str:
    """Return the split of a core, by a hash, so that it depends on nothing else."""
    core = f"{start}" + "".join(f"{sign}{n}" for sign, n in steps)
    percentile = int.from_bytes(hashlib.sha256(core.encode()).digest()[:8], "big") % 100
    for split, percent in SPLITS.items():
        if percentile < percent:
            return split
        percentile -= percent
    raise AssertionError("SPLITS add up to 100")


def draw(rng: random.Random, split: str, kind: str | None = None) -> Problem:
    """Return a random problem of a split; without `kind` one of KINDS."""
    kind = kind or rng.choice(KINDS)
    while True:
        num_steps = rng.randint(*NUM_STEPS[kind])
        steps: list[tuple[str, int]] = []
        for _ in range(num_steps):
            signs = [OPERATIONS[kind]] if kind != "mixed" else ["+", "-", "*"]
            if kind == "mixed" and steps:
                signs.remove(steps[-1][0])
            sign = rng.choice(signs)
            steps.append((sign, rng.randint(*OPERANDS[sign])))
        start = rng.randint(2, LARGEST)
        if all(2 <= v <= LARGEST for v in _chain(start, steps)) and split_of(start, steps) == split:
            return Problem(_write_text(rng, start, steps), start, tuple(steps), kind)


def solution(problem: Problem, values: Sequence[int] | None = None) -> str:
    """Return the worked solution; `values` are the quantities, by default the right ones."""
    values = problem.values if values is None else values
    before = (problem.start, *values)
    steps = zip(before, problem.steps, values, strict=False)
    equations = ", ".join(f"{b} {sign} {n} = {v}" for b, (sign, n), v in steps)
    return f"So {equations}.\n#### {values[-1]}"


def work(
    rng: random.Random, problem: Problem, skill: Skill, drafts: Sequence[Sequence[int]] = ()
) -> tuple[int, ...]:
    """Return the quantities that this skill computes, given the quantities of drafts.

    Each step continues from the quantity before it, and a draft informs it only if it had the same
    quantity there: after correcting the first step of a draft, the rest must be computed anew.
    """
    values: list[int] = []
    value = problem.start
    for i, (sign, n) in enumerate(problem.steps):
        seen = [d[i] for d in drafts if (d[i - 1] if i else problem.start) == value]
        right = apply(sign, value, n)
        keep = skill.keep * seen.count(right) / max(1, len(seen))
        chance = 1 - (1 - skill.right[sign]) * (1 - keep)
        value = right if rng.random() < chance else slip(rng, problem, i, value, set(seen))
        values.append(value)
    return tuple(values)


def slip(
    rng: random.Random, problem: Problem, i: int, before: int, seen: set[int] | None = None
) -> int:
    """Return a wrong quantity after step `i`, often a draft's, that keeps later ones positive."""
    sign, n = problem.steps[i]
    right = apply(sign, before, n)
    lowest = 1  # the least quantity from which the chain stays >= 1
    for later, n in reversed(problem.steps[i + 1 :]):
        least = {"+": lowest - n, "-": lowest + n, "*": -(-lowest // n)}
        lowest = max(1, least[later])
    wrong = [right + by for by in SLIPS if right + by >= lowest] or [right + 1]
    copies = sorted(w for w in seen or () if w in wrong)
    return rng.choice(copies if copies and rng.random() < 0.5 else wrong)


def verify(response: Any, answer: str) -> bool:
    """Return whether the number after the last "####" is the answer."""
    if not isinstance(response, str):
        return False
    _, marker, end = response.rpartition("####")
    match = re.match(r"[ \t]*(-?[0-9]+)(?!\w|[.,][0-9])", end)
    # compared as text: int() refuses numbers of thousands of digits
    return bool(marker) and match is not None and _plain(match[1]) == _plain(str(answer).strip())


def steps_of(response: str) -> list[tuple[int, str, int, int]]:
    """Return the equations of a solution: (quantity before, sign, operand, quantity after)."""
    steps = re.findall(r"\b([0-9]{1,9}) ([-+*]) ([0-9]{1,9}) = ([0-9]{1,9})\b", response)
    return [(int(b), sign, int(n), int(v)) for b, sign, n, v in steps]


def num_right(problem: Problem, response: str) -> int:
    """Return the number of right steps before the first mistake."""
    right = zip((problem.start, *problem.values), problem.steps, problem.values, strict=False)
    wanted = [(b, sign, n, v) for b, (sign, n), v in right]
    done = steps_of(response)
    return next((i for i, step in enumerate(wanted) if done[i : i + 1] != [step]), len(wanted))


def accuracy_reward(
    completions: Sequence[Any], answer: Sequence[str], **kwargs: Any
) -> list[float]:
    """Return 1.0 or 0.0 per completion (text or messages), as a TRL reward function."""
    texts = [c if isinstance(c, str) else c[-1]["content"] if c else "" for c in completions]
    return [float(verify(text, a)) for text, a in zip(texts, answer, strict=True)]


def make_split(split: str) -> list[dict[str, Any]]:
    """Return the rows of data/<split>.jsonl: distinct problems, evenly over KINDS."""
    rng = random.Random(f"toa_trl demo {split}")
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < SIZES[split]:
        kind = KINDS[len(rows) % len(KINDS)]
        p = draw(rng, split, kind)
        row = {"prompt": p.text, "answer": p.answer, "kind": kind, "steps": len(p.steps)}
        rows.setdefault(p.text, {"id": f"{split}-{len(rows):03}", **row})
    return list(rows.values())


def write_data(folder: Path = DATA) -> None:
    """Write every split's JSONL file."""
    for split in SIZES:
        lines = (json.dumps(row) + "\n" for row in make_split(split))
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def parse(text: str) -> Problem:
    """Return the problem that a text describes."""
    start = re.search(r"has ([0-9]+)", text)
    assert start, text
    steps: list[tuple[str, int]] = []
    for sentence in text.split(". ")[1:-1]:
        for sign, phrases in PHRASES.items():
            for phrase in phrases:
                pattern = phrase.rstrip(".").format(n="([0-9]+)", name="[A-Z][a-z]+")
                match = re.fullmatch(pattern, sentence)
                if match:
                    steps.append((sign, int(match[1])))
    kinds = {sign for sign, _ in steps}
    kind = next((k for k, s in OPERATIONS.items() if kinds == {s}), "mixed")
    return Problem(text, int(start[1]), tuple(steps), kind)


def _write_text(rng: random.Random, start: int, steps: Sequence[tuple[str, int]]) -> str:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    sentences = [f"{name} has {start} {things}."]
    for sign, n in steps:
        sentences.append(rng.choice(PHRASES[sign]).format(n=n, name=name))
    return " ".join([*sentences, f"How many {things} are there now?"])


def _chain(start: int, steps: Sequence[tuple[str, int]]) -> Iterator[int]:
    for sign, n in steps:
        start = apply(sign, start, n)
        yield start


def _plain(number: str) -> str:
    sign, digits = ("-", number[1:]) if number.startswith("-") else ("", number)
    digits = digits.lstrip("0") or "0"
    return digits if digits == "0" else sign + digits
