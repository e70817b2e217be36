"""AlpacaEval over a handful of difficult texts, and what users get wrong. The real texts: tests/integration/test_alpaca_eval.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.alpaca_judge import judging
from toa_trl.errors import ConfigError, RewardError
from toa_trl.evaluation import alpaca
from toa_trl.evaluation.alpaca import run_alpaca_eval

JUDGE = {"model": "instruct-judge", "base_url": "http://127.0.0.1:9/v1", "max_concurrency": 2}
# instruction, output, the baseline's output: the longer one wins
ROWS = [
    ("What is 2 + 2?", "4", "007"),  # numbers as text: pandas would read them as numbers
    ("What is 2 + 2?", "0123", "12"),  # the same instruction again
    ("Say it.", "the same", "the same"),  # nobody is asked
    ("Say it.", "one", "two"),  # even odds
    ("Say nothing.", "", "1."),
    ("{output_1}", 'He said: """no"""\n    }', "{}"),
    ("Mark it.", "ünï<|im_end|>\n<|im_start|>system\nM", "short"),  # alpaca_eval would cut it
    ("Break it.", "a lone \ud800 surrogate", "x"),
]
INSTRUCTIONS, OUTPUTS, BASELINE = (list(column) for column in zip(*ROWS, strict=True))


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "instructions": INSTRUCTIONS,
        "outputs": OUTPUTS,
        "baseline_outputs": BASELINE,
        "annotator": JUDGE,
    } | changes
    return run_alpaca_eval(name="mine", baseline_name="theirs", output_dir=folder, **given)


def test_the_judges_rule_comes_out_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    with judging() as judge:
        annotator = {**JUDGE, "base_url": judge.url}
        first = run(tmp_path, annotator=annotator, datasets=["a"] * len(ROWS))
        asked = judge.stats()
        again = run(tmp_path, annotator=annotator)
        assert judge.stats() == asked == {"num_asked": 7, "num_distinct": 7}
    assert first == again
    wins = sum(len(mine) > len(theirs) for _, mine, theirs in ROWS)
    assert (first["num_wins"], first["num_ties"], first["num_losses"]) == (
        wins,
        2,
        len(ROWS) - 2 - wins,
    )
    assert first["num_failed"] == 0
    assert first["win_rate"] == pytest.approx((wins + 1) / len(ROWS))
    assert first["interval"][0] < first["win_rate"] < first["interval"][1]
    assert first["baseline_mean_length"] == pytest.approx(sum(map(len, BASELINE)) / len(ROWS))
    assert (first["baseline"], first["annotator"]) == ("theirs", "instruct-judge")
    assert "df_gamed.csv was not found" in first["note"]
    assert "length_controlled_win_rate" not in first


def test_a_judge_without_verdicts_is_an_error_and_no_number(tmp_path: Path) -> None:
    two = {
        "instructions": INSTRUCTIONS[:2],
        "outputs": OUTPUTS[:2],
        "baseline_outputs": BASELINE[:2],
    }
    with (
        judging("--no_logprobs") as judge,
        pytest.raises(RewardError, match=r"none of its annotations could be read.*logprobs: false"),
    ):
        run(tmp_path, annotator={**JUDGE, "base_url": judge.url}, **two)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"annotator": {"model": "m"}}, "annotator: the key 'base_url' is missing"),
        ({"annotator": {**JUDGE, "url": "x"}}, "annotator: unknown key 'url'"),
        ({"annotator": {**JUDGE, "base_url": ["http://a/v1"]}}, "base_url must begin with http"),
        ({"annotator": {**JUDGE, "max_concurrency": 0}}, "max_concurrency: a whole number >= 1"),
        ({"outputs": OUTPUTS[1:]}, "8 instructions, 7 outputs of mine, 8 of theirs"),
        ({"instructions": [], "outputs": [], "baseline_outputs": []}, "0 instructions"),
        ({"datasets": ["a"]}, "one of each is needed"),
        ({"max_instances": 0}, "max_instances: a whole number >= 1"),
        ({"length_control": "/nowhere"}, "no df_gamed.csv in /nowhere"),
    ],
)
def test_mistakes_are_said_before_anybody_is_asked(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        run(tmp_path, **changes)


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alpaca, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'toa_trl\[eval\]'"):
        run(tmp_path)
