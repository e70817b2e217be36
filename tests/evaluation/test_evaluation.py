"""Comparison of searches, and results.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import EchoAgent, TextReward, play, rollout, wait
from toa_trl.cli.comparison import (
    OF_COSTS,
    OF_DIFFERENCES,
    OF_SEARCHES,
    OF_STUDENT_DIFFERENCES,
    OF_STUDENTS,
    OF_WIN_RATES,
    _tables,
)
from toa_trl.errors import AgentError, ConfigError
from toa_trl.evaluation.accuracy import Measurement
from toa_trl.evaluation.comparison import (
    RememberingAgent,
    RememberingReward,
    measure_search,
    summarize,
)
from toa_trl.evaluation.results import LABELS, markdown_table, terminal_tables, update_results
from toa_trl.rewards import make_reward
from toa_trl.tasks import make_task
from toa_trl.types import Message, Prompt, Sampling


def exact(completions: Any, answer: Any, **columns: Any) -> list[float]:
    return [float(c[0]["content"] == a) for c, a in zip(completions, answer, strict=True)]


VERIFIER = make_reward({"kind": "function", "function": exact})


def test_summary_of_rollouts_made_by_hand() -> None:
    first = rollout(
        *(play(i, i / 10, "1" if i == 3 else "0", tokens=(10, i), flops=2.0) for i in range(12)),
        play(12, None),
        id="p0",
        answer="1",
    )
    second = rollout(play(0, 5.0, "2", flops=None), play(1, 4.0, "0"), id="p1", answer="2")
    result = wait(measure_search([first, second], make_task("alignment"), VERIFIER))
    summary = summarize([result])
    assert summary["accuracy"] == 0.5  # the best of the first is wrong
    assert summary["oracle_accuracy"] == 1.0
    assert summary["mean_best_reward"] == pytest.approx((1.1 + 5.0) / 2)
    assert summary["mean_top10_reward"] == pytest.approx((sum(range(2, 12)) / 100 + 4.5) / 2)
    assert summary["tokens"] == (120 + sum(range(12)) + 30) / 2
    assert summary["flops"] == (24.0 + 1.0) / 2
    assert summary["reward_flops"] == (24.0 + 4.0) / 2
    assert summary["num_problems"] == 2
    assert summary["oracle_accuracy_interval"] == (1.0, 1.0)
    low, high = summary["interval"]
    assert (low, high) == (0.0, 1.0)
    json.dumps(summary)


def test_a_remembering_agent_asks_once() -> None:
    agent = EchoAgent("a")
    it = RememberingAgent(agent, {"model": "x"})
    one, two = (Message("user", "x"),), (Message("user", "y"),)
    asks = [
        (one, Sampling(), 1),
        (one, Sampling(), 2),
        (two, Sampling(), 1),
        (one, Sampling(0.1), 1),
    ]
    first = [wait(it.generate(m, sampling=s, seed=seed)) for m, s, seed in asks]
    again = [wait(it.generate(list(m), sampling=s, seed=seed)) for m, s, seed in asks]
    assert first == again
    assert len(agent.asked) == 4
    assert (it.name, it.identity) == ("a", {"model": "x"})
    wait(it.aclose())


def test_a_remembering_agent_does_not_remember_failures() -> None:
    agent = EchoAgent("a", fails=1.0)
    it = RememberingAgent(agent, {})
    for _ in range(2):
        with pytest.raises(AgentError):
            wait(it.generate((Message("user", "x"),), sampling=Sampling(), seed=1))
    assert len(agent.asked) == 2


def test_a_remembering_reward_scores_once() -> None:
    asked: list[str] = []

    class Counting(TextReward):
        async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
            asked.extend(responses)
            return await super().score(prompt, responses)

    it = RememberingReward(Counting(), {})
    one, other = Prompt("0", "0?"), Prompt("1", "1?")  # type: ignore[arg-type]
    first = wait(it.score(one, ["a", "b"]))
    assert wait(it.score(one, ["b", "c", "a"]))[::2] == first[::-1]
    assert asked == ["a", "b", "c"]
    assert wait(it.score(other, ["a"])) != first[:1]
    assert asked == ["a", "b", "c", "a"]


def test_results_keep_their_other_parts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    update_results(path, "student", {"base": {"accuracy": 0.5}})
    update_results(path, "searches", [{"name": "toa"}])
    update_results(path, "student", {"sft": {"accuracy": 0.7}})
    results = json.loads(path.read_text())
    assert results.pop("toa_trl")
    assert results == {"student": {"sft": {"accuracy": 0.7}}, "searches": [{"name": "toa"}]}
    assert {each.name for each in path.parent.iterdir()} == {"results.json", "results.json.lock"}


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ('{"accuracy": 1}', False),
        ('{"student": {}, "mine": 1}', False),
        ("[]", False),
        ("{", False),
        ('{"student": {}, "rounds": []}', True),  # from before the marker
        ('{"toa_trl": "9", "new": 1}', True),
    ],
)
def test_results_of_others_are_left_alone(text: str, ours: bool, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    if ours:
        update_results(path, "searches", [])
        assert json.loads(path.read_text()).keys() == json.loads(text).keys() | {
            *("toa_trl", "searches")
        }
        return
    with pytest.raises(ConfigError, match=r"results\.json: was not written by toa_trl"):
        update_results(path, "searches", [])
    assert path.read_text() == text


def test_the_table_is_markdown() -> None:
    text = markdown_table(
        [
            {"name": "toa", "accuracy": 0.5, "interval": (0.25, 0.75), "flops": 123456.0},
            {"name": "x", "accuracy": 1, "interval": [0.0, 1.0], "flops": 2.0},
        ]
    )
    header, line, first, second = text.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        "name",
        "accuracy",
        "interval",
        "flops",
    ]
    assert set(line) == {"|", "-"}
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        "toa",
        "0.500",
        "[0.250, 0.750]",
        "1.23e+05",
    ]
    assert len({len(each) for each in (header, line, first, second)}) == 1


def test_tables_fit_a_terminal_and_lose_nothing() -> None:
    values = {f"value_{n}": float(n) for n in range(12)}
    figures = {"accuracy": 0.5, "interval": (0.25, 0.75), "sampled_accuracy": 0.1, **values}
    rows = [
        {"name": "a", "budget": 8, **figures, "sampled_interval": (0.0, 1.0)},
        {"name": "a search of a long name", "budget": 16, "accuracy": None, "interval": None},
    ]
    text = terminal_tables(rows)
    assert max(map(len, text.splitlines())) <= 100
    tables = text.strip().split("\n\n")
    assert len(tables) > 1
    heads = []
    for table in tables:
        header, _, first, second = table.splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, first)]
        assert cells[0][:2] == ["name", "budget"]
        assert cells[1][:2] == ["a", "8"]
        assert "a search of a long name" in second
        heads += cells[0][2:]
    assert heads[:2] == ["accuracy", "sampled_accuracy"]
    assert heads[2:-1] == list(values)
    assert heads[-1] == "sampled_interval"  # only behind its value it joins it
    assert "0.500 [0.250, 0.750]" in text


def test_an_interval_stands_behind_its_value() -> None:
    text = terminal_tables(
        [
            {
                "search": "toa",
                "accuracy": 0.5,
                "interval": (0.25, 0.75),
                "accuracy_std": 0.1,
                "gap_interval": (0.0, 0.2),
                "sampled_accuracy": 0.3,
                "sampled_interval": None,
            }
        ]
    )
    header, _, row = text.splitlines()[:3]
    assert re.split(r" *\| *", header)[1:-1] == [
        *("search", "accuracy", "accuracy_std", "gap_interval", "sampled_accuracy"),
    ]
    assert "| 0.500 [0.250, 0.750] | 0.100" in row


def test_the_figures_of_every_command_fit_a_terminal() -> None:
    scores: dict[str, Any] = {f.name: 0.123 for f in fields(Measurement)}
    scores |= {key: (-123.456, 123.456) for key in scores if key.endswith("interval")}
    printed = terminal_tables([{"model": "meta-llama/Llama-3.1-8B-Instruct@160", **scores}])
    for keys in (
        OF_SEARCHES,
        OF_COSTS,
        OF_DIFFERENCES,
        OF_WIN_RATES,
        OF_STUDENTS,
        OF_STUDENT_DIFFERENCES,
    ):
        row: dict[str, Any] = {}
        for key in keys.split():
            row[key] = "meta-llama/Llama-3.1-8B" if key in LABELS else 0.123
            if "budget" in key:
                row[key] = 160
            if key.endswith("interval"):
                row[key] = (-123.456, 123.456)
        printed += _tables([row], keys)
    assert max(map(len, printed.splitlines())) <= 100
