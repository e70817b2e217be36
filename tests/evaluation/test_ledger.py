"""Ledgers: what was paid for is never asked for twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait
from toa_trl.errors import RewardError
from toa_trl.evaluation.judges import kept_judge, kept_reward
from toa_trl.evaluation.ledger import KeptReward, Ledger, ledger_path
from toa_trl.rewards import RewardModel
from toa_trl.types import Prompt, Score

PROMPT = Prompt("p", "What?", {"reference": "x"})  # type: ignore[arg-type]


class Counting(RewardModel):
    """Scores a text by its length; compares by it, too."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.closed = False

    async def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        self.asked += responses
        if "bad" in responses:
            raise RewardError("no score")
        return [
            float("nan") if response == "nan" else float(len(response)) for response in responses
        ]

    async def compare(self, prompt: Prompt, a: str, b: str) -> Score:
        self.asked.append((a, b))
        return Score(float(len(a) > len(b)), 5.0, weight=3.0)

    async def aclose(self) -> None:
        self.closed = True


def test_a_ledger_is_read_again_without_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "new" / "l.jsonl"
    ledger = Ledger(path, "id", "sample")
    assert ledger.get("a", 0) is None
    ledger.add("a", 0, response="ü")
    ledger.add("a", 1, response="y")
    ledger.close()
    assert json.loads(path.read_text().splitlines()[0]) == {"id": "a", "sample": 0, "response": "ü"}
    path.write_text(path.read_text()[:-5])
    again = Ledger(path, "id", "sample")
    assert len(again) == 1
    again.add("a", 1, response="z")
    again.close()
    assert [json.loads(line)["response"] for line in path.read_text().splitlines()] == ["ü", "z"]


def test_scores_and_verdicts_are_kept_and_failures_are_not(tmp_path: Path) -> None:
    def ask(model: Counting) -> list[Any]:
        async def all_of_it() -> list[Any]:
            kept = KeptReward(model, tmp_path / "kept.jsonl")
            found: list[Any] = [
                *await kept.score(PROMPT, ["a", "bc"]),
                await kept.compare(PROMPT, "long", "s"),
            ]
            for text in ("bad", "nan"):
                with pytest.raises(RewardError):
                    await kept.score(PROMPT, [text])
            await kept.aclose()
            return found

        return wait(all_of_it())

    first, second = Counting(), Counting()
    found, again = ask(first), ask(second)
    assert found == again == [1.0, 2.0, Score(1.0, weight=3.0)]
    assert first.asked == ["a", "bc", ("long", "s"), "bad", "nan"]
    assert second.asked == ["bad", "nan"]
    assert first.closed


def test_another_prompt_column_or_text_is_asked_for(tmp_path: Path) -> None:
    model = Counting()
    kept = KeptReward(model, tmp_path / "kept.jsonl")
    others = [PROMPT, Prompt("p", "Who?"), Prompt("p", "What?", {"reference": "y"})]  # type: ignore[arg-type]
    for prompt in others:
        wait(kept.score(prompt, ["a"]))
    wait(kept.compare(PROMPT, "a", "b"))
    wait(kept.compare(PROMPT, "b", "a"))
    wait(kept.aclose())
    assert model.asked == ["a", "a", "a", ("a", "b"), ("b", "a")]


def test_other_settings_or_another_checkpoint_have_another_file(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_text("x")
    entry = {"engine": "transformers", "model": str(model)}
    paths = [ledger_path(tmp_path, "a/b", entry, 1)]
    assert ledger_path(tmp_path, "a/b", entry, 1) == paths[0]
    (model / "README.md").write_text("a card")
    assert ledger_path(tmp_path, "a/b", entry, 1) == paths[0]
    paths.append(ledger_path(tmp_path, "a/b", entry, 2))
    paths.append(ledger_path(tmp_path, "a/b", {**entry, "system_prompt": "x"}, 1))
    (model / "model.safetensors").write_text("trained again")
    paths.append(ledger_path(tmp_path, "a/b", entry, 1))
    assert len(set(paths)) == len(paths)
    assert all(path.parent == tmp_path and path.name.startswith("a_b-") for path in paths)


def test_files_in_the_working_directory_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"kind": "judge", "agent": {"model": "m"}}
    before = ledger_path(tmp_path, "_judge", entry)
    (tmp_path / "notes.txt").write_text("x")
    assert ledger_path(tmp_path, "_judge", entry) == before


def test_without_a_model_there_is_no_ledger(tmp_path: Path) -> None:
    assert kept_reward(None, "reward", tmp_path) is None
    assert kept_judge(None, tmp_path) is None
