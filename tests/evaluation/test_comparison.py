"""Comparison of searches: best reward over N, accuracy, and differences beyond chance."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import TextReward, number, play, rollout, wait
from toa_trl import TOASampler
from toa_trl.agents import Agent
from toa_trl.agents.scripted import ScriptedAgent
from toa_trl.cli import comparison
from toa_trl.cli.comparison_config import ComparisonConfig
from toa_trl.data.prompts import load_prompts
from toa_trl.errors import ConfigError
from toa_trl.evaluation.comparison import (
    RememberingReward,
    Run,
    SearchResult,
    best_reward_over_n,
    measure_search,
    summarize,
)
from toa_trl.evaluation.intervals import gap_bounds, resampled_means, studentized_range
from toa_trl.evaluation.students import Judge
from toa_trl.report.figures import best_reward_over_n as draw
from toa_trl.rewards import RewardModel
from toa_trl.rewards.length import LengthReward
from toa_trl.tasks import make_task
from toa_trl.types import Completion, Flops, Message, Prompt, Rollout, Sampling
from toa_trl.utils.config import validate

ALIGNMENT = make_task("alignment")

PROMPTS = [{"id": f"p{i}", "prompt": f"{i}?"} for i in range(6)]
REWARDS = st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), min_size=1, max_size=5)


class Writer(Agent):
    """Its answer depends on everything it is shown."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        return Completion(f"{self.name} {number([m.content for m in messages], seed)}")


class Verifier(RewardModel):
    """Right is what holds a 1; remembers the prompts it has seen."""

    def __init__(self) -> None:
        self.seen: list[Prompt] = []

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        self.seen.append(prompt)
        return [float("1" in text) for text in responses]


def result_of(done: Iterable[Rollout], verifier: RewardModel | None = None) -> SearchResult:
    result: SearchResult = wait(measure_search(done, ALIGNMENT, verifier))
    return result


def summary_of(done: Iterable[Rollout]) -> dict[str, Any]:
    return summarize([result_of(done, Verifier())])


@given(REWARDS)
def test_the_curve_is_the_mean_of_the_best_so_far(rewards: list[list[float]]) -> None:
    longest = max(map(len, rewards))
    means = [sum(max(each[: n + 1]) for each in rewards) / len(rewards) for n in range(longest)]
    assert best_reward_over_n(rewards) == pytest.approx(means, abs=1e-9)


def test_the_summary_takes_the_scored_plays_in_their_order() -> None:
    done = rollout(play(0, 0.5), play(1, None), play(2, 0.1), play(3, 0.9))
    assert summary_of([done])["best_reward_over_n"] == [0.5, 0.5, 0.9]


def test_a_prompt_without_a_scored_play_is_counted_and_left_out() -> None:
    done = [
        rollout(play(0, 0.5, "1"), id="a"),
        rollout(play(0, None), id="b"),
        rollout(play(0, 0.7, "1"), id="c"),
    ]
    summary = summary_of(done)
    assert (summary["num_problems"], summary["num_unanswered"]) == (2, 1)
    assert (summary["accuracy"], summary["mean_best_reward"]) == (1.0, 0.6)


def test_the_verifier_sees_what_the_reward_model_sees(tmp_path: Path) -> None:
    task, verifier = make_task("math"), Verifier()
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "What is 5 - 4?", "answer": "1"}))
    (prompt,) = load_prompts(str(tmp_path / "p.jsonl"), read=task.read)
    assert prompt.messages[-1].content != "What is 5 - 4?"
    wait(measure_search([Rollout(prompt, (play(0, 0.5),))], task, verifier))
    wait(Judge([], task, verifier, Sampling(), "").accuracy([row(prompt.id, "1")], [prompt]))
    assert [seen.messages[-1].content for seen in verifier.seen] == ["What is 5 - 4?"] * 2


def test_without_a_verifier_rewards_and_costs_are_summarized() -> None:
    done = [rollout(play(0, 0.5), play(1, 0.7), id="a"), rollout(play(0, 0.1), id="b")]
    summary = summarize([result_of(done)])
    assert summary["mean_best_reward"] == pytest.approx(0.4)
    assert summary["mean_best_reward_interval"] == pytest.approx((0.1, 0.7))
    assert "accuracy" not in summary


