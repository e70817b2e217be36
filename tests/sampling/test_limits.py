from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import EchoAgent, TextReward, play
from toa_trl import TOASampler
from toa_trl.errors import ConfigError
from toa_trl.rewards.base import RewardModel
from toa_trl.rewards.combine import MinimumPart, MinimumReward
from toa_trl.rewards.http import HTTPReward
from toa_trl.rewards.judge import JudgeReward
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.limits import Meter, cost_of, has_price, prices_of
from toa_trl.sampling.merging import merge_runs
from toa_trl.types import AgentCounts, Completion, Message, Play, Prompt, Sampling, Spending

PROMPT = Prompt("p", (Message("user", "Hi"),))
SCRIPTED = {"name": "s", "engine": "scripted"}
PRICES = {"a": {"prompt": 1.0, "completion": 3.0}}


def test_adds_up_what_the_journal_holds_and_what_comes() -> None:
    meter = Meter({"max_cost": 1.0}, PRICES)
    meter.resume(
        {"a": AgentCounts(3, 1, 100_000, 100_000, 5.0), "b": AgentCounts(1, 0, 10, 10, 1.0)},
        reward_flops=2.0,
    )
    assert (meter.tokens, meter.flops) == (200_020, 8.0)
    assert meter.cost == pytest.approx(0.4)
    assert meter.reached is None
    meter.played(PROMPT, play(0, 0.5, tokens=(0, 200_000)))  # by agent a
    meter.played(PROMPT, play(1, None))  # a failure without a completion
    assert meter.cost == pytest.approx(1.0)
    assert meter.reached is not None
    assert "max_cost of 1 is reached" in meter.reached
    assert "400,020 tokens" in meter.reached


def test_a_new_meter_has_spent_nothing_and_unknown_flops_are_none() -> None:
    meter = Meter({}, {})
    meter.played(PROMPT, play(0, 0.5, tokens=(10, 5), flops=None))
    assert (meter.tokens, meter.flops, meter.cost) == (15, 2.0, 0.0)  # of the reward model
    assert meter.spent == "15 tokens, 2 FLOPs"
    priced = Meter({}, PRICES)
    priced.played(PROMPT, play(0, 0.5, tokens=(1_000_000, 0)))
    assert priced.spent.endswith(" FLOPs, a cost of 1")


@pytest.mark.parametrize(
    ("entry", "priced"),
    [
        ({"price": {"prompt": 1.0}}, True),
        ({"price": {}, "kind": "judge"}, False),
        ({"kind": "held_out", "second": {"price": {"prompt": 1.0}}}, True),
        ([{"kind": "math"}, {"price": {"prompt": 1.0}}], True),
        ([{"kind": "math"}], False),
        ("price", False),
    ],
)
def test_a_price_is_found_wherever_it_stands(entry: Any, priced: bool) -> None:
    assert has_price(entry) is priced


@pytest.mark.parametrize("limits", [{"max_tokens": 15}, {"max_flops": 3}])
def test_each_limit(limits: dict[str, Any]) -> None:
    meter = Meter(limits, {})
    assert meter.reached is None
    meter.played(PROMPT, play(0, 0.5, tokens=(10, 5), flops=1.0))  # and 2 of the reward model
    assert meter.reached is not None
    assert next(iter(limits)) in meter.reached


def test_a_failure_that_was_paid_for_counts() -> None:
    meter = Meter({}, {})
    meter.played(
        PROMPT,
        Play(0, play(0, 1.0).action, Completion("", "length", 3, 4), None, "nothing but reasoning"),
    )
    assert meter.tokens == 7


