"""alpaca_eval on the 805 real prompts, with recorded outputs and a scripted annotator."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.alpaca_judge import judging, nonsense
from toa_trl.evaluation.alpaca import AlpacaEvalConfig, run_alpaca_eval
from toa_trl.utils.config import validate

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data/alpaca_eval"
MODEL, BASELINE = "gpt-4o-2024-05-13", "Qwen1.5-110B-Chat"
NUM = 805
PYTHON = ROOT / ".venv-alpaca/bin/python"

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not DATA.is_dir(), reason="the recorded outputs of ../shared/data/alpaca_eval are missing"
    ),
    pytest.mark.skipif(
        not PYTHON.is_file(), reason="no .venv-alpaca: bash scripts/alpaca_environment makes it"
    ),
]
# runs alpaca_eval in a process that can be killed; its input is {texts, output_dir, entry}
KILLABLE = """
import json, sys
from toa_trl.evaluation.alpaca import AlpacaEvalConfig, run_alpaca_eval
given = json.load(sys.stdin)
config = AlpacaEvalConfig(**given["entry"])
run_alpaca_eval(**given["texts"], output_dir=given["output_dir"], config=config)
"""


def run(
    texts: dict[str, Any], output_dir: Path, annotator: dict[str, Any], **options: Any
) -> dict[str, Any]:
    entry = {"annotator": annotator, "python": str(PYTHON), **options}
    config = validate(AlpacaEvalConfig, entry, "alpaca_eval")
    return run_alpaca_eval(**texts, output_dir=output_dir, config=config)


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def texts() -> dict[str, Any]:
    rows = read("outputs.jsonl")
    return {
        "name": MODEL,
        "instructions": [row["prompt"] for row in rows],
        "outputs": [row["outputs"][MODEL] for row in rows],
        "baseline_name": BASELINE,
        "baseline_outputs": [row["outputs"][BASELINE] for row in rows],
    }


def pairs(texts: dict[str, Any]) -> list[tuple[str, str]]:
    return list(zip(texts["outputs"], texts["baseline_outputs"], strict=True))


def longer_wins(mine: str, theirs: str) -> float:
    return 0.5 if len(mine) == len(theirs) else float(len(mine) > len(theirs))


def write_gamed(folder: Path) -> Path:
    """Write a file like AlpacaEval's df_gamed.csv: two baselines that are judged by length."""
    rng = random.Random(0)
    difficulty = [rng.gauss(0, 1) for _ in range(NUM)]
    lines = ["preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for model, verbose in (("concise", -1), ("verbose", 1)):
        for i in range(NUM):
            preference = min(1.0, max(0.0, 0.5 + 0.2 * verbose + rng.gauss(0, 0.1)))
            lines.append(
                f"{preference},{i},{rng.gauss(-verbose, 0.3)},{difficulty[i]},False,{model}"
            )
    folder.mkdir()
    (folder / "df_gamed.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_805_prompts_killed_half_way_resume_and_follow_the_judges_rule(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    expected = [longer_wins(*pair) for pair in pairs(texts)]
    num_identical = sum(mine == theirs for mine, theirs in pairs(texts))
    with judging() as judge:
        annotator = {"model": "long", "base_url": judge.url}
        process = subprocess.Popen(
            [sys.executable, "-c", KILLABLE],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None
        with process.stdin:
            entry = {"annotator": annotator, "python": str(PYTHON)}
            given = {"texts": texts, "output_dir": str(tmp_path / "run"), "entry": entry}
            json.dump(given, process.stdin)
        while judge.stats()["num_asked"] < NUM // 2:
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)  # alpaca_eval's own process as well
        process.wait()
        before = judge.stats()["num_asked"]

        found = run(
            texts,
            tmp_path / "run",
            annotator,
            length_control=str(write_gamed(tmp_path / "gamed")),
            datasets=[row["dataset"] for row in read("prompts.jsonl")],
        )
        after = judge.stats()
        assert after["num_distinct"] == NUM - num_identical
        # it resumes: at most the 128 that alpaca_eval annotates at a time are repeated
        assert after["num_asked"] < before + NUM - num_identical
        assert after["num_asked"] - after["num_distinct"] <= 128
    assert found["win_rate"] == pytest.approx(mean(expected))
    assert (found["num_wins"], found["num_ties"]) == (expected.count(1.0), expected.count(0.5))
    assert found["num_losses"] == expected.count(0.0)
    assert found["num_failed"] == 0
    assert found["mean_length"] == pytest.approx(mean(map(len, texts["outputs"])))
    assert found["baseline_mean_length"] == pytest.approx(mean(map(len, texts["baseline_outputs"])))
    # this judge prefers length alone, and the length control removes most of that
    assert abs(found["length_controlled_win_rate"] - 0.5) < abs(found["win_rate"] - 0.5) / 2
    assert found["length_controlled_standard_error"] > 0


def test_unreadable_text_verdicts_are_counted_and_asked_for_again(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    # without probabilities there are no even odds
    use = [
        i
        for i, (mine, theirs) in enumerate(pairs(texts))
        if len(mine) != len(theirs) or mine == theirs
    ][:200]
    few = {
        key: value if isinstance(value, str) else [value[i] for i in use]
        for key, value in texts.items()
    }
    failed = [mine != theirs and nonsense(0.3, mine, theirs) for mine, theirs in pairs(few)]
    expected = [longer_wins(*pair) for pair in pairs(few)]
    assert 0.2 < mean(failed) < 0.4

    def judged(url: str) -> dict[str, Any]:
        annotator = {"model": "long", "base_url": url, "logprobs": False}
        return run(few, tmp_path / "run", annotator, length_control=gamed)

    gamed = str(write_gamed(tmp_path / "gamed"))
    with judging("--nonsense", "0.3") as judge:
        found = judged(judge.url)
    assert found["num_failed"] == sum(failed)
    assert found["win_rate"] == pytest.approx(
        mean(e for e, fails in zip(expected, failed, strict=True) if not fails)
    )
    assert "made for AlpacaEval's 805 instructions in their order, these are 200" in found["note"]
    with judging() as judge:
        found = judged(judge.url)
        assert judge.stats()["num_asked"] == sum(failed)
    assert found["num_failed"] == 0
    assert found["win_rate"] == pytest.approx(mean(expected))


def test_max_instances_limits_the_judged_instructions(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    with judging() as judge:
        annotator = {"model": "long", "base_url": judge.url}
        found = run(texts, tmp_path, annotator, max_instances=20)
        assert judge.stats()["num_asked"] <= 20
    judged = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    assert len(judged) == 20
    expected = [longer_wins(row["output_2"], row["output_1"]) for row in judged]
    known = dict(zip(texts["instructions"], pairs(texts), strict=True))
    assert all(known[row["instruction"]] == (row["output_2"], row["output_1"]) for row in judged)
    assert found["win_rate"] == pytest.approx(mean(expected))