def test_of_a_graded_verifier_the_mean_score_is_summarized() -> None:
    class Graded(LengthReward):
        graded = True

    summary = summarize([result_of([rollout(play(0, 0.5, "two words"))], Graded())])
    assert (summary["verifier_score"], summary["oracle_verifier_score"]) == (2.0, 2.0)
    assert "accuracy" not in summary


def test_over_seeds_a_prompt_counts_with_its_mean_and_only_if_all_runs_answered_it() -> None:
    first = result_of([rollout(play(0, 0.2), id="a"), rollout(play(0, 9.0), id="b")])
    second = result_of([rollout(play(0, 0.4), id="a"), rollout(play(0, None), id="b")])
    summary = summarize([first, second])
    assert summary["mean_best_reward"] == pytest.approx(0.3)
    assert (summary["num_problems"], summary["num_unanswered"]) == (1, 1)


def compared(tmp_path: Path, **changes: Any) -> ComparisonConfig:
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"What is {i}?"}) + "\n" for i in range(4))
    )
    keys: dict[str, Any] = {
        "prompts": f"{tmp_path}/prompts.jsonl",
        "searches": [
            {"name": "best_of_n", "label": "a alone", "params": {"agent": "a"}},
            {"name": "best_of_n", "label": "b alone", "params": {"agent": "b"}},
            {"name": "parallel"},
        ],
        "agents": [{"name": name, "engine": "scripted"} for name in "ab"],
        "reward": {"kind": "length"},
        "budgets": [2, 4],
        "results": f"{tmp_path}/results.json",
        "output_dir": str(tmp_path / "runs"),
    }
    return ComparisonConfig(**{**keys, **changes})


def test_one_search_with_several_settings_is_compared_without_a_verifier(tmp_path: Path) -> None:
    said: list[str] = []
    config = compared(tmp_path, baseline="parallel", seeds=[0, 1])
    wait(comparison.compare_searches(config, said.append))
    results = json.loads((tmp_path / "results.json").read_text())
    names = [(row["name"], row["budget"]) for row in results["searches"]]
    labels = ("a alone", "b alone", "parallel")
    assert names == [(label, budget) for label in labels for budget in (2, 4)]
    assert all(len(row["best_reward_over_n"]) == row["budget"] for row in results["searches"])
    assert {row["name"] for row in results["search_differences"]} == {"a alone", "b alone"}
    assert "accuracy" not in said[0]
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert "a alone-2" in folders
    assert "a alone-2-seed1" in folders


class Paid(ScriptedAgent):
    """Counts its calls, and can end its process at one of them."""

    calls = 0
    last = 0  # 0: there is none

    @property
    def compute(self) -> Flops:
        return Flops(num_parameters=10, num_layers=1, hidden_size=2)

    async def generate(
        self, messages: Sequence[Message], *, sampling: Sampling, seed: int
    ) -> Completion:
        Paid.calls += 1
        if Paid.calls == Paid.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().generate(messages, sampling=sampling, seed=seed)


def half(completions: Any, **columns: Any) -> list[float]:
    return [0.5] * len(completions)


PAID = f"{__name__}:Paid"
SHORT = {"name": "a", "engine": PAID, "responses": ["one"]}
LONG = {"name": "b", "engine": PAID, "responses": ["one two three"]}


