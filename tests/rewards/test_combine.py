from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import TextReward, asynchronous, closed, number, wait
from toa_trl.errors import ConfigError, RewardError, Unavailable
from toa_trl.rewards import RewardModel, make_reward
from toa_trl.types import Prompt, Score

PROMPT = Prompt("p", "What?", {"answer": "5", "reference": "It is five."})  # type: ignore[arg-type]
WORDS = {"kind": "length"}
CHARACTERS = {"kind": "length", "unit": "characters"}
TEXTS = ["one two", "three", "", "a b c d"]


class Fixed(RewardModel):
    """A reward model with given scores or `Score`s, or one that raises."""

    def __init__(self, scores: Any = (), raises: BaseException | None = None) -> None:
        self.scores, self.raises = scores, raises
        self.checked = self.closed = 0

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        return [score.value for score in await self.score_details(prompt, responses)]

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        if self.raises:
            raise self.raises
        scores = self.scores(responses) if callable(self.scores) else self.scores
        return [score if isinstance(score, Score) else Score(score) for score in scores]

    async def check(self) -> None:
        self.checked += 1

    async def aclose(self) -> None:
        self.closed += 1


def scores(entry: dict[str, Any], texts: Sequence[str] = TEXTS) -> list[float]:
    return wait(make_reward(entry).score(PROMPT, texts))


def details(entry: dict[str, Any], texts: Sequence[str] = TEXTS) -> list[Score]:
    return wait(make_reward(entry).score_details(PROMPT, texts))


def part(**changes: Any) -> dict[str, Any]:
    return {"rewards": [{"reward": WORDS, **changes}]}


def combined(kind: str, one: Any, other: Any) -> RewardModel:
    """A combination of two parts."""
    if kind == "held_out":
        return make_reward({"kind": kind, "reward": one, "second": other})
    return make_reward({"kind": kind, "rewards": [{"reward": one}, {"reward": other}]})


def hashed(*salt: object) -> Callable[[Sequence[str]], list[float]]:
    return lambda texts: [10 * number(*salt, text) - 5 for text in texts]


def test_a_weighted_sum_of_standardised_rewards() -> None:
    rewards = [
        {"weight": 0.5, "mean": 3.0, "std": 2.0, "reward": WORDS},
        {"weight": -0.1, "reward": CHARACTERS},
    ]
    expected = [0.5 * (len(t.split()) - 3.0) / 2.0 - 0.1 * len(t) for t in TEXTS]
    assert scores({"kind": "weighted_sum", "rewards": rewards}) == pytest.approx(expected)


def test_the_minimum_of_standardised_rewards() -> None:
    rewards = [{"mean": 1.0, "std": 0.5, "reward": WORDS}, {"reward": CHARACTERS}]
    assert scores({"kind": "minimum", "rewards": rewards}) == [
        min((len(t.split()) - 1) / 0.5, len(t)) for t in TEXTS
    ]


def test_objects_and_functions_are_parts_as_they_are() -> None:
    def trl(completions: Any, answer: list[str], **columns: Any) -> list[float]:
        return [
            float(len(c[0]["content"]) + int(a)) for c, a in zip(completions, answer, strict=True)
        ]

    rewards = [
        {"reward": Fixed([1.0])},
        {"reward": trl},
        {"reward": "toa_trl.rewards.function:length_reward"},
    ]
    assert scores({"kind": "minimum", "rewards": rewards[:2]}, ["abc"]) == [1.0]
    assert scores({"kind": "weighted_sum", "rewards": rewards[:2]}, ["abc"]) == [9.0]
    with pytest.raises(ConfigError, match=r"reward\.rewards\[2\]\.reward: must be a mapping"):
        make_reward({"kind": "minimum", "rewards": rewards})


finite = st.floats(-1e6, 1e6)
parts = st.lists(
    st.tuples(finite, finite, st.floats(1e-3, 1e3), st.lists(finite, min_size=3, max_size=3)),
    min_size=1,
)


def summed(given: Any) -> list[float]:
    rewards = [{"weight": w, "mean": m, "std": s, "reward": Fixed(raw)} for w, m, s, raw in given]
    return scores({"kind": "weighted_sum", "rewards": rewards}, ["a", "b", "c"])


