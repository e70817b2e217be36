"""Runs with an adaptive allocation: spent, resumed, grown, and refused where it does not fit."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import toa_trl.sampling.runner
from tests.helpers import EchoAgent, TextReward, number
from toa_trl.errors import AgentError, ConfigError
from toa_trl.rollouts import Rollouts
from toa_trl.sampler import TOASampler
from toa_trl.sampling.allocation import make_allocation
from toa_trl.sampling.journal.grants import read_grants
from toa_trl.search import Search
from toa_trl.types import Completion, Flops, Message, Play, Prompt, Sampling

PROMPTS = [f"Question {i}?" for i in range(40)]
ADAPTIVE = {"kind": "adaptive", "max_plays": 40}
ANYTIME = ["toa", "greedy", "ab_mcts", "parallel", "sequential", "moa"]


class Died(BaseException):
    """The process dies."""


class Agent(EchoAgent):
    """Dies at a call; its class is not part of what is compared."""

    identity = "agent"

    def __init__(self, name: str, dies_at: int | None = None, fails: float = 0.0) -> None:
        super().__init__(name, fails)
        self.dies_at = dies_at

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        if len(self.asked) == self.dies_at:
            raise Died
        return await super().generate(messages, sampling=sampling, seed=seed)


class Reward(TextReward):
    """Some prompts are solved at once, others improve for long."""

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        scores = await super().score(prompt, responses)
        hard = number("hard", prompt.id)
        return [min(1.0, score + 1.0 - hard) for score in scores]


def sample(
    run_dir: Path | None,
    prompts: Sequence[str] = PROMPTS,
    dies_at: int | None = None,
    extend: Any = False,
    fails: float = 0.0,
    **changes: Any,
) -> Rollouts:
    given: dict[str, Any] = {
        "agents": [Agent("a", dies_at, fails), Agent("b", None, fails)],
        "reward_model": Reward(),
        "budget": 10,
        "allocation": ADAPTIVE,
        "search_params": {"tau": 1.0} if changes.get("search", "toa") == "toa" else {},
        "progress": False,
    }
    rows = [{"id": text, "prompt": text} for text in prompts]
    return TOASampler(**{**given, **changes}).sample(rows, run_dir, extend=extend)


def plays(rollouts: Rollouts) -> dict[str, tuple[Play, ...]]:
    return {rollout.prompt.id: rollout.plays for rollout in rollouts}


def counts(rollouts: Rollouts) -> list[int]:
    return [len(rollout.scored) for rollout in rollouts]


def gains(rollouts: Rollouts) -> list[float | None]:
    return [grant.gain for grant in read_grants(rollouts._journal)]


@pytest.mark.parametrize("budget", [2, 4])
def test_a_budget_as_small_as_min_plays_is_spent_equally(budget: int) -> None:
    made = sample(None, PROMPTS[:3], budget=budget, allocation={"kind": "adaptive"})
    assert counts(made) == [budget] * 3


def test_by_default_a_prompt_gets_at_most_8_times_the_budget() -> None:
    """The identity of a run holds no number where none was given, so it must not change."""
    allocation = make_allocation({"kind": "adaptive"})
    allocation.budget = 10
    assert allocation.most_plays == 80


@pytest.mark.parametrize("search", ANYTIME)
@pytest.mark.parametrize("plays_in_flight", [1, 3])
def test_the_mean_budget_is_spent_unequally(search: str, plays_in_flight: int) -> None:
    made = sample(None, search=search, plays_in_flight=plays_in_flight)
    assert sum(counts(made)) == 10 * 40
    assert min(counts(made)) >= 4
    assert max(counts(made)) <= 40
    assert len(set(counts(made))) > 1
    assert made.unfinished == 0


@pytest.mark.parametrize("search", ANYTIME)
def test_a_prompt_gets_the_first_plays_of_a_uniform_run(search: str) -> None:
    given: dict[str, Any] = {"search": search}
    if search == "toa":
        given["search_params"] = {"width": "anytime", "tau": 1.0}
    uniform = plays(sample(None, budget=40, allocation=None, **given))
    for prompt_id, made in plays(sample(None, **given)).items():
        assert made == uniform[prompt_id][: len(made)]


@pytest.mark.parametrize("dies_at", [0, 70, 170])
@pytest.mark.parametrize("fails", [0.0, 0.1])
def test_a_killed_run_ends_with_the_same_plays(tmp_path: Path, dies_at: int, fails: float) -> None:
    whole = sample(tmp_path / "whole", fails=fails)
    with pytest.raises((Died, BaseExceptionGroup)):
        sample(tmp_path / "run", dies_at=dies_at, fails=fails)
    resumed = sample(tmp_path / "run", fails=fails)
    assert plays(resumed) == plays(whole)
    assert read_grants(resumed._journal) == read_grants(whole._journal)
    assert plays(sample(tmp_path / "run", dies_at=0, fails=fails)) == plays(whole)  # nothing to do


def test_forgotten_searches_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plays(sample(None))
    monkeypatch.setattr(toa_trl.sampling.runner, "MAX_KEPT", 50)
    assert plays(sample(None)) == expected


def test_searches_are_restored_once_where_all_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restored = []
    restore = Search.restore

    def counted(search: Search, *args: Any) -> None:
        restored.append(search)
        restore(search, *args)

    monkeypatch.setattr(Search, "restore", counted)
    monkeypatch.setattr(toa_trl.sampling.runner, "MAX_KEPT", 10 * len(PROMPTS))
    sample(None)
    assert len(restored) == len(PROMPTS)


def test_the_order_in_which_prompts_are_worked_on_does_not_matter() -> None:
    expected = plays(sample(None))
    for number_at_once in (1, 5, 39):
        assert plays(sample(None, prompts_in_flight=number_at_once)) == expected


def test_a_run_stops_at_a_limit_and_continues(tmp_path: Path) -> None:
    whole = sample(None)
    cut = sample(tmp_path, limits={"max_tokens": 1000})
    assert cut.limit is not None
    assert cut.unfinished > 0
    assert sum(counts(cut)) < 400
    assert plays(sample(tmp_path)) == plays(whole)


def test_a_finished_run_grows(tmp_path: Path) -> None:
    first = plays(sample(tmp_path))
    grown = sample(tmp_path, [*PROMPTS, "One more?", "Two more?"], extend=True, budget=14)
    assert sum(counts(grown)) == 14 * 42
    assert min(counts(grown)) >= 4
    for prompt_id, made in first.items():
        assert plays(grown)[prompt_id][: len(made)] == made


def test_a_ceiling_ends_the_run_early() -> None:
    made = sample(None, allocation={**ADAPTIVE, "stop_reward": 0.1})
    assert sum(counts(made)) < 10 * 40
    assert made.unfinished == 0
    for rollout in made:
        assert max(play.reward or 0.0 for play in rollout.scored) >= 0.1


def test_prompts_whose_agents_all_fail_are_given_up(tmp_path: Path) -> None:
    class Failing(Agent):
        async def generate(
            self, messages: Sequence[Message], *, sampling: Sampling, seed: int
        ) -> Completion:
            if "Question 7?" in str(messages):
                raise AgentError("no")
            return await super().generate(messages, sampling=sampling, seed=seed)

    agents = [Failing("a"), Failing("b")]
    made = sample(tmp_path, agents=agents)
    assert made.given_up == ("Question 7?",)
    assert made.unfinished == 1
    assert sum(counts(made)) == 10 * 40 - 4  # what it was granted
    repaired = sample(tmp_path)
    assert (sum(counts(repaired)), repaired.unfinished) == (400, 0)


def test_what_decides_an_adaptive_run_must_not_change(tmp_path: Path) -> None:
    sample(tmp_path)
    for changes in ({**ADAPTIVE, "wave": 3}, {**ADAPTIVE, "objective": "top_k"}, None):
        with pytest.raises(ConfigError, match="allocation"):
            sample(tmp_path, allocation=changes)


REFUSED: list[tuple[Mapping[str, Any], Mapping[str, Any], str]] = [
    ({"max_plays": 9}, {}, r"max_plays: must be >= the budget, 10, .* not 9"),
    ({"min_plays": 11}, {}, r"min_plays: must be <= the budget, 10, not 11"),
    (
        {"min_plays": 1},
        {},
        r"min_plays: must be >= 2, because the search asks each of its",
    ),
    ({"min_plays": 0}, {}, r"allocation\.min_plays: must be >= 1"),
    ({"wave": 0}, {}, r"allocation\.wave: must be >= 1"),
    ({"stop_reward": float("nan")}, {}, r"allocation\.stop_reward: "),
    (
        {"objective": "bset"},
        {},
        r"allocation\.objective: must be one of .*did you mean 'best'",
    ),
    ({"max_play": 20}, {}, r"allocation: unknown key 'max_play'.*did you mean 'max_plays'"),
    ({}, {"search": "prs", "search_params": {}}, r"choices do not depend on the budget"),
    ({}, {"search_params": {"width": 0.5}}, r"choices do not depend on the budget.*width: anytime"),
    (
        {"objective": "margin"},
        {"preference": {"policy": "same_parent"}},
        r"allocation\.objective: margin is defined for .* not for preference\.policy 'same_parent'",
    ),
    ({"cost": "price"}, {}, r"allocation\.cost: agent 'a' has no price"),
    ({"cost": "flops"}, {}, r"allocation\.cost: the FLOPs of agent 'a' are unknown"),
    ({"prior": "nowhere"}, {}, r"allocation\.prior: nowhere holds no run"),
]


@pytest.mark.parametrize(("allocation", "changes", "message"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(
    allocation: Mapping[str, Any], changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        sample(None, allocation={"kind": "adaptive", **allocation}, **changes)
    assert "\n" not in str(error.value)


def test_an_earlier_run_is_a_prior(tmp_path: Path) -> None:
    sample(tmp_path / "pilot", PROMPTS[:20], budget=16, allocation=None)
    allocation = {**ADAPTIVE, "prior": str(tmp_path / "pilot")}
    made = sample(tmp_path / "run", PROMPTS[20:], allocation=allocation)
    assert sum(counts(made)) == 10 * 20
    assert gains(made) != gains(sample(None, PROMPTS[20:]))
    (tmp_path / "pilot").rename(tmp_path / "moved")  # its content counts, not its place
    allocation["prior"] = str(tmp_path / "moved")
    assert plays(sample(tmp_path / "run", PROMPTS[20:], allocation=allocation)) == plays(made)
    with pytest.raises(ConfigError, match=r"allocation\.prior"):
        sample(tmp_path / "run", PROMPTS[20:])
    with pytest.raises(ConfigError, match=r"prior: the run in .* has another reward"):
        sample(None, allocation=allocation, reward_model=TextReward())
    with pytest.raises(ConfigError, match=r"prior: the run in .* has another task"):
        sample(None, allocation=allocation, task="math")


class Sized(Agent):
    """An agent whose plays take so many FLOPs, by what it is asked."""

    identity = "sized"

    def __init__(
        self,
        name: str,
        flops: Callable[[Sequence[Message]], float],
        dies_at: int | None = None,
    ) -> None:
        super().__init__(name, dies_at)
        self.flops = flops

    @property
    def compute(self) -> Flops | None:
        return Flops(1, 1, 1)

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        done = await super().generate(messages, sampling=sampling, seed=seed)
        return Completion(done.text, "stop", 3, 2, self.flops(messages))


def more_for_some_prompts(messages: Sequence[Message]) -> float:
    return 50.0 if any(text in str(messages) for text in PROMPTS[:20]) else 1.0


def test_flops_count_where_they_are_asked_for() -> None:
    given: dict[str, Any] = {
        "agents": [Sized(name, more_for_some_prompts) for name in "ab"],
        "reward_model": TextReward(),
    }
    by_plays = counts(sample(None, **given))
    by_flops = counts(sample(None, allocation={**ADAPTIVE, "cost": "flops"}, **given))
    assert sum(by_flops) == sum(by_plays) == 400
    assert sum(by_flops[20:]) > 1.2 * sum(by_plays[20:])


@pytest.mark.parametrize("allocation", [None, {**ADAPTIVE, "stop_reward": 1.0}])
def test_the_progress_of_a_run_ends_at_100_percent(
    allocation: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    made = sample(None, allocation=allocation, progress=True)
    num_scored = sum(counts(made))
    assert (num_scored < 400) is (allocation is not None)  # an adaptive run may end early
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"plays: {num_scored}/{num_scored} (100 %)" in last
    assert "prompts 40/40 finished" in last