def test_selected_responses_have_a_second_reward_win_rates_and_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "save_figures", lambda *_: None)  # slow
    judge = {"agent": {"name": "j", "engine": "scripted", "responses": ["Verdict: [[A]]"]}}
    agents = [SHORT | {"price": {"completion": 1e6}}, LONG | {"price": {"prompt": 2e6}}]
    config = compared(
        tmp_path,
        agents=agents,
        baseline="parallel",
        baseline_budget=2,
        second_reward={"kind": "length"},
        judge=judge,
        flops_context=100,
        seeds=[0, 1],
    )
    said: list[str] = []
    wait(comparison.compare_searches(config, said.append))
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["name"], row["budget"]): row for row in results["searches"]}
    assert rows["a alone", 2]["second_reward"] == 1.0
    assert rows["b alone", 4]["second_reward"] == rows["parallel", 2]["second_reward"] == 3.0
    assert (rows["a alone", 2]["win_rate"], rows["b alone", 2]["win_rate"]) == (0.5, 0.5)  # judge
    rates = {(row["name"], row["budget"], row["by"]): row for row in results["search_win_rates"]}
    assert rates["a alone", 4, "second_reward"]["win_rate"] == 0.0
    assert rates["b alone", 2, "second_reward"]["win_rate"] == 0.5  # a tie
    assert rates["a alone", 2, "judge"]["num_ties"] == 4  # it prefers the first in both orders
    assert ("parallel", 4, "judge") in rates  # another budget than the baseline's
    assert ("parallel", 2, "judge") not in rates
    # "What is 0?" are 3 tokens
    assert rows["a alone", 2]["tokens"] == 2 * (3 + 1)
    assert rows["a alone", 2]["cost"] == 2 * 1
    assert rows["parallel", 2]["cost"] == 1 + 2 * 3
    assert rows["a alone", 2]["flops"] == 2 * (3 + 1) * (2 * 10 + 2 * 1 * 100 * 2)
    assert rows["a alone", 2]["reward_flops"] == 0.0
    assert [name in said[0] for name in ("win_rate", "cost")] == [True, False]
    assert [name in said[1] for name in ("cost", "tokens", "reward_flops")] == [True, True, False]
    assert "second_reward" in said[3]
    assert max(map(len, "\n".join(said).splitlines())) <= 100
    kept = [path.name[:7] for path in (tmp_path / "runs").glob("_*.jsonl")]
    assert sorted(kept) == ["_judge-", "_second"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifier": f"{__name__}:half"}, "verifier: scores must be 1"),
        ({"verifier": {"kind": "math"}}, "verifier: cannot judge a response to .*'answer' is mis"),
        (
            {
                "judge": {
                    "agent": {
                        "name": "j",
                        "engine": "openai",
                        "model": "m",
                        "base_url": "http://127.0.0.1:9/v1",
                    }
                },
                "baseline": "parallel",
            },
            "127.0.0.1:9",
        ),
    ],
)
def test_mistakes_are_found_before_the_first_play(
    tmp_path: Path, changes: Any, message: str
) -> None:
    Paid.calls = Paid.last = 0
    with pytest.raises(ConfigError, match=message):
        wait(comparison.compare_searches(compared(tmp_path, agents=[SHORT, LONG], **changes)))
    assert Paid.calls == 0


def test_a_killed_comparison_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "save_figures", lambda *_: None)  # slow
    agents = [{"name": name, "engine": PAID} for name in "ab"]
    adaptive = {"kind": "adaptive", "min_plays": 2, "wave": 1}
    entries = [
        {"name": "best_of_n", "params": {"agent": "a"}},
        {"name": "parallel"},
        {"name": "parallel", "label": "adaptive", "budgets": [5], "allocation": adaptive},
    ]
    config = compared(tmp_path, agents=agents, prompts_in_flight=1, searches=entries)
    Paid.calls, Paid.last = 0, 12
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            wait(comparison.compare_searches(config))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "results.json").exists()
    Paid.last = 0
    wait(comparison.compare_searches(config))
    resumed, num_calls = json.loads((tmp_path / "results.json").read_text()), Paid.calls
    Paid.calls = 0
    folder = str(tmp_path / "whole")
    whole = compared(tmp_path, agents=agents, searches=entries, output_dir=folder)
    wait(comparison.compare_searches(whole))
    assert num_calls < Paid.calls  # what was scored is not asked again
    assert json.loads((tmp_path / "results.json").read_text()) == resumed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": {"agent": SHORT}}, "judge: needs a baseline"),
        (
            {"judge": {"agent": SHORT, "mode": "pointwise"}, "baseline": "parallel"},
            "judge.mode: must be pairwise or arena",
        ),
        ({"baseline": "parallel", "baseline_budget": 3}, "baseline_budget: must be one of"),
        (
            {"searches": [{"name": "toa"}, {"name": "toa", "params": {"tau": 1.0}}]},
            "searches: 2 entries have the label 'toa'",
        ),
        ({"searches": [{"name": "tao"}]}, r"unknown search 'tao'.*did you mean 'toa'"),
        ({"searches": [{"name": "toa", "label": "../x"}]}, r"searches\[0\].label: must not"),
        (
            {"searches": [{"name": "toa", "params": {"alfa": 1}}]},
            r"searches\[0\].params: unknown key 'alfa'",
        ),
        ({"baseline": "toa"}, "baseline: must be one of a alone, b alone, parallel, not 'toa'"),
    ],
)
def test_mistakes_of_a_comparison_are_named(tmp_path: Path, changes: Any, message: str) -> None:
    keys = compared(tmp_path).model_dump(exclude_unset=True)
    with pytest.raises(ConfigError, match=message):
        validate(ComparisonConfig, {**keys, **changes})


