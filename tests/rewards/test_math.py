from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.helpers import asynchronous, closed, wait
from toa_trl.errors import ConfigError, RewardError
from toa_trl.rewards import make_reward
from toa_trl.rewards.answers import boxed, final_answer, judge, stated_answer
from toa_trl.rewards.math import MathReward
from toa_trl.rewards.notation import normalise
from toa_trl.types import Prompt
from toa_trl.utils.files import read_jsonl

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = (GOLDEN / "math_answers.jsonl", GOLDEN / "math_kinds.jsonl")
CASES = [case for path in FILES for _, case in read_jsonl(path)]
DATA = Path(__file__).parents[2] / "../shared/data/math"
MONSTER = r"\boxed{(10^{10^{10}})!}"


def asked(answer: Any, **columns: Any) -> Prompt:
    return Prompt("p", "How many?", {"answer": answer, **columns})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> Iterator[MathReward]:
    """One for all tests that need no worker of their own: a worker takes a second to start."""
    model = MathReward()
    yield model
    wait(model.aclose())


def score(model: MathReward, answer: Any, responses: list[str]) -> list[float]:
    return wait(model.score(asked(answer), responses))


def gold(name: str) -> list[str]:
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not here")
    return [row["answer"] for _, row in read_jsonl(DATA / name)]


@pytest.mark.no_cover  # traced, sympy takes three times as long
@pytest.mark.heavy
def test_hand_made_answers_are_judged_as_by_a_person() -> None:
    assert len(CASES) >= 60
    assert len({(case["answer"], case["response"]) for case in CASES}) == len(CASES)
    assert [
        case for case in CASES if judge(case["answer"], case["response"]) != case["right"]
    ] == []


@pytest.mark.parametrize(("name", "count"), [("gsm8k_test.jsonl", 1319), ("math500.jsonl", 500)])
def test_every_gold_answer_is_right_against_itself(name: str, count: int) -> None:
    answers = gold(name)
    assert len(answers) == count
    forms = [r"So the answer is $\boxed{{{}}}$.", "So it is.\n#### {}"][
        : 2 if "gsm8k" in name else 1
    ]
    wrong = [
        (answer, form)
        for answer in answers
        for form in forms
        if not judge(answer, form.format(answer))
    ]
    assert wrong == []


@pytest.mark.no_cover  # traced, sympy takes three times as long
def test_math_verify_itself_finds_every_gold_answer_right() -> None:
    from math_verify import parse, verify

    # normalising must not break any of them
    for answer in {*gold("math500.jsonl"), *gold("gsm8k_test.jsonl")}:
        raw, normalised = (parse(rf"\boxed{{{text}}}") for text in (answer, normalise(answer)))
        assert verify(raw, raw), answer
        assert verify(raw, normalised), answer


