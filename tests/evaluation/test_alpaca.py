"""AlpacaEval on a few difficult texts, and invalid input; real texts: tests/integration."""

from __future__ import annotations

import re
import venv
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.alpaca_judge import judging
from toa_trl.errors import ConfigError, RewardError
from toa_trl.evaluation import alpaca
from toa_trl.evaluation.alpaca import AlpacaEvalConfig, run_alpaca_eval
from toa_trl.utils.config import validate

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


PYTHON = Path(__file__).parents[2] / ".venv-alpaca/bin/python"
needs_alpaca_eval = pytest.mark.skipif(
    not PYTHON.is_file(), reason="no .venv-alpaca: bash scripts/alpaca_environment makes it"
)


@pytest.fixture(name="stand_in")
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with alpaca_eval, as far as mistakes are found before it starts."""
    monkeypatch.setattr(alpaca, "_template", lambda python: "template.txt")


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "instructions": INSTRUCTIONS,
        "outputs": OUTPUTS,
        "baseline_outputs": BASELINE,
    }
    texts = {key: changes.pop(key, value) for key, value in given.items()}
    entry = {"annotator": JUDGE, "python": str(PYTHON), **changes}
    config = validate(AlpacaEvalConfig, entry, "alpaca_eval")
    return run_alpaca_eval(
        name="mine", baseline_name="theirs", output_dir=folder, config=config, **texts
    )


@pytest.mark.heavy  # CI makes the environment while the fast tests run
@needs_alpaca_eval
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


@pytest.mark.heavy
@needs_alpaca_eval
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


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotator": {"model": "m"}}, "alpaca_eval.annotator: the key 'base_url' is missing"),
        ({"annotator": {**JUDGE, "url": "x"}}, "alpaca_eval.annotator: unknown key 'url'"),
        (
            {"annotator": {**JUDGE, "base_url": ["http://a/v1"]}},
            "alpaca_eval.annotator.base_url: must be a string",
        ),
        (
            {"annotator": {**JUDGE, "base_url": "a/v1"}},
            "alpaca_eval.annotator.base_url: must begin with http:// or https://, not 'a/v1'",
        ),
        (
            {"annotator": {**JUDGE, "max_concurrency": 0}},
            "alpaca_eval.annotator.max_concurrency: must be >= 1, not 0",
        ),
        ({"outputs": OUTPUTS[1:]}, "8 instructions, 7 outputs of mine, 8 of theirs"),
        ({"baseline_outputs": BASELINE[1:]}, "8 instructions, 8 outputs of mine, 7 of theirs"),
        ({"instructions": [], "outputs": [], "baseline_outputs": []}, "0 instructions"),
        ({"datasets": ["a"]}, "every instruction needs one of each"),
        ({"max_instances": 0}, "alpaca_eval.max_instances: must be >= 1, not 0"),
        ({"length_control": "/nowhere"}, "no df_gamed.csv in /nowhere"),
    ],
)
def test_mistakes_are_reported_before_the_annotator_is_asked(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(tmp_path, **changes)


def test_a_missing_environment_names_the_script_that_makes_it(tmp_path: Path) -> None:
    missing = r"'/no/python' cannot be started \(No such file .*scripts/alpaca_environment makes"
    with pytest.raises(ConfigError, match=f"alpaca_eval.python: {missing}"):
        run(tmp_path, python="/no/python")
    bare = tmp_path / "bare"
    venv.create(bare)
    with pytest.raises(ConfigError, match=r"alpaca_eval is not installed for .*alpaca_environment"):
        run(tmp_path, python=str(bare / "bin/python"))


def test_a_failed_process_is_one_line_with_its_reason(tmp_path: Path, stand_in: None) -> None:
    fails = tmp_path / "python"
    fails.write_text("#!/bin/sh\necho openai.BadRequestError: no more today\nexit 1\n")
    fails.chmod(0o755)
    with pytest.raises(RewardError, match=r"BadRequestError: no more today; .* resumes") as error:
        run(tmp_path, python=str(fails))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("logprobs", [True, False])
def test_alpaca_eval_reads_the_annotator_that_was_configured(
    tmp_path: Path, logprobs: bool, stand_in: None
) -> None:
    with pytest.raises(RewardError, match="no output"):
        run(tmp_path, python="/bin/false", annotator={**JUDGE, "logprobs": logprobs})
    config = yaml.safe_load((tmp_path / "annotator/configs.yaml").read_text(encoding="utf-8"))
    ((name, settings),) = config.items()
    assert name == f"instruct-judge ({'logprobs' if logprobs else 'text'})"
    assert settings["prompt_template"] == "template.txt"
    assert settings["completions_kwargs"]["num_procs"] == 2
    if not logprobs:  # the verdicts are numbers, which a round trip through JSON would lose
        assert set(settings["completion_parser_kwargs"]["outputs_to_match"]) == {1, 2}


def test_only_a_fitting_file_gives_length_control(tmp_path: Path) -> None:
    (tmp_path / "df_gamed.csv").write_text("model,index\na,0\na,1\nb,0\nb,1\n")
    path, note = alpaca._find_length_control(str(tmp_path), 2)
    assert (path, note) == (tmp_path / "df_gamed.csv", "")
    path, note = alpaca._find_length_control(str(tmp_path), 3)
    assert path is None
    assert note.startswith("it is made for AlpacaEval's 2 instructions in their order, these are 3")