def test_students_need_a_verifier_that_decides(tmp_path: Path) -> None:
    train = {"command": "python x", "base": "b", "heldout": "h", "budget": 2, "seeds": [0]}
    with pytest.raises(ConfigError, match="verifier: train needs one that says 1"):
        wait(comparison.compare_searches(compared(tmp_path, train=train)))


def row(prompt_id: str, text: str) -> dict[str, Any]:
    """Of sft/, as far as it is judged."""
    return {"prompt_id": prompt_id, "completion": [{"role": "assistant", "content": text}]}


def test_a_verifier_says_0_or_1() -> None:
    done, judge = (
        rollout(play(0, 0.5, "two words")),
        Judge([], ALIGNMENT, LengthReward(), Sampling(), ""),
    )
    message = r"verifier: scores must be 1 \(right\) or 0 \(wrong\), not 2;"
    with pytest.raises(ConfigError, match=message):
        wait(measure_search([done], ALIGNMENT, LengthReward()))
    with pytest.raises(ConfigError, match=message):
        wait(judge.accuracy([row("p", "two words")], [done.prompt]))


def test_problems_that_are_among_the_prompts_are_refused() -> None:
    one, two, same = (Prompt(*each) for each in (("1", "One?"), ("2", "Two?"), ("x", "One?")))  # type: ignore[arg-type]
    judge = Judge([one], ALIGNMENT, Verifier(), Sampling(), "")
    judge.check_new([two])
    with pytest.raises(
        ConfigError, match="heldout: 1 of its problems are among the prompts, as '1'"
    ):
        judge.check_new([two, same])


@pytest.mark.parametrize(
    ("num_means", "freedom", "point"), [(6, 10, 4.912), (2, 2, 6.085), (3, 20, 3.578)]
)
def test_the_studentized_range_is_that_of_the_tables(
    num_means: int, freedom: int, point: float
) -> None:
    assert studentized_range(num_means, freedom) == pytest.approx(point, abs=0.001)


@pytest.mark.parametrize(("num_searches", "num_seeds"), [(6, 3), (2, 3), (3, 5)])
def test_equal_searches_are_seldom_told_apart(num_searches: int, num_seeds: int) -> None:
    rng, told = np.random.default_rng(3), 0
    for _ in range(200):
        # as in the data table of the demo: seeds differ by about 0.03
        shares = rng.normal(0.75, 0.03, (num_searches, num_seeds, 1))
        right = (rng.random((num_searches, num_seeds, 480)) < shares).astype(float)
        accuracies = right.mean(axis=(1, 2))
        bounds = gap_bounds({str(at): each for at, each in enumerate(right)})
        told += any(accuracies.max() - accuracies > list(bounds.values()))
    assert told <= 14  # 7 %


def test_bounds_of_gaps() -> None:
    rng = np.random.default_rng(4)
    right = {
        name: (rng.random((3, 400)) < share).astype(float)
        for name, share in (("a", 0.9), ("b", 0.5))
    }
    assert 0.03 < gap_bounds(right)["b"] < 0.35
    # few problems, and by chance the same difference with each seed
    few = {"a": np.array([[1.0, 1, 0, 0]] * 2), "b": np.array([[1.0, 0, 0, 0]] * 2)}
    assert gap_bounds(few)["b"] > 0.25
    assert (
        gap_bounds({"a": right["a"]})
        == gap_bounds({name: each[:1] for name, each in right.items()})
        == {}
    )


def test_draws_know_seeds_and_problems() -> None:
    rng = np.random.default_rng(2)
    problems, seeds = rng.normal(size=(1, 300)), rng.normal(size=(8, 1))
    assert resampled_means(np.ones((3, 5))) == pytest.approx(1)
    both = resampled_means(problems + seeds)
    assert both == pytest.approx(
        resampled_means(problems + 0 * seeds) + resampled_means(0 * problems + seeds)
    )
    # of independent effects: the variances of both means add up
    assert both.var() == pytest.approx(problems.var() / 300 + seeds.var() / 8, rel=0.1)