def test_the_answer_to_another_problem_is_wrong() -> None:
    answers = sorted(set(gold("math500.jsonl")))
    nexts = [*answers[1:], answers[0]]
    same = {
        (answer, other)
        for answer, other in zip(answers, nexts, strict=True)
        if judge(answer, boxed(other))
    }
    # which a person takes for the same
    degrees = {(number, rf"{number}^\circ") for number in ("30", "36", "120")}
    assert same == {*degrees, ("15", r"15\mbox{ cm}^2")}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\frac{1}{\sqrt{2}}} is it", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"$\boxed{1}$, $\boxed{3}$, and $\boxed{2}$", "1, 3, 2"),
        (r"\boxed{1} and \boxed{1}", "1"),
        (r"\boxed{1}\boxed{2}", "1, 2"),
        (r"\boxed{1}, then \boxed{2} and \boxed{3}", "2, 3"),
        (r"\boxed{1} and \boxed{}", "1"),
        (r"\boxed{1} in a \boxed as asked", "1"),
        (r"\boxed{1}, as \boxed{your answer}", "1"),
        (r"\boxed{\text{answer}}", None),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{(0, 1\}}", r"(0, 1\}"),
        (r"a { b \boxed{1}", "1"),
        (r"} \boxed{1}", "1"),
        ("\\boxed\n{ 1 }", "1"),
        (r"\boxed 7.", "7."),
        (r"\boxed{}", None),
        (r"\boxed", None),
        (r"\boxedx{1}", None),
        ("#### 5", "5"),
        ("#### 5\n#### 6\n", "6"),
        ("#### 5\nDone.", "5"),
        ("#### **5**", "5"),
        ("#### Tuesday", "Tuesday"),
        ("#### Conclusion\nIt is Tuesday.", None),
        ("#### Step 2\n#### 3. Add them up", None),
        ("##### 5", None),
        ("####", None),
        ("The answer is 5.", None),
        ("", None),
    ],
)
def test_the_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 5. I checked it: 2 + 3 = 5.", "5"),
        ("The answer is 5, not 6.", "5"),
        ("The answer is not 5.", None),
        ("The answer is not 5 but 6.", "6"),
        ("The answer is 5. Wait, that is wrong. It is 6.", "6"),
        ("The answer is 5. Wait, let me recheck.", None),
        ("First the answer is 5.\nThen the answer is 6.", "6"),
        ("If the answer is 5, we are done.", None),
        ("The answer is 5 or 6.", "5 or 6"),
        ("The answer is $(3, 4)$.", "(3, 4)"),
        ("The answer to the question is 5.", "5"),
        ("答案是5。", "5"),
        ("5", "5"),
        ("**D**", "D"),
        ("So there are 5 apples, because 2 + 3 = 5.", "5"),
        ("There are 5 apples and 6 pears in the box.", None),
        ("Is it 5 or not, who can say?", None),
        ("I do not know the answer at all.", None),
        ("", None),
    ],
)
def test_the_answer_that_a_text_states(text: str, answer: str | None) -> None:
    assert stated_answer(text) == answer


def test_a_long_response_is_read_once() -> None:
    assert final_answer(r"\boxed{" * 100_000) is None
    assert final_answer("{" * 100_000 + r"\boxed{5}" + "#### x\n" * 10_000) == "5"
    for text in ("the answer is 5 ", "$", "wait. ", "1 and ", "5 = ", "(", r"\{", "， ", "^("):
        assert not judge("7", text * 5000)
        assert not judge("7", boxed(text * 200))


@pytest.mark.parametrize(
    ("answer", "other", "same"),
    [
        ("1/2", r"\frac12", True),
        ("0.5", r"50\%", True),
        ("5", "five", False),
        ("5", r"\boxed{5}", True),
        ("", "", False),
        ("5", "", False),
    ],
)
def test_final_answers_are_compared_with_each_other(
    model: MathReward, answer: str, other: str, same: bool
) -> None:
    assert wait(model.equivalent(answer, other)) == same


@pytest.mark.parametrize("answer", [5, 5.0, "5", "#### 5", r"\boxed{5}", ["5"], ("5",), [5]])
def test_the_column_may_hold_a_number_or_a_solution(model: MathReward, answer: Any) -> None:
    assert score(model, answer, [boxed("5"), boxed("6")]) == [1.0, 0.0]


def test_a_list_in_the_column_holds_all_solutions(model: MathReward) -> None:
    responses = [boxed("7, 5"), boxed("5"), boxed("5, 8"), r"\boxed{5} and \boxed{7}"]
    assert score(model, ["5", r"\boxed{7}"], responses) == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "answer",
    [
        {"value": "5"},
        float("nan"),
        float("inf"),
        ["5", None],
        ["5", {"value": "5"}],
        [["5"]],
        "  ",
        "$",
        r"\boxed{}$$" * 500,
    ],
)
def test_a_column_without_an_answer_is_an_error_and_no_score(
    model: MathReward, answer: Any
) -> None:
    with pytest.raises(RewardError, match=r"reward 'math'.*'p'.* is needed, not "):
        score(model, answer, [boxed("5")])


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"solution": "5", "level": 2}, r"'answer' is missing.*'p'.*solution, level"),
        ({}, r"'answer' is missing.*none"),
        ({"answer": None}, r"'answer' is empty"),
        ({"answer": ""}, r"'answer' is empty"),
    ],
)
def test_a_missing_column_is_an_error_that_names_those_that_are_there(
    metadata: Any, named: str
) -> None:
    model = make_reward({"kind": "math"})
    with pytest.raises(RewardError, match=rf"reward 'math'.*{named}"):
        wait(model.score(Prompt("p", "How many?", metadata), [r"\boxed{5}"]))  # type: ignore[arg-type]


