"""The page's section of the audit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.report.test_report import text_of
from toa_trl.report.audit import (
    Contamination,
    Index,
    audit_reward,
    card_section,
    find_contamination,
    measure,
)
from toa_trl.report.audit.contamination import Overlap
from toa_trl.report.audit.findings import SHOWN
from toa_trl.report.page import write_report


def section(page: str) -> str:
    return text_of(page.partition('<section id="audit">')[2].partition("</section>")[0])


def test_a_run_without_audit_is_looked_at(tmp_path: Path, write_run: Callable[..., Any]) -> None:
    rows = write_run(tmp_path)
    page = write_report(tmp_path, results={}).read_text()
    text = section(page)
    found = audit_reward(tmp_path)
    assert not (tmp_path / "audit.json").exists()
    assert "Overlap with evaluation sets was not checked." in text
    assert "No second reward was recorded" in text
    num_scored = sum(row["reward"] is not None for row in rows)
    assert f"Over {num_scored:,} scored plays, the correlation of reward and length" in text
    cut = found.best.num_truncated
    assert f"cut short by max_tokens {cut} {found.best.num_prompts} " in text
    assert '<a href="#pairs">Chosen against rejected</a>' in page
    assert '<a href="#audit">Audit</a>' in page


def test_overlaps_are_listed_and_harmless(tmp_path: Path, write_run: Callable[..., Any]) -> None:
    write_run(tmp_path, failures=0)
    hostile = pq.read_table(tmp_path / "rollouts")["prompt"][0].as_py()[0]["content"]
    problems = [{"id": "<b>1</b>", "prompt": hostile}]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    audit = measure(tmp_path, [str(tmp_path / "bench.jsonl")])
    audit.write(tmp_path / "audit.json")
    assert audit.contamination is not None
    assert audit.contamination == find_contamination(
        tmp_path, Index([str(tmp_path / "bench.jsonl")])
    )
    num = len(audit.contamination.overlaps)
    page = write_report(tmp_path, results={}).read_text()
    assert num == 40
    assert "<b>1</b>" not in page
    text = section(page)
    assert f"There are {num - SHOWN} more rows in audit.json." in text
    assert "bench.jsonl, <b>1</b>" in text
    assert f"{num} prompts of the training data overlap with an evaluation set" in text


def test_the_longest_overlaps_are_shown(tmp_path: Path, write_run: Callable[..., Any]) -> None:
    write_run(tmp_path)
    overlaps = tuple(
        Overlap(f"p{n}", "prompt", "bench.jsonl", "1", n, "words") for n in range(13, 53)
    )
    audit = replace(measure(tmp_path), contamination=Contamination((), 40, 0, overlaps, 40))
    audit.write(tmp_path / "audit.json")
    text = section(write_report(tmp_path, results={}).read_text())
    for shown in (text, card_section(audit)):
        assert [n for n in range(13, 53) if f"p{n}" in shown] == list(range(33, 53))


def test_a_second_reward_is_shown(tmp_path: Path, write_run: Callable[..., Any]) -> None:
    write_run(tmp_path)
    for file in (tmp_path / "rollouts").iterdir():
        table = pq.read_table(file)
        pq.write_table(table.append_column("second_reward", table["reward"]), file)
    text = section(write_report(tmp_path, results={}).read_text())
    assert "A second reward model, which the search never saw" in text
    assert "The selected response is also its best for 100 % of the prompts" in text
    assert "the correlation of both rewards is 1 (Spearman)" in text
