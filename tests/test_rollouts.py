"""What a run leaves goes to disk and to the Hub without ever being in memory as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from tests.families import make_family
from tests.helpers import IDENTITY, play
from toa_trl.errors import ConfigError
from toa_trl.report.rollout_tables import rollout_files
from toa_trl.report.rollouts import summarize
from toa_trl.report.sections import what_ran
from toa_trl.report.trees import read_trees
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.journal import Journal
from toa_trl.types import Action, Completion, Play, Prompt, Spending


def rollouts(num_prompts: int, *rewards: float | None, path: Path | str = ":memory:") -> Rollouts:
    journal = Journal(path, create=True)
    journal.begin(IDENTITY, [Prompt(str(i), f"Question {i}?") for i in range(num_prompts)])  # type: ignore[arg-type]
    journal.append_all(
        [(str(i), play(n, reward)) for i in range(num_prompts) for n, reward in enumerate(rewards)]
    )
    return Rollouts(journal)


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `push_to_hub` gave to be pushed: the rows of each part, and the rest."""
    found: dict[str, Any] = {}

    def push_folder(folder: Path, repo_id: str, **options: Any) -> str:
        parts = ("sft", "dpo", "rollouts")
        found.update(
            {part: pq.read_table(folder / part).to_pylist() for part in parts},
            folder=folder,
            **options,
        )
        assert {"README.md", "lineage.json", "audit.json"} <= {
            path.name for path in folder.iterdir()
        }
        return repo_id

    monkeypatch.setattr("toa_trl.rollouts.push_folder", push_folder)
    return found


def test_estimated_tokens_are_marked_in_rollouts_card_and_report(tmp_path: Path) -> None:
    it = rollouts(1, 1.0, path=tmp_path / "journal.sqlite")
    done = Completion("Eight.", "stop", 10, 5, tokens_estimated=True)
    it._journal.append("0", Play(1, Action("a"), done, 2.0))
    it._journal.append("0", play(2, None))
    it._journal.set_reward_spending(Spending(1200, 0.0, 200))
    it._journal.append("0", play(3, None))
    it.save(tmp_path)
    marks = pq.read_table(tmp_path / "rollouts").column("tokens_estimated").to_pylist()
    assert marks == [False, True, None, None]
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| `prompt_id` | text | sft, dpo, rollouts |" in card
    example = json.loads(card.partition("```json\n")[2].partition("\n```")[0])
    assert example.keys() >= {"prompt", "completion", "reward"}
    assert "| tokens | 20 read, 10 written, estimated from the texts of 1 play |" in card
    assert "| tokens of the reward | 1,200, of which 200 are estimated |" in card
    summary = summarize(rollout_files(tmp_path))
    said = " ".join(map(str, what_ran(IDENTITY, summary, {"a": 0}).blocks))
    assert "wrote 10 (estimated from the texts of 1 play)" in said


def test_pushed_is_what_the_data_sets_hold(pushed: dict[str, Any]) -> None:
    it = rollouts(5, 1.0, None, 3.0)
    params: dict[str, Any] = {"sft": {"top_k": 2}, "preference": {"rejected_rank": 2}}
    assert it.push_to_hub("me/first", private=True, **params) == "me/first"
    assert (pushed["private"], pushed["token"], pushed["overwrite"], pushed["folder"].name) == (
        True,
        None,
        False,
        "first",
    )
    assert pushed["sft"] == it.to_sft(top_k=2).to_list()
    assert pushed["dpo"] == it.to_preference(2).to_list()
    assert pushed["rollouts"] == it.to_dataset().to_list()
    assert not pushed["folder"].exists()  # a run in memory leaves nothing