def test_another_column_may_be_named() -> None:
    model = make_reward({"kind": "math", "column": "gold"})
    assert closed(model, model.score(asked("6", gold="5"), [r"\boxed{5}"])) == [1.0]


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), "10", None, True])
def test_a_limit_that_is_none_is_refused(timeout_s: Any) -> None:
    with pytest.raises(ConfigError, match=r"^reward\.timeout_s: must be "):
        make_reward({"kind": "math", "timeout_s": timeout_s})


@pytest.mark.parametrize(
    "text", ["\x00", "\ud800", "(" * 5000, "1" * 50_000, r"\boxed{" + "1" * 50_000 + "}", "$" * 999]
)
def test_nonsense_is_not_right_and_raises_nothing(model: MathReward, text: str) -> None:
    assert score(model, "5", [text, r"\boxed{5}"]) == [0.0, 1.0]


def test_what_computes_for_ever_is_an_error_and_costs_only_itself() -> None:
    async def run() -> tuple[list[Any], int]:
        model = MathReward(timeout_s=1.0)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)

        counting = asyncio.create_task(count())
        try:
            texts = [
                r"\boxed{5}",
                MONSTER,
                r"\boxed{6}",
                MONSTER.replace("!", "!!"),
                r"\boxed{5}",
                r"\boxed{5.0}",
            ]
            scores = await asyncio.gather(
                *(model.score(asked("5"), [t]) for t in texts), return_exceptions=True
            )
            return scores, turns
        finally:
            counting.cancel()
            await model.aclose()

    scores, turns = wait(run())
    assert [score for score in scores if isinstance(score, list)] == [[1.0], [0.0], [1.0], [1.0]]
    for place in (1, 3):
        assert isinstance(scores[place], RewardError)
        assert str(scores[place]).startswith("reward 'math': math-verify on '(10^{10^{10")
        assert "did not finish in 1 s of processor time" in str(scores[place])
    assert turns > 10  # the event loop went on meanwhile


def children(pid: int | None = None) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children()}


def test_a_worker_that_dies_is_replaced_and_all_of_them_end() -> None:
    before = children()

    async def run() -> list[Any]:
        model = MathReward()
        scores: list[Any] = [await model.score(asked("5"), [r"\boxed{5}"])]
        (worker,) = children() - before
        os.kill(worker, signal.SIGKILL)
        # it was idle: nobody loses a score
        scores.append(await model.score(asked("5"), [r"\boxed{5}"]))
        (worker,) = children() - before
        monster = asyncio.create_task(model.score(asked("5"), [MONSTER]))
        while not monster.done():  # once may be chance, and is forgiven
            await asyncio.sleep(0.2)
            for worker in children() - before:
                os.kill(worker, signal.SIGKILL)
        scores += await asyncio.gather(monster, return_exceptions=True)
        scores.append(await model.score(asked("5"), [r"\boxed{5}"]))
        assert len(children() - before) <= 2
        await model.aclose()
        assert children() == before
        await model.aclose()
        scores.append(await model.score(asked("5"), [r"\boxed{5}"]))  # and it can go on
        await model.aclose()
        return scores

    first, idle, killed, after, again = wait(run())
    assert [first, idle, after, again] == [[1.0]] * 4
    assert "ended with code -9" in str(killed)
    assert isinstance(killed, RewardError)
    assert children() == before