@given(parts, st.randoms(use_true_random=False))
def test_a_weighted_sum_does_not_depend_on_the_order_of_its_parts(given: Any, rng: Any) -> None:
    shuffled = list(given)
    rng.shuffle(shuffled)
    assert summed(shuffled) == summed(given)


@given(parts, parts, st.floats(-100, 100))
def test_a_weighted_sum_is_linear(one: Any, other: Any, factor: float) -> None:
    scale = sum(abs(w * (r - m) / s) for w, m, s, raw in (*one, *other) for r in raw) * (
        1 + abs(factor)
    )
    both = summed([*one, *((factor * w, m, s, raw) for w, m, s, raw in other)])
    expected = [a + factor * b for a, b in zip(summed(one), summed(other), strict=True)]
    assert both == pytest.approx(expected, abs=1e-12 * scale + 1e-300)


def test_the_mean_and_std_of_each_part_leave_mean_0_and_std_1() -> None:
    raw = [3.0, 5.0, 10.0]
    mean = sum(raw) / 3
    std = math.sqrt(sum((value - mean) ** 2 for value in raw) / 3)
    standardised = summed([(1.0, mean, std, raw)])
    assert sum(standardised) == pytest.approx(0, abs=1e-12)
    assert sum(value**2 for value in standardised) / 3 == pytest.approx(1)


@given(
    st.integers(),
    st.one_of(st.none(), st.integers(), st.just(math.nan), st.just(math.inf)),
    st.lists(st.text()),
)
def test_the_second_reward_never_steers(salt: int, second: Any, texts: list[str]) -> None:
    first = hashed("first", salt)
    if second is None:
        other = Fixed(raises=RewardError("no"))
    else:
        other = Fixed(
            hashed(second) if isinstance(second, int) else lambda texts: [second for _ in texts]
        )
    got = details({"kind": "held_out", "reward": Fixed(first), "second": other}, texts)
    assert [score.value for score in got] == first(texts)
    expected = hashed(second)(texts) if isinstance(second, int) else [None] * len(texts)
    assert [score.second for score in got] == expected


def test_the_second_rewards_failures_are_warned_of_once_and_never_a_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def sometimes(texts: Sequence[str]) -> list[float]:
        if any("bad" in text for text in texts):
            raise ValueError("cannot read this")
        return [1.0 for _ in texts]

    model: Any = make_reward(
        {"kind": "held_out", "reward": TextReward(), "second": Fixed(sometimes)}
    )
    texts = ["good", "bad", "good too", "bad too"]
    got = [wait(model.score_details(PROMPT, [text]))[0] for text in texts]
    assert [score.value for score in got] == wait(TextReward().score(PROMPT, texts))
    assert [score.second for score in got] == [1.0, None, 1.0, None]
    assert model.num_failed == 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "reward 'held_out': second: ValueError: cannot read this" in record.getMessage()


@pytest.mark.parametrize("error", [RewardError("no"), KeyError("bug")])
def test_a_second_that_fails_costs_no_score(error: Exception) -> None:
    (got,) = details(
        {"kind": "held_out", "reward": Fixed([2.0]), "second": Fixed(raises=error)}, ["x"]
    )
    assert got == Score(2.0)


def test_a_second_whose_servers_are_gone_stops_the_run_as_the_first_would() -> None:
    with pytest.raises(Unavailable):
        scores(
            {
                "kind": "held_out",
                "reward": Fixed([2.0]),
                "second": Fixed(raises=Unavailable("gone")),
            },
            ["x"],
        )


@pytest.mark.parametrize("kind", ["weighted_sum", "minimum", "held_out"])
def test_a_held_out_reward_inside_another_is_refused(kind: str) -> None:
    inner = {"kind": "held_out", "reward": {"kind": "length"}, "second": {"kind": "length"}}
    with pytest.raises(
        ConfigError, match=r"^reward\.re.*: held_out cannot be part of another reward"
    ):
        combined(kind, inner, inner)


