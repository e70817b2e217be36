"""toa-trl audit, and data --decontaminate: what they write, and what they leave alone."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset

from tests.helpers import play, rollout
from tests.report.audit.conftest import written
from toa_trl.cli.main import run as main
from toa_trl.data.tables import write_parquet
from toa_trl.errors import ConfigError
from toa_trl.report.audit import read_audit

PROBLEM = "Take the two largest of the four numbers that were given, add them, and write it down."


@pytest.fixture(name="run")
def _run(save: Callable[..., Path]) -> Path:
    its = [rollout(*(play(i, i / 4, f"text {i}") for i in range(4)), id=f"p{n}") for n in range(3)]
    bad = rollout(play(0, 1.0, f"First a word. {PROBLEM}"), play(1, 0.0), id="bad")
    return save([*its, bad])


@pytest.fixture(name="problems")
def _problems(tmp_path: Path) -> str:
    return written(
        tmp_path / "bench.jsonl", [{"id": "b1", "prompt": PROBLEM}, {"id": "b2", "prompt": "Else"}]
    )


def section(run: Path) -> str:
    found = re.search(
        r"^## Audit$.*?(?=^## )", (run / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return found[0]


def test_the_card_of_every_run_has_an_audit(run: Path) -> None:
    text = section(run)
    assert (
        "Overlap with evaluation sets was not checked. `toa-trl audit RUN --against FILE ...`"
        in text
    )
    assert "No second reward was recorded" in text
    assert "cut short by max_tokens: 0 of 4 (0 %)" in text
    assert "**" not in text


def test_audit_shows_overlaps_in_all_three(
    run: Path, problems: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "README.md").read_text()
    main(["audit", str(run), "--against", problems])
    (overlap,) = json.loads((run / "audit.json").read_text())["contamination"]["overlaps"]
    assert (overlap["prompt_id"], overlap["side"], overlap["problem_id"]) == (
        "bad",
        "response",
        "b1",
    )
    assert (
        overlap["words"]
        == "take the two largest of the four numbers that were given add them and write it down"
    )
    text = section(run)
    assert "**1 prompt of the training data overlap" in text
    assert "- response of `bad`, problem `b1` of bench.jsonl: 17 consecutive words" in text
    assert "take the two largest" not in text  # a card is published
    after = (run / "README.md").read_text()
    assert before.partition("<!-- toa_trl begin audit")[0] in after
    assert before.partition("## Citation")[2] == after.partition("## Citation")[2]
    assert (
        "<code>toa-trl data RUN --decontaminate FILE ...</code>"
        in (run / "report.html").read_text()
    )
    assert str(run / "report.html") in capsys.readouterr().out

    main(["audit", str(run)])  # nothing to compare with: what was found stands
    assert section(run) == text


def test_audit_elsewhere_leaves_the_run_alone(run: Path, problems: str, tmp_path: Path) -> None:
    before = {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and "journal" not in path.name
    }
    main(["audit", str(run), "--against", problems, "--output", str(tmp_path / "found.json")])
    after = {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and "journal" not in path.name
    }
    assert before == after
    assert json.loads((tmp_path / "found.json").read_text())["contamination"]["num_kept"] == 1


def test_data_without_what_overlaps(
    run: Path, problems: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", str(run), "--policy", "worst", "--decontaminate", problems])
    assert "sft: 1 prompts give no row: overlaps with an evaluation set" in capsys.readouterr().out
    for name in ("sft", "dpo"):
        rows = load_dataset(str(run / name), split="train", cache_dir=str(run / "cache"))
        assert rows["prompt_id"] == ["p0", "p1", "p2"]
    card = (run / "README.md").read_text()
    assert "- `sft`: 1 prompts: overlaps with an evaluation set" in card
    assert "the training data has no row of them" in section(run)
    assert "**" not in section(run)
    found = read_audit(run).contamination
    assert found is not None
    assert (found.num_kept, found.prompt_ids) == (0, ("bad",))

    main(
        ["data", str(run), "--policy", "worst"]
    )  # and the next data are others, of which nothing is known
    assert read_audit(run).contamination is None


def test_data_are_made_as_the_run_was(run: Path, problems: str, tmp_path: Path) -> None:
    def made(*options: str) -> tuple[list[str], int]:
        main(["data", str(run), *options])
        sft, pairs = (pq.read_table(run / name)["prompt_id"].to_pylist() for name in ("sft", "dpo"))
        return sft, len(pairs)

    written_by = {
        "sft": {"top_k": 2},
        "preference": {"policy": "margin", "margin": 0.5},
        "decontaminate": [problems],
    }
    (run / "run.yaml").write_text(yaml.safe_dump(written_by))
    assert made() == (["p0", "p0", "p1", "p1", "p2", "p2"], 3)
    assert "the training data has no row of them" in section(run)
    assert made("--top_k", "1", "--margin", "0.8") == (["p0", "p1", "p2"], 0)
    assert made("--policy", "worst", "--keep_truncated")[1] == 3  # and no margin beside it
    other = written(tmp_path / "other.jsonl", [{"prompt": "What?"}])
    assert made("--decontaminate", other) == ([], 0)  # the prompt of all
    found = read_audit(run).contamination
    assert found is not None
    assert [each.file for each in found.sets] == [problems, other]
    assert made("--decontaminate")[0][-2:] == ["bad", "bad"]
    assert read_audit(run).contamination is None


@pytest.mark.parametrize("part", ["rollouts", "sft", "dpo"])
def test_data_that_were_not_written_leave_those_from_before(
    part: str, run: Path, problems: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decontaminate = ["data", str(run), "--policy", "worst", "--decontaminate", problems]
    main(decontaminate)
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}

    def full(rows: Any, schema: Any, folder: Path) -> int:
        if folder.name == part:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_parquet(rows, schema, folder)

    monkeypatch.setattr("toa_trl.rollouts.write_parquet", full)
    with pytest.raises(OSError, match="No space"):
        main(decontaminate)
    assert {path: path.read_bytes() for path in before} == before
    assert not [
        path for path in run.rglob("*") if path.name.endswith((".toa_trl-new", ".toa_trl-old"))
    ]


def test_a_folder_without_journal_and_card_can_be_audited(run: Path, problems: str) -> None:
    for name in ("journal.sqlite", "README.md", "audit.json"):
        (run / name).unlink()
    main(["audit", str(run), "--against", problems])
    assert not (run / "README.md").exists()
    assert read_audit(run).contamination is not None


def test_a_mistake_writes_nothing(run: Path, tmp_path: Path) -> None:
    before = (run / "README.md").read_text(), (run / "audit.json").read_text()
    for arguments in (
        ["audit", str(run), "--against", "gone.jsonl"],
        ["data", str(run), "--decontaminate", "gone.jsonl"],
    ):
        with pytest.raises(
            ConfigError, match=r"gone\.jsonl is not an existing \.jsonl, \.json or \.parquet file"
        ):
            main(arguments)
    with pytest.raises(ConfigError, match="rejected_rank: must be"):
        main(["data", str(run), "--rejected_rank", "1"])
    with pytest.raises(ConfigError, match=r"--output: .*gone: .*README\.md is not a folder"):
        main(["audit", str(run), "--output", str(run / "README.md" / "gone" / "x.json")])
    with pytest.raises(ConfigError, match="nowhere: not a folder"):
        main(["audit", str(tmp_path / "nowhere")])
    assert ((run / "README.md").read_text(), (run / "audit.json").read_text()) == before
    assert not (run / "report.html").exists()
