"""The sections on evaluations say what results.json says; an absent part makes no section."""

from __future__ import annotations

from typing import Any

import pytest

from toa_trl.report.evaluation import sections
from toa_trl.report.figures import comparison_panels
from toa_trl.report.html import Picture, Section, Table, finite, number
from toa_trl.report.outcome import opening, searches, student

WINS: dict[str, Any] = {
    "model": "sft",
    "baseline": "base",
    "by": "reward",
    "win_rate": 0.62,
    "interval": [0.58, 0.66],
}
WINS |= {
    "win_rate_matched_length": 0.53,
    "interval_matched_length": [0.46, 0.6],
    "num_matched": 212,
    "num_failed": 3,
}
WINS |= {
    "num_wins": 400,
    "num_ties": 50,
    "num_losses": 350,
    "mean_length": 203.4,
    "baseline_mean_length": 151.2,
}
NONE = {key: None for key in WINS if "rate" in key or "interval" in key or "length" in key}
TAUGHT: dict[str, Any] = {
    "budget": 8,
    "seeds": [0, 1],
    "accuracy_std": 0.014,
    "num_rows": 150,
    "mean_reward": -2.5,
}
TAUGHT |= {"data_accuracy": 0.7, "tokens": 1234.0, "flops": 5e8, "num_problems": 480}
UNTRAINED = {
    "search": "untrained",
    "accuracy": 0.356,
    "interval": [0.315, 0.4],
    "num_problems": 480,
}


def taught(search: str, accuracy: float, gap: tuple[float, float] | None = None) -> dict[str, Any]:
    row = {
        "search": search,
        **TAUGHT,
        "accuracy": accuracy,
        "interval": [accuracy - 0.05, accuracy + 0.05],
    }
    row |= {"per_seed": [accuracy - 0.01, accuracy + 0.01], "gap": 0.8 - accuracy}
    return row | ({"gap_interval": list(gap)} if gap else {})


def texts_of(section: Section) -> str:
    """Texts and captions."""
    return " ".join(str(b if isinstance(b, str) else b.caption) for b in section.blocks)


def rows(section: Section) -> list[list[str]]:
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert {len(row) for row in table.rows} == {len(table.header)}
    return [[str(cell) for cell in row] for row in table.rows]


def only(part: str, value: Any) -> Section:
    (section,) = sections({part: value})
    return section


def test_an_absent_part_makes_no_section() -> None:
    assert sections({}) == []
    assert (
        sections(
            {
                "student": {"base": {"accuracy": 1.0}},
                "win_rates": [],
                "alpaca_eval": {},
                "data_table": None,
            }
        )
        == []
    )


def test_win_rates() -> None:
    dpo = WINS | {
        "model": "dpo",
        "win_rate": 0.71,
        "interval": [0.67, 0.75],
        "interval_matched_length": [0.55, 0.7],
    }
    judged = WINS | {"by": "judge", "win_rate": 0.42, "interval": [0.38, 0.46]}
    even = WINS | {"model": "dpo", "by": "judge", "win_rate": 0.51, "interval": [0.47, 0.55]}
    section = only(
        "win_rates", [WINS, dpo, judged, even, WINS | NONE | {"model": "x", "num_failed": 800}]
    )
    text = texts_of(section)
    assert "By reward, sft (0.620) and dpo (0.710) beat base." in text
    assert "By judge, sft (0.420) loses to base; dpo (0.510) cannot be told from base." in text
    assert (
        "By reward sft wins, but among the 212 pairs of like length it cannot be told from base"
        in text
    )
    assert text.count("may be length") == 1
    first, *_, last = rows(section)
    assert first == [
        *("sft", "base", "reward", "0.620 (0.580 to 0.660)", "0.530 (0.460 to 0.600)", "212"),
        *("400 / 50 / 350", "3", "203", "151"),
    ]
    assert last[3:6] == ["–", "–", "212"]
    (picture,) = (block for block in section.blocks if isinstance(block, Picture))
    assert "dpo, judge" in picture.panels[0]


def test_several_baselines_are_told_apart() -> None:
    section = only("win_rates", [WINS, WINS | {"baseline": "gpt"}])
    (picture,) = (block for block in section.blocks if isinstance(block, Picture))
    assert "sft, reward, gpt" in picture.panels[0]


def test_win_rates_of_which_all_failed() -> None:
    section = only("win_rates", [WINS | NONE])
    assert not any(isinstance(block, Picture) for block in section.blocks)
    assert rows(section)[0][3] == "–"