def test_the_texts_of_a_judge_are_those_of_the_combination() -> None:
    judge = {"kind": "judge", "agent": {"name": "j", "engine": "scripted"}, "rubric": "Be strict."}
    nested: Any = make_reward({"kind": "held_out", "reward": {"kind": "length"}, "second": judge})
    assert nested.texts["reward 'held_out': second"]["rubric"] == "Be strict."


@pytest.mark.parametrize("kind", ["weighted_sum", "minimum", "held_out"])
def test_flops_add_up_where_they_are_known(kind: str) -> None:
    def flops(*known: float | None) -> float | None:
        model = combined(kind, *(Fixed([Score(1.0, each)]) for each in known))
        (got,) = wait(model.score_details(PROMPT, ["x"]))
        return got.flops

    assert (flops(3.0, 4.0), flops(3.0, None), flops(None, 4.0)) == (7.0, 3.0, 4.0)
    assert flops(None, None) is None


@pytest.mark.parametrize("kind", ["weighted_sum", "minimum", "held_out"])
@pytest.mark.parametrize(
    ("part", "raised", "named"),
    [
        (Fixed(raises=RewardError("no score")), RewardError, "PLACE: no score"),
        (Fixed(raises=KeyError("bug")), RewardError, "PLACE: KeyError: 'bug'"),
        (Fixed([1.0, 2.0, 3.0]), RewardError, "PLACE: 2 scores are needed"),
        (
            Fixed([1.0, math.nan]),
            RewardError,
            "PLACE: ValueError: a score must be a finite number, not nan",
        ),
        (Fixed(raises=Unavailable("no server")), Unavailable, "^no server$"),
    ],
)
def test_a_part_that_fails_is_named(kind: str, part: Any, raised: Any, named: str) -> None:
    if kind == "held_out":
        entry, place = {"reward": part, "second": Fixed([0.0, 0.0])}, "reward"
    else:
        entry, place = {"rewards": [{"reward": WORDS}, {"reward": part}]}, r"rewards\[1\]"
    with pytest.raises(raised, match=named.replace("PLACE", f"reward '{kind}': {place}")):
        scores({"kind": kind, **entry}, ["x", "y"])


def test_a_part_that_gives_numbers_instead_of_scores_is_named() -> None:
    class Numbers(Fixed):
        async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> Any:
            return [1.0 for _ in responses]

    rewards = [{"reward": WORDS}, {"reward": Numbers()}]
    with pytest.raises(RewardError, match=r"rewards\[1\]: Scores are needed, not \[1.0\]"):
        scores({"kind": "minimum", "rewards": rewards}, ["x"])


@pytest.mark.parametrize("kind", ["weighted_sum", "minimum"])
def test_a_sum_that_is_no_finite_number_is_an_error(kind: str) -> None:
    rewards = [{"reward": Fixed([1e95]), "std": 1e-300}]
    with pytest.raises(
        RewardError, match=rf"reward '{kind}': a score must be a finite number, not inf"
    ):
        scores({"kind": kind, "rewards": rewards}, ["x"])


@pytest.mark.parametrize("kind", ["weighted_sum", "minimum", "held_out"])
@asynchronous
async def test_parts_are_scored_at_once_and_given_up_together(kind: str) -> None:
    class Meeting:
        """Scores once both parts are there; a part that fails ends the other."""

        def __init__(self) -> None:
            self.arrived, self.both, self.cancelled = 0, asyncio.Event(), 0

        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            self.arrived += 1
            if self.arrived % 2 == 0:
                self.both.set()
                if responses == ["fail"]:
                    raise RewardError("as asked")
            try:
                await self.both.wait()
                await asyncio.sleep(0 if responses == ["go"] else 60)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return [1.0]

    meeting = Meeting()
    model = combined(kind, meeting, meeting)
    assert len(await model.score(PROMPT, ["go"])) == 1
    if kind != "held_out":
        with pytest.raises(RewardError, match="as asked"):
            await model.score(PROMPT, ["fail"])
        assert meeting.cancelled == 1


