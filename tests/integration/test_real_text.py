"""The three tasks on real text, through the recipes: scripts/real_text.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ENVIRONMENT, ROOT, preloaded

DATA = ROOT.parent / "shared/data"
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is missing"),
]


def rows(part: str, folder: Path, *options: object) -> Any:
    done = subprocess.run(
        preloaded("scripts/real_text.py", part, "--output", folder, *options),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text())[part]


def test_the_picks_of_a_parallel_search_beat_every_single_system(tmp_path: Path) -> None:
    found = rows("translation", tmp_path, "--limit", 150)
    assert [row["direction"] for row in found] == ["cs-en", "de-en", "is-en", "ru-en", "zh-en"]
    assert [row["segments"] for row in found] == [150] * 5
    for row in found:
        systems = [
            value
            for key, value in row.items()
            if key.startswith("chrF of ") and key != "chrF of the picks"
        ]
        assert len(systems) == 6
        assert row["chrF of the picks"] > max(systems)


@pytest.mark.skipif(
    not (ROOT / ".venv-alpaca/bin/python").is_file(),
    reason="no .venv-alpaca: bash scripts/alpaca_environment makes it",
)
def test_alpaca_eval_runs_end_to_end_and_agrees_with_the_judge(tmp_path: Path) -> None:
    found = {row["by"]: row for row in rows("alignment", tmp_path, "--limit", 300)}
    assert found.keys() == {"reward", "judge", "alpaca_eval"}
    for row in found.values():
        assert row["num_wins"] + row["num_ties"] + row["num_losses"] + row["num_failed"] == 300
        # 5 % nonsense, three attempts; alpaca_eval's annotator gives none
        assert row["num_failed"] <= 8
    # the search picked by this reward: it can tie with one of the systems, but not lose
    assert found["reward"]["num_losses"] == 0
    # judge and annotator both prefer the longer one, by words and by characters
    assert abs(found["judge"]["win_rate"] - found["alpaca_eval"]["win_rate"]) < 0.05


def test_every_gold_answer_is_right(tmp_path: Path) -> None:
    found = rows("math", tmp_path)
    assert [(row["problems"], row["num_problems"]) for row in found] == [
        ("gsm8k_test", 1319),
        ("math500", 500),
    ]
    assert all(row["accuracy"] == 1.0 and row["num_unjudged"] == 0 for row in found)