def test_prompts_can_be_left_out_of_what_is_pushed(pushed: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bench.jsonl").write_text('{"prompt": "question 3"}\n')
    params: dict[str, Any] = {"preference": {"rejected_rank": 2}, "without": ["0", "1"]}
    rollouts(5, 1.0, 3.0).push_to_hub(
        "me/first", **params, decontaminate=[str(tmp_path / "bench.jsonl")]
    )
    assert {part: len(pushed[part]) for part in ("sft", "dpo", "rollouts")} == {
        "sft": 2,
        "dpo": 2,
        "rollouts": 10,
    }


def test_what_is_pushed_is_made_as_the_run_was_and_saved_first(
    pushed: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "bench.jsonl").write_text('{"prompt": "question 3"}\n')
    of_run = (
        f"{{sft: {{top_k: 2}}, preference: {{rejected_rank: 2}}, decontaminate: "
        f"[{tmp_path / 'bench.jsonl'}]}}"
    )
    (tmp_path / "run.yaml").write_text(of_run)
    it = rollouts(5, 1.0, 3.0, path=tmp_path / "journal.sqlite")
    it.push_to_hub("me/first")
    assert (len(pushed["sft"]), len(pushed["dpo"]), len(pushed["rollouts"])) == (8, 4, 10)
    assert pushed["folder"] == tmp_path
    assert pq.read_table(tmp_path / "sft").num_rows == 8
    it.push_to_hub("me/first", sft={}, decontaminate=[])
    assert (len(pushed["sft"]), len(pushed["dpo"]), len(pushed["rollouts"])) == (5, 5, 10)


def test_the_pairs_that_were_last_made_are_pushed(pushed: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{preference: {rejected_rank: 3}}")
    it = rollouts(5, 1.0, 2.0, 3.0, 4.0, path=tmp_path / "journal.sqlite")

    def ranks() -> set[int]:
        it.push_to_hub("me/first")
        return {row["rejected_rank"] for row in pushed["dpo"]}

    assert ranks() == {3}  # of run.yaml
    it.to_preference(2)
    it.to_preference(policy="worst")
    it.to_sft(top_k=2)
    with pytest.raises(ConfigError, match="no prompt gives"):
        it.to_preference(policy="margin", margin=9.0)
    assert (ranks(), len(pushed["sft"])) == ({4}, 10)
    it.push_to_hub("me/first", preference={"rejected_rank": 2}, sft={})
    assert (len(pushed["sft"]), pushed["dpo"][0]["rejected_rank"]) == (5, 2)


def test_nothing_is_pushed_where_a_part_is_empty() -> None:
    with pytest.raises(ConfigError, match="/first/dpo has no row"):
        rollouts(5, 1.0, 1.0).push_to_hub("me/first")


def test_saving_reads_one_prompt_at_a_time_and_counts_what_gave_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toa_trl.data.tables.ROWS_PER_BATCH", 4)
    it, alive, most = rollouts(50, 1.0, 2.0), 0, 0
    read = Journal.rollouts

    def counting(self: Journal) -> Iterator[Any]:
        nonlocal alive, most
        for rollout in read(self):
            alive += 1
            most = max(most, alive)
            yield rollout
            alive -= 1

    monkeypatch.setattr(Journal, "rollouts", counting)
    dropped = it.save(tmp_path / "run", preference={"rejected_rank": 3})
    assert most == 1
    assert dropped == {"sft": {}, "dpo": {"fewer than 3 scored responses": 50}}
    assert (
        "`dpo`: 50 prompts: fewer than 3 scored responses"
        in (tmp_path / "run" / "README.md").read_text()
    )


def test_the_number_of_prompts_counts_those_without_plays() -> None:
    it = rollouts(7)
    assert (len(it), it.unfinished, len(list(it))) == (7, 7, 7)


def test_ids_that_are_left_out_add_up_and_are_ids(tmp_path: Path) -> None:
    it = rollouts(5, 1.0, 2.0)
    dropped = it.save(
        tmp_path, sft={"without": ["1"]}, preference={"rejected_rank": 2}, without={"2", "3"}
    )
    reason = "overlaps with an evaluation set"
    assert dropped == {"sft": {reason: 3}, "dpo": {reason: 2}}
    assert len(it.to_sft(without=["1", "2"])) == 3
    with pytest.raises(ConfigError, match="without: must be a list, not '12'"):
        it.save(tmp_path, without="12")


def test_tool_calls_come_back_from_every_part_as_they_were_given(tmp_path: Path) -> None:
    calls = [
        {"type": "function", "function": {"name": "add", "arguments": {"a": [3, 4]}}},
        {"type": "function", "function": {"name": "find", "arguments": {"text": "x"}}, "id": "c"},
    ]
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": "3 + 4?", "name": "ada"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "7", "name": "add"},
        {"role": "tool", "content": "-", "tool_call_id": "c"},
        {"role": "user", "content": "Twice that?"},
    ]
    asked = [conversation, [{"role": "user", "content": "?"}]]
    journal = Journal(tmp_path / "journal.sqlite", create=True)
    journal.begin(IDENTITY, [Prompt(str(i), messages) for i, messages in enumerate(asked)])  # type: ignore[arg-type]
    for prompt_id in "01":
        journal.append_all([(prompt_id, play(n, reward)) for n, reward in enumerate((0.0, 1.0))])
    it = Rollouts(journal)
    in_memory = {
        "sft": it.to_sft(),
        "dpo": it.to_preference(2),
        "rollouts": it.to_dataset(),
    }
    it.save(tmp_path, preference={"rejected_rank": 2})
    for part, rows in in_memory.items():
        stored = load_dataset(
            str(tmp_path / part), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert stored.to_list() == rows.to_list()
        assert stored.features == rows.features
        assert [row["prompt"] for row in {row["prompt_id"]: row for row in rows}.values()] == asked
    qwen = make_family("qwen2.5")  # its template shows what TRL trains on
    rows = load_dataset(str(tmp_path / "sft"), split="train", cache_dir=str(tmp_path / "cache"))
    shown = [qwen.apply_chat_template(row["prompt"], tokenize=False) for row in rows]
    assert [text.count("<tool_call>") for text in shown] == [2, 0]
    assert '{"name": "add", "arguments": {"a": [3, 4]}}' in shown[0]
    (tree, _), _ = read_trees(rollout_files(tmp_path), ["0", "1"], 4)
    assert [turn[1] for turn in tree["messages"]][::4] == ["3 + 4?", "Twice that?"]
    assert json.loads(tree["messages"][1][1]) == calls


def test_every_response_of_a_group_is_compared_with_evaluation_sets(tmp_path: Path) -> None:
    problem = " ".join(f"word{number}" for number in range(13))
    (tmp_path / "bench.jsonl").write_text(json.dumps({"prompt": problem}))
    it = rollouts(2, 2.0, 1.0)
    it._journal.append("0", play(2, 0.0, problem))
    dropped = [
        it.save(tmp_path / "run", decontaminate=[tmp_path / "bench.jsonl"], recipes=recipes)
        for recipes in ([], [{"builder": "groups"}])
    ]
    reason = "overlaps with an evaluation set"
    assert [counts["sft"] for counts in dropped] == [{}, {reason: 1}]
    assert dropped[1]["groups"] == {reason: 1}