@pytest.mark.parametrize("kind", ["weighted_sum", "minimum", "held_out"])
def test_checks_and_endings_reach_every_part(kind: str) -> None:
    one, other = Fixed([1.0]), Fixed([1.0])
    model = combined(kind, one, other)

    async def unwell() -> None:
        raise ConfigError("no server there")

    async def run() -> None:
        await model.check()
        await model.aclose()
        assert [(m.checked, m.closed) for m in (one, other)] == [(1, 1), (1, 1)]
        one.check = one.aclose = unwell  # type: ignore[method-assign]
        with pytest.raises(ConfigError, match="no server there"):
            await model.check()
        with pytest.raises(ConfigError, match="no server there"):
            await model.aclose()
        assert other.closed == 2

    wait(run())


def test_combinations_nest() -> None:
    inner = {"kind": "minimum", "rewards": [{"reward": WORDS}, {"reward": CHARACTERS, "std": 10}]}
    outer = {
        "kind": "weighted_sum",
        "rewards": [{"reward": inner, "weight": 2}, {"reward": {"kind": "math"}}],
    }
    model: Any = make_reward({"kind": "held_out", "reward": outer, "second": {"kind": "chrf"}})
    got = closed(model, model.score_details(PROMPT, ["It is five.", "5 5"]))
    # "5 5" names no single answer
    assert [score.value for score in got] == pytest.approx([2.2, 0.6])
    assert got[0].second == pytest.approx(100)


@pytest.mark.parametrize(
    ("kind", "entry", "named"),
    [
        ("weighted_sum", {}, ": the key 'rewards' is missing"),
        ("weighted_sum", {"rewards": []}, r"\.rewards: must have at least 1 entries, not \[\]"),
        ("weighted_sum", {"rewards": WORDS}, r"\.rewards: must be a list"),
        (
            "weighted_sum",
            {"rewards": [WORDS]},
            r"\.rewards\[0\]: unknown key 'kind'; known: reward,",
        ),
        (
            "weighted_sum",
            {"rewards": [{"reward": WORDS}, "x"]},
            r"\.rewards\[1\]: must be a mapping",
        ),
        (
            "weighted_sum",
            {"rewards": [{"weight": 1}]},
            r"\.rewards\[0\]: the key 'reward' is missing",
        ),
        ("weighted_sum", part(std=0), r"\.rewards\[0\]\.std: must be > 0, not 0"),
        ("weighted_sum", part(mean=math.nan), r"\.rewards\[0\]\.mean: must be a finite number"),
        ("weighted_sum", part(weight="1"), r"\.rewards\[0\]\.weight: must be a number, not '1'"),
        (
            "weighted_sum",
            {"rewards": [{"reward": WORDS}, {"reward": {"kind": "lenght"}}]},
            r"\.rewards\[1\]\.reward: unknown kind 'lenght'.*did you mean 'length'",
        ),
        (
            "minimum",
            part(reward={"kind": "length", "unit": "pages"}),
            r"\.rewards\[0\]\.reward\.unit: must be one of 'words' or 'characters', not 'pages'",
        ),
        (
            "minimum",
            part(reward={"kind": "weighted_sum", **part(std=-1)}),
            r"\.rewards\[0\]\.reward\.rewards\[0\]\.std: must be > 0, not -1",
        ),
        ("minimum", part(weight=2), r"\.rewards\[0\]: unknown key 'weight'"),
        ("held_out", {"reward": WORDS}, ": the key 'second' is missing"),
        ("held_out", {"reward": WORDS, "second": {"kind": "x"}}, r"\.second: unknown kind 'x'"),
        ("held_out", {"reward": None, "second": WORDS}, r"\.reward: must be a mapping"),
    ],
)
def test_a_nested_mistake_names_the_path_of_its_key(
    kind: str, entry: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^reward{named}"):
        make_reward({"kind": kind, **entry})


def test_a_reward_does_not_depend_on_what_was_scored_before() -> None:
    rewards = [{"reward": WORDS, "mean": 2, "std": 3}, {"reward": CHARACTERS}]
    model: RewardModel = make_reward({"kind": "weighted_sum", "rewards": rewards})
    first = wait(model.score(PROMPT, TEXTS))
    wait(model.score(PROMPT, ["word " * 1000] * 100))
    assert wait(model.score(PROMPT, TEXTS)) == first