def test_models_are_gone_before_the_first_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Any] = []
    before = models()  # what other tests have left

    async def untrained(*_: Any) -> list[float]:
        return [0.0]

    async def look(*_: Any) -> None:
        gc.collect()
        left.extend(each for each in models() if not any(each is other for other in before))

    monkeypatch.setattr(Judge, "verdicts", untrained)
    monkeypatch.setattr(comparison, "teach", look)
    monkeypatch.setattr(comparison, "table_rows", lambda *_: [{"search": "parallel"}])
    for name, question in (
        ("prompts", "What?"),
        ("heldout", "Who was it, and when did they come to us from so far away?"),
    ):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": question}))
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"prompt": f"Say it: {question} I ask."}))
    train = {
        "command": "python x",
        "base": "b",
        "heldout": f"{tmp_path}/heldout.jsonl",
        "budget": 2,
        "seeds": [0],
    }
    config = ComparisonConfig(
        prompts=f"{tmp_path}/prompts.jsonl",
        searches={"parallel": {}},
        agents=[{"name": "a", "engine": "scripted"}],
        reward={"kind": "length"},
        verifier="tests.evaluation.test_comparison:wrong",
        train=train,
        budgets=[],
        results=f"{tmp_path}/results.json",
        output_dir=str(tmp_path),
    )
    wait(comparison.compare_searches(config))
    assert left == []
    (found,) = json.loads((tmp_path / "results.json").read_text())["data_table"]
    assert found == {"search": "parallel", "num_overlapping": 1}


def models() -> list[Any]:
    kinds = (ScriptedAgent, RememberingReward, LengthReward)
    return [each for each in gc.get_objects() if type(each) in kinds]  # isinstance asks ABCs


def wrong(completions: Any, **columns: Any) -> list[float]:
    return [0.0] * len(completions)


@pytest.mark.parametrize("search", ["best_of_n", "parallel", "sequential", "moa", "prs", "toa"])
def test_the_first_plays_are_a_smaller_run_unless_the_search_plans_with_its_budget(
    search: str,
) -> None:
    agents, summaries = [Writer("a"), Writer("b")], {}
    for budget in (5, 20):
        sampler = TOASampler(agents, TextReward(), search, budget, progress=False)
        summaries[budget] = summary_of(wait(sampler.asample(PROMPTS)))
    small = summaries[5]["best_reward_over_n"]
    assert small[-1] == summaries[5]["mean_best_reward"]
    assert (small == summaries[20]["best_reward_over_n"][:5]) == (search not in ("prs", "toa"))


def test_folders_of_runs_tell_them_apart() -> None:
    runs = [
        Run(search, budget, seed)
        for search in ("toa", "moa")
        for budget in (8, 16)
        for seed in (0, 1)
    ]
    assert len({run.folder(0) for run in runs}) == len(runs)
    assert runs[0].folder(0) == "toa-8"


def test_the_figure_over_n() -> None:
    rows: list[dict[str, Any]] = []
    for name, best in (("toa", 0.5), ("moa", 0.4)):
        for budget in (4, 8):
            row: dict[str, Any] = {
                "name": name,
                "budget": budget,
                "mean_best_reward": best + budget,
                "mean_best_reward_interval": [0, 9],
            }
            rows.append(row | {"best_reward_over_n": [best + n for n in range(1, budget + 1)]})
    rows.append({"name": "without", "budget": 4, "mean_best_reward": None})
    (axes,) = draw(rows).axes
    lines = defaultdict[int, list[Any]](list)
    for line in axes.lines:
        lines[np.size(line.get_xdata())].append(line)
    assert [list(np.asarray(line.get_ydata())) for line in lines[7]] == [
        row["best_reward_over_n"][1:] for row in rows[1:4:2]
    ]
    points = [line for line in lines[2] if line.get_marker() not in ("None", None)]
    assert [list(np.asarray(line.get_ydata())) for line in points] == [
        [row["mean_best_reward"] for row in rows[:2]],
        [row["mean_best_reward"] for row in rows[2:4]],
    ]
    assert len(lines[2]) - len(points) == 4  # intervals
    for kept in (
        [],
        rows[4:],
        [{key: row[key] for key in ("name", "budget", "mean_best_reward")} for row in rows],
    ):
        draw(kept).savefig(io.BytesIO(), format="svg")