def test_alpaca_eval() -> None:
    sft = {
        "win_rate": 0.25,
        "standard_error": 0.014,
        "baseline": "gpt4",
        "annotator": "judge",
        "num_wins": 200,
    }
    sft |= {"length_controlled_win_rate": 0.31, "length_controlled_standard_error": 0.012}
    sft |= {
        "num_ties": 5,
        "num_losses": 600,
        "num_failed": 0,
        "mean_length": 1800.2,
        "baseline_mean_length": 2049.0,
    }
    dpo = {"win_rate": 0.35, "note": "no length-controlled win rate: df_gamed.csv was not found"}
    section = only("alpaca_eval", {"sft": sft, "dpo": dpo, "none": {}})
    assert "dpo has the highest win rate: 0.350." in texts_of(section)
    assert "dpo: no length-controlled win rate: df_gamed.csv was not found." in texts_of(section)
    outcomes = ("0.250 ± 0.014", "0.310 ± 0.012", "200 / 5 / 600", "0", "1,800", "2,049")
    assert rows(section)[0] == ["sft", "gpt4", "judge", *outcomes]
    assert rows(section)[1][3:5] == ["0.350", "–"]
    assert set(rows(only("alpaca_eval", {"none": {}}))[0][1:]) == {"–", "– / – / –"}


def test_lm_eval() -> None:
    base = {
        "gsm8k": {
            "exact_match,strict": 0.5,
            "exact_match,strict_stderr": 0.013,
            "num_problems": 1319,
            "alias": "x",
        }
    }
    sft = {
        "gsm8k": {"exact_match,strict": 0.6},
        "mmlu": {"acc,none": 0.4, "acc,none_stderr": float("nan")},
    }
    section = only("lm_eval", {"base": base, "sft": sft})
    assert rows(section) == [
        ["gsm8k", "exact_match,strict", "0.500 ± 0.013", "0.600", "1,319"],
        ["mmlu", "acc,none", "–", "0.400", "–"],
    ]


def test_the_data_table() -> None:
    others = [
        taught("best_of_n", 0.7, (0.06, 0.14)),
        taught("moa", 0.79, (-0.02, 0.04)),
        taught("toa", 0.8),
    ]
    section = only("data_table", [UNTRAINED, *others])
    text = texts_of(section)
    assert (
        "found at 8 plays per prompt (2 seeds, the rings), and judged on 480 held-out problems."
        in text
    )
    assert "The data of toa make the best one (0.800)." in text
    assert "Those of best_of_n make a worse one." in text
    assert (
        "Those of moa cannot be told from it. 2 seeds tell a difference from about 0.040 on."
        in text
    )
    assert "held-out problem;" not in text
    near = texts_of(
        only("data_table", [row | {"num_overlapping": 33} for row in (UNTRAINED, *others)])
    )
    assert "33 prompts of those trained on share 13 words in a row" in near
    table = rows(section)
    assert table[0] == ["untrained", "0.356 (0.315 to 0.400)", *["–"] * 7]
    assert table[1][:4] == [
        "best_of_n",
        "0.700 (0.650 to 0.750)",
        "0.014",
        "−0.100 (−0.140 to −0.060)",
    ]
    assert table[2][3] == "−0.010 (−0.040 to 0.020)"
    assert table[3][3:] == ["–", "150", "−2.500", "0.700", "1,234", "5×10⁸"]


def test_one_search_with_one_seed() -> None:
    row = {
        key: value
        for key, value in taught("toa", 0.8).items()
        if key not in ("accuracy_std", "flops")
    }
    section = only("data_table", [UNTRAINED, row | {"per_seed": [0.8]}])
    assert "(1 seed, the rings)" in texts_of(section)
    assert "worse" not in texts_of(section)
    assert "seed tells" not in texts_of(section)
    other = row | {"search": "moa", "per_seed": [0.7], "accuracy": 0.7}
    assert "Those of moa cannot be told from it. One seed is not enough to tell" in texts_of(
        only("data_table", [row, other])
    )


def test_everything_measured_of_a_student() -> None:
    base = {
        "accuracy": 0.3,
        "interval": [0.25, 0.35],
        "mean_reward": -5.0,
        "mean_reward_interval": [-5.2, -4.8],
        "k": 8,
    }
    base |= {
        "maj_at_k": 0.4,
        "maj_at_k_interval": [0.35, 0.45],
        "pass_at_k": 0.9,
        "mean_length": 121.6,
        "chrf": 55.25,
    }
    base |= {"num_truncated": 0, "num_unjudged": 2}
    section = student(
        {
            "student": {
                "base": base,
                "sft": {"accuracy": 0.6, "interval": [0.55, 0.65], "comet": None},
            }
        }
    )
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert table.header == [
        "student",
        "greedy accuracy",
        "maj@8",
        "pass@8",
        "mean reward",
        "chrF",
        "words",
        "not judged",
    ]
    shares = ["0.300 (0.250 to 0.350)", "0.400 (0.350 to 0.450)", "0.900"]
    assert rows(section)[0] == [
        "before",
        *shares,
        "−5.000 (−5.200 to −4.800)",
        "55.250",
        "122",
        "2",
    ]
    assert rows(section)[1][2:] == ["–"] * 6
    assert "After SFT against before: +0.300, and the intervals do not overlap." in texts_of(
        section
    )