@asynchronous
async def test_closing_ends_what_computes() -> None:
    before = children()
    model = MathReward(timeout_s=60.0)
    asking = [asyncio.create_task(model.score(asked("5"), [MONSTER])) for _ in range(5)]
    while len(children() - before) < 2:
        await asyncio.sleep(0.01)
    for each in asking:
        each.cancel()
    await model.aclose()
    assert children() == before


PROGRAM = """
import asyncio, sys
from toa_trl.rewards import make_reward
from toa_trl.types import Prompt

async def run():
    model = make_reward({"kind": "math", "timeout_s": 2})
    print(await model.score(Prompt("p", "?", {"answer": "5"}), [r"\\boxed{5}"]), flush=True)
    if len(sys.argv) > 1:
        await model.score(Prompt("p", "?", {"answer": "5"}), [sys.argv[1]])

asyncio.run(run())  # neither a guard against being imported again nor aclose()
"""


@pytest.mark.parametrize("text", [None, MONSTER])
def test_a_program_that_forgets_to_close_ends_all_the_same(
    tmp_path: Path, text: str | None
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "program.py"), *([text] if text else [])]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=env
    )
    assert done.stdout == "[1.0]\n"
    assert done.returncode == (1 if text else 0)
    assert ("RewardError" in done.stderr) == bool(text)


def test_a_worker_does_not_outlive_a_program_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), MONSTER],
        stdout=subprocess.PIPE,
        env=env,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "[1.0]\n"
    (worker,) = children(program.pid)
    program.kill()
    program.wait()
    program.stdout.close()
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)  # a worker in the midst of a monster ends with its processor time


def test_judging_needs_no_process() -> None:
    assert judge("5", r"\boxed{5}")
    assert not judge("5", r"\boxed{6}")


NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.fractions(max_denominator=99).map(lambda x: rf"\frac{{{x.numerator}}}{{{x.denominator}}}"),
    st.sampled_from([r"\sqrt{2}", r"\pi", "e", r"2^{2005}", r"\frac{1}{3^{90}}", "0.125", "12\\%"]),
)
FORMULAS = st.recursive(
    NUMBERS | st.sampled_from("xyRrhmn"),
    lambda part: st.tuples(part, st.sampled_from("+-"), part).map(
        lambda three: "({} {} {})".format(*three)
    ),
    max_leaves=4,
)
ANSWERS = st.one_of(
    FORMULAS,
    st.lists(NUMBERS, min_size=2, max_size=3, unique=True).map(", ".join),
    st.tuples(FORMULAS, FORMULAS).map(lambda pair: "({}, {})".format(*pair)),
    st.tuples(st.sampled_from(["<", ">", r"\le", r"\ne"]), NUMBERS).map(
        lambda p: "x {} {}".format(*p)
    ),
    st.text("ab xyzé中0123456789.,%$^_+-=<>()[]|!:;'\"", max_size=12),
)


@pytest.mark.no_cover  # see above
@given(ANSWERS)
def test_a_correct_answer_in_a_box_is_right(answer: str) -> None:
    assume(normalise(answer))
    assert judge(boxed(answer), boxed(answer))
    assert judge(boxed(answer), f"So the answer is ${boxed(answer)}$.")


@pytest.mark.no_cover  # see above
@settings(max_examples=30)
@given(FORMULAS, FORMULAS)
def test_formulas_are_equal_in_both_directions(one: str, other: str) -> None:
    assert judge(one, boxed(other)) == judge(other, boxed(one))
    assert judge(f"{one} + {other}", boxed(f"{other} + {one}"))
    assert not judge(one, boxed(f"{one} + 1"))


@given(st.text(st.characters(exclude_characters="7७７𝟕七Ⅶ", exclude_categories=["Nd", "No", "Nl"])))
def test_text_without_the_number_is_never_right(text: str) -> None:
    for answer in ("7", r"\frac{7}{3}", r"7, x", r"\text{seven}"):
        assert not judge(answer, text)
        assert not judge(answer, boxed(text))