def test_flops_that_are_not_known_are_said(caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter({"max_flops": 10}, {})
    for index in range(3):
        meter.played(PROMPT, play(index, 0.5, flops=None))
    assert caplog.text.count("FLOPs of agent 'a' are unknown") == 1


def test_an_object_may_have_a_price() -> None:
    class Plain:
        name = "plain"

        def __init__(self) -> None:
            self.price = {"prompt": 2.0}

        async def generate(self, messages: Any, *, sampling: Any, seed: int) -> Completion:
            return Completion("text")

    echo = EchoAgent("echo")
    assert prices_of([{**SCRIPTED, "price": {}}, Plain(), echo]) == {
        "s": {},
        "plain": {"prompt": 2.0},
    }
    echo.price = {"prompt": 3.0}  # type: ignore[attr-defined]
    assert prices_of([echo]) == {"echo": {"prompt": 3.0}}


def test_a_recorded_agent_of_which_only_the_name_is_known_has_no_price() -> None:
    counts = {"plain": AgentCounts(1, 1, 10, 10, 1.0)}
    assert cost_of({"agents": ["plain"]}, counts, Spending()) is None


@pytest.mark.parametrize(
    ("limits", "prices", "named"),
    [
        ({"max_token": 3}, {}, "did you mean 'max_tokens'"),
        ({"max_tokens": 0}, {}, "max_tokens"),
        ({"max_flops": "many"}, {}, "max_flops"),
        ({"max_cost": 1.0}, {}, "price"),
        ({}, {"a": {"promt": 1}}, r"agents\.a\.price: .*promt"),
        ({}, {"a": {"prompt": -1}}, r"agents\.a\.price\.prompt"),
        ({}, {"a": 3}, r"agents\.a\.price"),
    ],
)
def test_mistakes_are_named(limits: Any, prices: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Meter(limits, prices)


def test_a_run_ends_in_order_at_its_limit_and_goes_on_with_more(tmp_path: Any) -> None:
    def sample(limits: dict[str, Any]) -> Any:
        agents = [EchoAgent("a"), EchoAgent("b")]  # 5 tokens a play
        sampler = TOASampler(
            agents, TextReward(), budget=6, limits=limits, prompts_in_flight=2, progress=False
        )
        return sampler.sample([f"Question {i}?" for i in range(5)], tmp_path)

    first = sample({"max_tokens": 50})
    assert first.limit is not None
    assert "max_tokens of 50 is reached" in first.limit
    num_scored = sum(len(rollout.scored) for rollout in first)
    assert 10 <= num_scored <= 12  # what was in flight was waited for
    assert first.given_up == ()
    assert first.unfinished in (3, 4)
    second = sample({})
    assert second.limit is None
    assert [len(rollout.scored) for rollout in second] == [6] * 5
    whole = TOASampler([EchoAgent("a"), EchoAgent("b")], TextReward(), budget=6, progress=False)
    assert [r.plays for r in second] == [
        r.plays for r in whole.sample([f"Question {i}?" for i in range(5)])
    ]


@given(
    limit=st.integers(1, 200),
    prompts_in_flight=st.integers(1, 6),
    plays_in_flight=st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_a_limit_is_exceeded_by_less_than_one_play_per_lane(
    limit: int, prompts_in_flight: int, plays_in_flight: int
) -> None:
    sampler = TOASampler(
        [EchoAgent("a"), EchoAgent("b")],
        TextReward(),
        search="parallel",
        budget=20,
        limits={"max_tokens": limit},
        prompts_in_flight=prompts_in_flight,
        plays_in_flight=plays_in_flight,
        progress=False,
    )
    rollouts = sampler.sample([f"Question {number}?" for number in range(6)])
    num_plays = sum(len(rollout.plays) for rollout in rollouts)
    spent, per_play = 5 * num_plays, 5  # 3 prompt and 2 completion tokens
    if spent < 6 * 20 * 5:  # all of the budget
        assert limit <= spent < limit + per_play * prompts_in_flight * plays_in_flight


class Judge(EchoAgent):
    """Rates with 5 for 110 tokens; kills its process at the n-th rating."""

    identity = "judge"  # when it dies decides no result

    def __init__(self, dies_at: int = 0) -> None:
        super().__init__("judge")
        self._dies_at = dies_at

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        self.asked.append((tuple(messages), seed))
        if len(self.asked) == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return Completion("Rating: [[5]]", "stop", 100, 10)


def judged(judge: Judge, **options: Any) -> TOASampler:
    options = {"budget": 4, "prompts_in_flight": 1, "progress": False, **options}
    return TOASampler([EchoAgent("a")], JudgeReward(judge), **options)


def spending_of(run_dir: Path) -> Spending:
    with closing(Journal(run_dir / "journal.sqlite", lock=False)) as journal:
        return journal.reward_spending


def test_what_a_judge_spent_is_known_after_a_kill(tmp_path: Path) -> None:
    """A limit of 450 tokens holds over both sessions: a play costs 5 and its rating 110."""
    prompts = ["Why?", "How?"]
    child = os.fork()
    if not child:
        judged(Judge(dies_at=4)).sample(prompts, tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert spending_of(tmp_path) == Spending(330)
    judge = Judge()
    rollouts = judged(judge, limits={"max_tokens": 450}).sample(prompts, tmp_path)
    assert rollouts.limit is not None
    assert len(judge.asked) == 1
    assert spending_of(tmp_path) == Spending(440)


def test_what_a_judge_spent_is_carried_into_a_merged_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        prompts = [{"id": name, "prompt": f"Who is {name}?"}]
        judged(Judge()).sample(prompts, tmp_path / name)._journal.close()
    merge_runs([tmp_path / "one", tmp_path / "two"], tmp_path / "merged")
    assert spending_of(tmp_path / "merged") == Spending(880)


def test_estimated_tokens_of_rewards_are_said_once_where_they_are_limited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for limits in ({}, {"max_tokens": 100}):
        meter = Meter(limits, {})
        for _ in range(2):
            meter.add_reward(Spending(5, 0.0, 5))
    assert caplog.text.count("the reward model: its server reports no usage") == 1


class Uncounted(EchoAgent):
    """Reports no tokens; notes which warnings there were before its first play."""

    def __init__(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        super().__init__(name)
        self._caplog = caplog
        self.said_before = ""

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        self.said_before = self.said_before or self._caplog.text or "nothing"
        return Completion("text")


SCORED = HTTPReward("http://127.0.0.1:9/score", price={"prompt": 1.0})


@pytest.mark.parametrize(
    ("reward", "limits", "said"),
    [
        (TextReward(), {"max_cost": 9}, "limits.max_cost: agent 'b' without a price"),
        (SCORED, {"max_cost": 9}, "limits.max_cost: agent 'b' without a price"),
        (JudgeReward(Judge()), {"max_cost": 9}, "agent 'b', reward 'judge' without a price"),
        (
            MinimumReward([MinimumPart(reward=r) for r in (SCORED, JudgeReward(Judge()))]),
            {"max_cost": 9},
            "agent 'b', reward 'judge' without a price",
        ),
        (JudgeReward(Judge()), {"max_tokens": 9}, None),
        (JudgeReward(Judge()), {}, None),
    ],
)
def test_who_counts_as_free_is_said(
    reward: RewardModel, limits: Any, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    Meter(limits, PRICES).warn_at_start("ab", reward, {})
    assert said in caplog.text if said else not caplog.text


def test_a_price_of_the_reward_is_enough_for_a_limit_on_cost() -> None:
    TOASampler([EchoAgent("a")], SCORED, limits={"max_cost": 9}, progress=False)
    with pytest.raises(ConfigError, match="needs an agent with a price"):
        TOASampler([EchoAgent("a")], JudgeReward(Judge()), limits={"max_cost": 9}, progress=False)


def test_what_is_known_not_to_count_is_said_before_the_first_play(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who has no price at the first start, and whose tokens are estimated at a resume."""
    said = []
    for limits in ({"max_tokens": 3, "max_cost": 1.0}, {"max_tokens": 100}):
        caplog.clear()
        agent, priced = Uncounted("u", caplog), {**SCRIPTED, "price": {"prompt": 1.0}}
        sampler = TOASampler(
            [agent, priced], TextReward(), "parallel", 4, limits=limits, progress=False
        )
        sampler.sample(["Why?"], tmp_path)._journal.close()
        said.append(agent.said_before)
    assert "agent 'u' without a price" in said[0]
    assert "reports no usage" not in said[0]
    assert "agent 'u': its server reports no usage" in said[1]
    assert caplog.text.count("reports no usage") == 1
