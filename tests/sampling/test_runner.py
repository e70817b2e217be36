"""The runner over scripted agents: many prompts, failures, and runs that end in the middle."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toa_trl.sampling.runner
from tests.helpers import EchoAgent, TextReward, completion_of, number, wait
from toa_trl.errors import AgentError, JournalError, RewardError, ToaError, Unavailable
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.runner import Observer, Runner, derive_seed
from toa_trl.search import SEARCHES, make_search
from toa_trl.tasks import make_task
from toa_trl.types import Completion, Message, Play, Prompt, Sampling, Score
from toa_trl.utils.aio import gather_or_cancel

PROMPTS = [Prompt(f"p{i}", f"Question {i}?") for i in range(5)]  # type: ignore[arg-type]
TASK = make_task("alignment")


class Crash(BaseException):
    """The process dies."""


class Seen(Observer):
    """What an observer hears."""

    def __init__(self) -> None:
        self.plays: list[Play] = []

    def played(self, prompt: Prompt, play: Play) -> None:
        self.plays.append(play)


def journal_of(prompts: Sequence[Prompt] = PROMPTS) -> Journal:
    journal = Journal(":memory:", create=True)
    journal.begin({}, prompts)
    return journal


def runner(
    journal: Journal,
    agents: Sequence[Any],
    *,
    search: str = "toa",
    budget: int = 8,
    reward: Any = None,
    **changes: Any,
) -> Runner:
    names = [agent.name for agent in agents]
    return Runner(
        make_search=lambda seed: make_search(search, names, budget, seed),
        agents={agent.name: agent for agent in agents},
        reward_model=reward or TextReward(),
        journal=journal,
        task=changes.pop("task", TASK),
        **changes,
    )


def agents(fails: float = 0.0) -> list[EchoAgent]:
    return [EchoAgent("a", fails), EchoAgent("b", fails)]


def plays(journal: Journal) -> list[list[Play]]:
    return [list(r.plays) for r in journal.rollouts()]


def num_in_flight(it: Runner) -> int:
    return sum(load.in_flight for load in it.loads.values())


def num_timed(it: Runner) -> int:
    return sum(len(load.took_s) for load in it.loads.values())


def scored(journal: Journal) -> list[int]:
    return [len(r.scored) for r in journal.rollouts()]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("plays_in_flight", [1, 3])
def test_spends_the_budget_of_every_prompt(search: str, plays_in_flight: int) -> None:
    journal, seen = journal_of(), Seen()
    it = runner(journal, agents(), search=search, plays_in_flight=plays_in_flight, observers=[seen])
    assert wait(it.run(PROMPTS)) == []
    assert scored(journal) == [8] * 5
    assert len(seen.plays) == 40
    assert (num_in_flight(it), num_timed(it)) == (0, 40)
    for prompt, played in zip(PROMPTS, plays(journal), strict=True):
        assert [p.index for p in played] == list(range(8))
        for p in played:
            assert p.seed == derive_seed(0, prompt.id, p.index)
            assert p.completion is not None
            assert p.completion.text == f"{p.action.agent} {p.seed}"
            assert p.reward == number(prompt.id, p.completion.text)


def test_a_play_counts_as_in_flight_until_it_is_in_the_journal() -> None:
    class Slow(EchoAgent):
        async def generate(self, *given: Any, **settings: Any) -> Completion:
            in_flight.append(it.loads[self.name].in_flight)
            await asyncio.sleep(0.01)
            return await super().generate(*given, **settings)

    in_flight: list[int] = []
    it = runner(journal_of(), [Slow("a")], search="best_of_n", prompts_in_flight=1)
    wait(it.run(PROMPTS[:1]))
    assert in_flight == [1] * 8
    assert all(0.005 < took_s < 5 for took_s in it.loads["a"].took_s)


def test_agents_see_the_drafts_and_the_sampling() -> None:
    class Seeing(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            assert sampling == Sampling(0.1)
            return await super().generate(messages, sampling=sampling, seed=seed)

    journal, one = journal_of(PROMPTS[:1]), Seeing("a")
    wait(runner(journal, [one], budget=6, sampling=Sampling(0.1)).run(PROMPTS[:1]))
    (played,) = plays(journal)
    asked = {seed: messages for messages, seed in one.asked}
    refined = [p for p in played if p.action.refs]
    assert refined
    for p in played:
        content = asked[p.seed][-1].content
        assert "Question 0?" in content
        for ref in p.action.refs:
            assert f"a {played[ref].seed}" in content


@pytest.mark.parametrize("search", SEARCHES)
def test_scheduling_does_not_change_a_result(search: str) -> None:
    results = []
    for prompts_in_flight in (1, 2, 256):
        journal = journal_of()
        wait(
            runner(journal, agents(0.2), search=search, prompts_in_flight=prompts_in_flight).run(
                PROMPTS
            )
        )
        results.append(plays(journal))
    backwards = journal_of()
    wait(runner(backwards, agents(0.2), search=search).run(PROMPTS[::-1]))
    assert results[0] == results[1] == results[2] == plays(backwards)


def test_the_runs_seed_decides() -> None:
    def run(seed: int) -> list[list[Play]]:
        journal = journal_of()
        wait(runner(journal, agents(), seed=seed).run(PROMPTS))
        return plays(journal)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_never_more_plays_or_prompts_in_flight_than_asked_for() -> None:
    running, most = dict.fromkeys((p.id for p in PROMPTS), 0), [0, 0]

    class Watching(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            (at,) = [p.id for p in PROMPTS if p.messages[-1].content in messages[-1].content]
            running[at] += 1
            most[0] = max(most[0], *running.values())
            most[1] = max(most[1], sum(count > 0 for count in running.values()))
            for _ in range(5):
                await asyncio.sleep(0)
            running[at] -= 1
            return Completion(f"{seed}")

    it = runner(
        journal_of(), [Watching("a"), Watching("b")], plays_in_flight=3, prompts_in_flight=2
    )
    wait(it.run(PROMPTS))
    assert most == [3, 2]


def test_a_failed_play_is_recorded_with_its_reason_and_costs_no_budget() -> None:
    journal = journal_of()
    assert wait(runner(journal, agents(0.3)).run(PROMPTS)) == []
    assert scored(journal) == [8] * 5
    failed = [p for played in plays(journal) for p in played if p.error]
    assert failed
    assert all(
        (p.reward, p.completion, p.error) == (None, None, f"{p.action.agent} failed")
        for p in failed
    )


@pytest.mark.parametrize("search", ["parallel", "sequential", "moa", "toa"])
def test_an_agent_that_always_fails_does_not_stop_the_others(search: str) -> None:
    journal = journal_of()
    it = runner(
        journal, [EchoAgent("a"), EchoAgent("dead", 1.0), EchoAgent("c")], search=search, budget=9
    )
    assert wait(it.run(PROMPTS)) == []
    assert scored(journal) == [9] * 5
    assert all(sum(p.error is not None for p in played) <= 3 for played in plays(journal))


@pytest.mark.parametrize(
    "error", [AgentError("gone"), ValueError("a bug"), ConnectionResetError("reset")]
)
def test_prompts_that_were_given_up_are_named_and_tried_again(error: Exception) -> None:
    class Hates(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            if "Question 2?" in messages[-1].content:
                raise error
            return await super().generate(messages, sampling=sampling, seed=seed)

    journal = journal_of()
    assert wait(runner(journal, [Hates("a"), Hates("b")]).run(PROMPTS)) == ["p2"]
    assert scored(journal) == [8, 8, 0, 8, 8]
    reasons = {p.error for p in plays(journal)[2]}
    assert len(plays(journal)[2]) == 6
    assert all(str(error) in (reason or "") for reason in reasons)
    assert wait(runner(journal, agents()).run([PROMPTS[2]])) == []
    assert scored(journal) == [8] * 5


@pytest.mark.parametrize(
    "given",
    [
        RewardError("no"),
        RuntimeError("a bug"),
        [float("nan")],
        [float("inf")],
        [None],
        [],
        [1.0, 2.0],
    ],
)
def test_a_response_that_cannot_be_scored_is_a_failed_play_and_keeps_its_text(given: Any) -> None:
    class Broken(TextReward):
        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            if number(responses[0]) < 0.3:
                if isinstance(given, Exception):
                    raise given
                return given
            return await super().score(prompt, responses)

    journal = journal_of()
    assert wait(runner(journal, agents(), reward=Broken()).run(PROMPTS)) == []
    failed = [p for played in plays(journal) for p in played if p.error]
    assert failed
    assert all(p.completion is not None and p.reward is None for p in failed)
    assert scored(journal) == [8] * 5


def test_stops_when_nothing_works_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toa_trl.sampling.runner, "MAX_GIVEN_UP", 2)
    journal, prompts = journal_of(), PROMPTS
    with pytest.raises(ToaError, match=r"failed on 2 prompts in a row.*[ab] failed"):
        wait(runner(journal, agents(1.0), prompts_in_flight=1).run(prompts))
    assert [bool(played) for played in plays(journal)] == [True, True, False, False, False]


def test_a_prompt_in_between_counts_the_given_up_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toa_trl.sampling.runner, "MAX_GIVEN_UP", 2)

    class Odd(TextReward):
        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            if PROMPTS.index(prompt) % 2:
                raise RewardError("an odd prompt")
            return await super().score(prompt, responses)

    journal = journal_of()
    given_up = wait(runner(journal, agents(), reward=Odd(), prompts_in_flight=1).run(PROMPTS))
    assert given_up == [prompt.id for prompt in PROMPTS[1::2]]


def test_a_dead_agent_that_fails_fast_does_not_end_a_run_whose_other_agent_is_slow() -> None:
    class Slow(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            for _ in range(50):
                await asyncio.sleep(0)
            return await super().generate(messages, sampling=sampling, seed=seed)

    prompts = [Prompt(str(i), f"Question {i}?") for i in range(100)]  # type: ignore[arg-type]
    journal = journal_of(prompts)
    assert wait(runner(journal, [EchoAgent("dead", 1.0), Slow("b")], budget=3).run(prompts)) == []
    assert scored(journal) == [3] * 100


def test_a_journal_that_cannot_be_written_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = journal_of()
    append = journal.append
    written: list[Play] = []

    def full(prompt_id: str, play: Play) -> None:
        if len(written) == 7:
            raise JournalError("disk full")
        append(prompt_id, play)
        written.append(play)

    monkeypatch.setattr(journal, "append", full)
    with pytest.raises(JournalError, match="disk full"):
        wait(runner(journal, agents()).run(PROMPTS))
    assert sum(map(len, plays(journal))) == 7


class CrashAfter(Observer):
    """Dies with the play of that number."""

    def __init__(self, count: int) -> None:
        self.left = count

    def played(self, prompt: Prompt, play: Play) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash


@given(
    search=st.sampled_from(sorted(SEARCHES)),
    crashes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    fails=st.sampled_from([0.0, 0.25]),
    prompts_in_flight=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_a_run_that_dies_goes_on_inside_its_trees(
    search: str, crashes: list[int], fails: float, prompts_in_flight: int, seed: int
) -> None:
    budget = 8
    whole = journal_of()
    given_up = wait(
        runner(whole, agents(fails), search=search, budget=budget, seed=seed).run(PROMPTS)
    )
    if given_up:
        return  # a prompt that was given up gives every agent another chance when the run goes on
    journal = journal_of()
    for count in crashes:
        it = runner(
            journal,
            agents(fails),
            search=search,
            budget=budget,
            seed=seed,
            prompts_in_flight=prompts_in_flight,
            observers=[CrashAfter(count)],
        )
        try:
            wait(it.run(PROMPTS))
        except (Crash, BaseExceptionGroup):
            continue
    wait(runner(journal, agents(fails), search=search, budget=budget, seed=seed).run(PROMPTS))
    assert plays(journal) == plays(whole)


@given(
    search=st.sampled_from(sorted(SEARCHES)),
    crashes=st.lists(st.integers(1, 15), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_a_run_with_plays_in_flight_that_dies_loses_and_doubles_none(
    search: str, crashes: list[int], seed: int
) -> None:
    class Slow(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            for _ in range(random.Random(seed).randrange(6)):
                await asyncio.sleep(0)
            return await super().generate(messages, sampling=sampling, seed=seed)

    journal = journal_of()
    for count in [*crashes, None]:
        it = runner(
            journal, [Slow("a"), Slow("b"), Slow("c")], search=search, seed=seed, plays_in_flight=4
        )
        if count is not None:
            it.observers = [CrashAfter(count)]
        try:
            assert wait(it.run(PROMPTS)) == []
        except (Crash, BaseExceptionGroup):
            assert count is not None
    assert scored(journal) == [8] * 5
    for prompt, played in zip(PROMPTS, plays(journal), strict=True):
        assert [p.index for p in played] == list(range(8))
        assert [p.seed for p in played] == [derive_seed(seed, prompt.id, p.index) for p in played]


def test_a_finished_prompt_asks_nobody() -> None:
    journal = journal_of()
    wait(runner(journal, agents()).run(PROMPTS))
    again = agents()
    assert wait(runner(journal, again).run(PROMPTS)) == []
    assert [agent.asked for agent in again] == [[], []]


def test_text_that_is_no_unicode_does_not_end_the_run() -> None:
    class Half(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            return Completion(f"half an emoji {seed} \ud83e")

    class Constant(TextReward):
        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            return [0.5]

    journal = journal_of()
    wait(
        runner(journal, [Half("a"), EchoAgent("b")], search="parallel", reward=Constant()).run(
            PROMPTS
        )
    )
    assert scored(journal) == [8] * 5


def test_counts_and_rewards_of_numpy_and_torch_are_stored_as_numbers() -> None:
    class Counts(EchoAgent):
        async def generate(self, *args: Any, **kwargs: Any) -> Completion:
            tokens = np.int64(3), torch.tensor(2)
            return Completion("x", "stop", *tokens, flops=np.float32(1.5))  # type: ignore[arg-type]

    class Tensors(TextReward):
        async def score(self, prompt: Prompt, responses: Sequence[str]) -> Any:
            return torch.tensor([0.5])

    journal = journal_of()
    wait(runner(journal, [Counts("a")], search="parallel", reward=Tensors(), budget=1).run(PROMPTS))
    (play,) = journal.plays(PROMPTS[0].id)
    assert play.reward == 0.5
    assert completion_of(play) == Completion("x", "stop", 3, 2, 1.5)


def test_seeds_are_the_same_everywhere_and_differ() -> None:
    assert derive_seed(0, "p", 1) == 1617512221
    seeds = {
        derive_seed(run, prompt, index)
        for run in range(3)
        for prompt in ("a", "b", "1")
        for index in range(50)
    }
    assert len(seeds) == 450
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(0, "1", 2) != derive_seed(0, 1, 2)


class Going(EchoAgent):
    """Is away from its `count`-th call on, until it has been looked after `looks` times."""

    def __init__(self, name: str, count: int, looks: float) -> None:
        super().__init__(name)
        self.count, self.looks = count, looks
        self.gone = False

    @property
    def can_be_away(self) -> bool:
        return True

    @property
    def away(self) -> str | None:
        if self.gone:
            self.looks -= 1
            self.gone = self.looks > 0
        return f"{self.name} is gone" if self.gone else None

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        self.count -= 1
        self.gone = self.gone or self.count == 0
        if self.gone:
            raise Unavailable("nobody there")
        return await super().generate(messages, sampling=sampling, seed=seed)


@pytest.mark.parametrize("search", SEARCHES)
def test_an_agent_that_goes_and_comes_back_leaves_no_trace(
    search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toa_trl.sampling.runner, "LOOK_S", 0.001)
    whole, journal = journal_of(), journal_of()
    wait(runner(whole, [EchoAgent("a")], search=search).run(PROMPTS))
    assert wait(runner(journal, [Going("a", 7, 30)], search=search).run(PROMPTS)) == []
    assert plays(journal) == plays(whole)


@pytest.mark.parametrize("search", ["parallel", "sequential", "moa", "toa"])
@pytest.mark.parametrize("plays_in_flight", [1, 3])
def test_the_others_go_on_without_an_agent_that_is_gone(search: str, plays_in_flight: int) -> None:
    journal, seen = journal_of(), Seen()
    going = Going("a", 7, float("inf"))
    it = runner(
        journal,
        [going, EchoAgent("b")],
        search=search,
        plays_in_flight=plays_in_flight,
        observers=[seen],
    )
    assert wait(it.run(PROMPTS)) == []
    assert scored(journal) == [8] * 5
    assert len(going.asked) == 6
    assert not any(play.error for played in plays(journal) for play in played)
    assert going.gone  # a play was dropped
    assert (num_in_flight(it), num_timed(it)) == (0, len(seen.plays))


def test_without_any_agent_the_run_waits_and_then_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toa_trl.sampling.runner, "LOOK_S", 0.001)
    journal = journal_of()
    gone = [Going("a", 7, float("inf")), Going("b", 7, float("inf"))]
    with pytest.raises(ToaError, match=r"no agent has answered for 0\.05 s: a is gone; b is gone"):
        wait(runner(journal, gone, patience_s=0.05).run(PROMPTS))
    assert sum(scored(journal)) == 12
    wait(runner(journal, agents()).run(PROMPTS))
    assert scored(journal) == [8] * 5


def test_without_the_reward_model_the_run_stops_and_records_no_failure() -> None:
    class Gone(TextReward):
        left = 9

        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            self.left -= 1
            if self.left < 0:
                raise Unavailable("the reward model is gone")
            return await super().score(prompt, responses)

    journal = journal_of()
    with pytest.raises(Unavailable, match="the reward model is gone"):
        wait(runner(journal, agents(), reward=Gone()).run(PROMPTS))
    assert sum(scored(journal)) == sum(map(len, plays(journal))) == 9


def test_an_agent_that_says_it_is_unavailable_but_not_away_fails() -> None:
    journal = journal_of()
    broken = EchoAgent("a", 1.0, Unavailable("no, for no reason"))
    assert wait(runner(journal, [broken]).run(PROMPTS[:1])) == ["p0"]
    assert {play.error for play in plays(journal)[0]} == {"no, for no reason"}


def test_with_enough_what_is_in_flight_is_waited_for_and_nothing_is_given_up() -> None:
    journal, seen = journal_of(), Seen()
    it = runner(
        journal, agents(), plays_in_flight=2, observers=[seen], enough=lambda: len(seen.plays) >= 11
    )
    assert wait(it.run(PROMPTS)) == []
    assert 11 <= sum(scored(journal)) <= 11 + 10
    assert (num_in_flight(it), num_timed(it)) == (0, len(seen.plays))
    assert wait(runner(journal, agents(), plays_in_flight=2).run(PROMPTS)) == []
    assert scored(journal) == [8] * 5


def test_a_failure_that_was_paid_for_is_recorded_with_its_tokens() -> None:
    paid = Completion("", "length", 3, 4, reasoning="hm")
    broken = EchoAgent("a", 0.4, AgentError("nothing but reasoning", paid))
    journal = journal_of()
    wait(runner(journal, [broken, EchoAgent("b")]).run(PROMPTS))
    failed = [play for played in plays(journal) for play in played if play.error]
    assert failed
    assert {play.completion for play in failed} == {paid}


def test_a_prompt_that_fails_while_an_agent_is_away_ends_and_the_others_go_on() -> None:
    class TooLong(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            if "Question 2" in messages[-1].content:
                raise AgentError("too long")
            return await super().generate(messages, sampling=sampling, seed=seed)

    for search in ("parallel", "sequential", "moa", "toa"):
        journal = journal_of()
        both = [Going("b", 1, float("inf")), TooLong("a")]
        assert wait(runner(journal, both, search=search).run(PROMPTS)) == ["p2"]
        assert scored(journal) == [8, 8, 0, 8, 8]
        assert len(plays(journal)[2]) == 3


def test_quick_failures_do_not_end_a_run_whose_plays_are_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toa_trl.sampling.runner, "MAX_GIVEN_UP", 5)
    monkeypatch.setattr(toa_trl.sampling.runner, "LOOK_S", 0.01)

    class Odd(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            if any(f"Question {number}?" in messages[-1].content for number in range(1, 60, 2)):
                raise AgentError("too long")
            await asyncio.sleep(0.05)
            return await super().generate(messages, sampling=sampling, seed=seed)

    prompts = [Prompt(f"p{i}", f"Question {i}?") for i in range(60)]  # type: ignore[arg-type]
    journal = journal_of(prompts)
    given_up = wait(runner(journal, [Odd("a")], budget=3, prompts_in_flight=10).run(prompts))
    assert sorted(given_up) == sorted(prompt.id for prompt in prompts[1::2])


def test_patience_begins_with_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toa_trl.sampling.runner, "LOOK_S", 0.01)

    class Slow(Going):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            await asyncio.sleep(1.2)
            return await super().generate(messages, sampling=sampling, seed=seed)

    journal = journal_of()
    it = runner(journal, [Slow("a", 2, 10)], budget=2, patience_s=1.0, prompts_in_flight=1)
    assert wait(it.run(PROMPTS[:1])) == []


def test_a_limit_ends_the_waiting_for_agents_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toa_trl.sampling.runner, "LOOK_S", 0.01)
    journal, looks = journal_of(), iter(range(1000))
    it = runner(journal, [Going("a", 1, float("inf"))], enough=lambda: next(looks) > 50)
    assert wait(it.run(PROMPTS)) == []


HALF = "half an emoji: \ud83d"


@pytest.mark.parametrize(
    "given",
    [
        Completion(HALF, reasoning=HALF),
        AgentError(HALF, Completion("", "length", 1, 2, reasoning=HALF)),
    ],
)
def test_half_a_surrogate_pair_ends_no_run(given: Any) -> None:
    class Cut(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            if isinstance(given, Exception):
                raise given
            return given

    journal = journal_of()
    wait(runner(journal, [Cut("a")], budget=2).run(PROMPTS[:1]))
    first = plays(journal)[0][0]
    assert first.completion is not None
    assert first.completion.reasoning == "half an emoji: ?"
    assert (first.completion.text, first.error) in [
        ("half an emoji: ?", None),
        ("", "half an emoji: ?"),
    ]


@pytest.mark.parametrize(
    ("given", "kept"), [(np.array([1.5], np.float32), 1.5), ([Fraction(1, 2)], 0.5)]
)
def test_numbers_of_other_types_are_stored_as_numbers(given: Any, kept: float) -> None:
    class Other(TextReward):
        async def score(self, prompt: Prompt, responses: Sequence[str]) -> Any:
            return given

    journal = journal_of()
    wait(runner(journal, agents(), reward=Other(), budget=2).run(PROMPTS[:1]))
    assert [play.reward for play in plays(journal)[0]] == [kept, kept]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([], "one Score is needed"),
        ([Score(1.0), Score(1.0)], "one Score is needed"),
        ([1.0], "one Score is needed"),
        (None, "TypeError"),
    ],
)
def test_what_is_not_one_score_fails_the_play(given: Any, error: str) -> None:
    class Other(TextReward):
        async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> Any:
            return given

    journal = journal_of()
    wait(runner(journal, agents(), reward=Other(), budget=2).run(PROMPTS[:1]))
    assert all(play.reward is None and error in str(play.error) for play in plays(journal)[0])


def test_details_of_numpy_are_stored_as_numbers() -> None:
    class Details(TextReward):
        async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> Any:
            return [Score(np.float32(0.5), np.int64(7), np.float16(1.5))]  # type: ignore[arg-type]

    journal = journal_of()
    wait(runner(journal, agents(), reward=Details(), budget=1).run(PROMPTS[:1]))
    (play,) = plays(journal)[0]
    assert (play.reward, play.reward_flops, play.second_reward) == (0.5, 7, 1.5)


def test_an_agent_that_cancels_itself_has_failed() -> None:
    journal = journal_of()
    broken = EchoAgent("a", 1.0)
    broken.raises = asyncio.CancelledError()  # type: ignore[assignment]
    assert wait(runner(journal, [broken, EchoAgent("b")], prompts_in_flight=1).run(PROMPTS)) == []
    assert scored(journal) == [8] * 5


def test_the_task_reads_every_answer_and_shows_the_reward_what_it_may_see() -> None:
    class Translator(EchoAgent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            done = await super().generate(messages, sampling=sampling, seed=seed)
            text = '""' if seed % 5 == 0 else f'Here is the translation:\n"{done.text}"'
            return Completion(text, "stop", 3, 2)

    class Looking(TextReward):
        seen: ClassVar[set[tuple[Any, str]]] = set()

        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            self.seen.update((prompt.messages, text) for text in responses)
            return await super().score(prompt, responses)

    prompts = [Prompt(f"p{i}", "Asked.", {"source": f"Quelle {i}."}) for i in range(3)]  # type: ignore[arg-type]
    journal, one = journal_of(prompts), Translator("a")
    wait(
        runner(journal, [one], budget=8, task=make_task("translation"), reward=Looking()).run(
            prompts
        )
    )
    done = [p for played in plays(journal) for p in played]
    good = {p.completion.text for p in done if p.reward is not None and p.completion}
    assert good == {f"a {p.seed}" for p in done if p.seed % 5}
    assert {text for _, text in Looking.seen} == good
    assert {messages for messages, _ in Looking.seen} == {
        (Message("user", f"Quelle {i}."),) for i in range(3)
    }
    failed = [p for p in done if p.reward is None]
    assert failed
    assert all(p.error == "no translation in the answer '\"\"'" and p.completion for p in failed)
    drafts = [
        messages[-1].content for messages, _ in one.asked if "<draft>" in messages[-1].content
    ]
    assert drafts
    assert not any("Here is the translation" in text for text in drafts)


def test_a_second_reward_is_recorded_and_steers_nothing() -> None:
    class Two(TextReward):
        async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
            first = await self.score(prompt, responses)
            return [Score(r, 2.0, None if r < 0.2 else -r) for r in first]

    alone, together = journal_of(), journal_of()
    wait(runner(alone, agents()).run(PROMPTS))
    wait(runner(together, agents(), reward=Two()).run(PROMPTS))
    assert [[(p.action, p.reward, p.seed) for p in one] for one in plays(alone)] == [
        [(p.action, p.reward, p.seed) for p in one] for one in plays(together)
    ]
    rewards = [(p.reward or 0.0, p.second_reward) for played in plays(together) for p in played]
    assert all(second == (None if first < 0.2 else -first) for first, second in rewards)
    assert {second is None for _, second in rewards} == {True, False}
    assert all(p.second_reward is None for played in plays(alone) for p in played)


@pytest.mark.parametrize("setting", ["prompts_in_flight", "plays_in_flight"])
def test_no_more_lanes_are_opened_than_there_is_work(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    async def counting(lanes: Any) -> None:
        made = list(islice(lanes, 1000))
        opened.append(len(made))
        await gather_or_cancel(made)

    monkeypatch.setattr(toa_trl.sampling.runner, "gather_or_cancel", counting)
    journal = journal_of()
    changes: dict[str, Any] = {setting: 10**9}
    wait(runner(journal, agents(), budget=3, **changes).run(PROMPTS))
    assert max(opened) <= len(PROMPTS)
    assert scored(journal) == [3] * len(PROMPTS)


@pytest.mark.parametrize(("before", "during"), [(700, 50_000), (0, 0), (90_000, 90_000)])
def test_garbage_is_collected_less_often_during_a_run(before: int, during: int) -> None:
    seen, usual = list[int](), gc.get_threshold()

    class Watching(Observer):
        def played(self, prompt: Prompt, play: Play) -> None:
            seen.append(gc.get_threshold()[0])

    try:
        gc.set_threshold(before)
        wait(runner(journal_of(), agents(), observers=[Watching()]).run(PROMPTS[:1]))
        assert set(seen) == {during}
        assert gc.get_threshold()[0] == before
    finally:
        gc.set_threshold(*usual)