def test_students_without_an_accuracy() -> None:
    results = {
        "student": {
            "base": {"comet": 0.8, "comet_interval": [0.79, 0.81], "bleu": 30.0},
            "sft": {"comet": 0.805},
        }
    }
    section = student(results)
    assert "COMET before 0.800 (0.790 to 0.810), after SFT 0.805." in texts_of(section)
    assert not any(isinstance(block, Picture) for block in section.blocks)
    assert opening(results) == ""
    assert "No student was evaluated" in texts_of(student({"student": {"base": {}}}))


def test_an_accuracy_of_zero_is_one() -> None:
    results = {"student": {"base": {"accuracy": 0.0}, "sft": {"accuracy": 0.5}}}
    assert (
        opening(results) == " The student's accuracy goes from 0.000 (before) to 0.500 (after SFT)."
    )
    assert rows(student(results))[0] == ["before", "0.000"]


def test_the_best_reward_over_n_is_drawn_where_it_is_known(results: dict[str, Any]) -> None:
    curves = [
        row | {"best_reward_over_n": [row["mean_best_reward"]] * row["budget"]}
        for row in results["searches"]
    ]
    assert "over N" in texts_of(searches({"searches": curves}))
    assert "over N" not in texts_of(searches(results))


def test_prompts_that_were_given_up_are_counted(results: dict[str, Any]) -> None:
    first, *others = results["searches"]
    text = texts_of(searches({"searches": [first | {"num_unanswered": 2}, *others]}))
    assert f"no play was scored: 2 prompts of {first['name']} at {first['budget']}." in text
    assert "no play was scored" not in texts_of(
        searches({"searches": [first | {"num_unanswered": 0}, *others]})
    )


def test_searches_show_the_second_reward_the_win_rate_and_the_price() -> None:
    row = {"name": "toa", "budget": 8, "mean_best_reward": 0.1, "tokens": 10.0, "flops": 2.0}
    judged = row | {"second_reward": 0.25, "win_rate": 0.625, "win_rate_interval": [0.5, 0.75]}
    rows = [judged | {"cost": 1.5}, row | {"name": "moa", "cost": 2.25}]
    section = searches({"searches": rows})
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.header[-1] == "price"
    assert {"second reward", "win rate"} <= set(table.header)
    assert "0.625" in str(table.rows[0])
    assert (table.rows[0][-1], table.rows[1][-1]) == ("1.500", "2.250")
    panels = [label for _, _, label in comparison_panels(rows)]
    assert panels[-2:] == ["second reward of the best play", "win rate of the best play"]
    (table,) = [b for b in searches({"searches": [row]}).blocks if isinstance(b, Table)]
    assert "price" not in table.header


def test_searches_without_a_verifier_and_their_differences() -> None:
    rows = [
        {"name": name, "budget": 8, "mean_best_reward": reward, "tokens": 10.0}
        for name, reward in (("toa", 0.5), ("parallel", 0.4))
    ]
    difference = {
        "name": "toa",
        "baseline": "parallel",
        "budget": 8,
        "measure": "mean_best_reward",
        "difference": 0.1,
        "interval": [-0.02, 0.22],
        "smallest_visible": 0.12,
    }
    section = searches({"searches": rows, "search_differences": [difference]})
    compared, differences = [block for block in section.blocks if isinstance(block, Table)]
    assert compared.header[2] == "mean best reward"
    (cells,) = differences.rows
    assert cells[:3] == ["toa", "8", "8"]
    assert cells[3].replace("−", "-") == "0.100 (-0.020 to 0.220)"
    assert "Differences in mean best reward to parallel" in differences.caption


def test_students_at_several_budgets_are_told_apart_and_compared_with_the_baseline() -> None:
    section = only(
        "data_table", [UNTRAINED, taught("toa", 0.8), taught("toa", 0.7) | {"budget": 32}]
    )
    text = texts_of(section)
    assert "what one search found at one budget (2 seeds, the rings)" in text
    assert "The data of toa at 8 make the best one" in text
    assert [row[0] for row in rows(section)] == ["untrained", "toa at 8", "toa at 32"]
    difference = {
        "search": "adaptive",
        "budget": 12,
        "baseline": "uniform",
        "baseline_budget": 32,
        "difference": -0.01,
        "interval": [-0.04, 0.02],
        "smallest_visible": 0.03,
        "flops_ratio": 0.36,
    }
    one_seed = {key: difference[key] for key in list(difference)[:5]}
    full, short = rows(only("student_differences", [difference, one_seed]))
    assert full[:4] == ["adaptive", "12", "uniform", "32"]
    assert full[4].replace("−", "-") == "-0.010 (-0.040 to 0.020)"
    assert full[5:] == ["0.030", "0.360"]
    assert short[4:] == ["−0.010", "–", "–"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), True, "0.5"])
def test_what_is_no_number_is_a_dash(value: Any) -> None:
    assert finite(value) is None
    assert number(value) == "–"


def test_numbers() -> None:
    assert [number(value) for value in (-0.0001, -1234.5, 0)] == ["0.000", "−1,234.500", "0.000"]
