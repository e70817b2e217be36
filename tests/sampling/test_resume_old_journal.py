"""A run that version 0.1.0 began and that was killed is resumed by today's code."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from toa_trl.data.prompts import load_prompts
from toa_trl.errors import ConfigError
from toa_trl.sampler import TOASampler
from toa_trl.sampling.journal import Journal, copy_journals, recover
from toa_trl.sampling.journal.table import VERSION

GOLDEN = Path(__file__).parents[1] / "golden" / "journal_0.1.0"
PLAYS = [json.loads(line) for line in (GOLDEN / "plays.jsonl").read_text().splitlines()]


def interrupted_run(run_dir: Path) -> Path:
    """Write the journal of the killed run as SQLite."""
    with closing(sqlite3.connect(run_dir / "journal.sqlite")) as db:
        db.executescript("PRAGMA page_size=8192; PRAGMA journal_mode=WAL;")
        db.executescript((GOLDEN / "interrupted.sql").read_text())
    return run_dir


def stored_plays(run_dir: Path) -> list[dict[str, Any]]:
    """Return every row of the journal without its time and its empty columns."""
    with closing(sqlite3.connect(run_dir / "journal.sqlite")) as db:
        db.row_factory = sqlite3.Row
        rows = [dict(row) for row in db.execute("SELECT * FROM plays ORDER BY prompt_id, play")]
    kept = []
    for row in rows:
        del row["written_s"]
        kept.append({key: value for key, value in row.items() if value is not None})
    return kept


def old_sampler(**changes: Any) -> TOASampler:
    """Return a sampler with the configuration of the killed run."""
    config = yaml.safe_load((GOLDEN / "run.yaml").read_text())
    for key in ("prompts", "output_dir"):
        del config[key]
    agents = [{**agent, "latency_s": 0.0} for agent in config.pop("agents")]
    reward = config.pop("reward")
    return TOASampler(agents, reward, progress=False, **{**config, **changes})


def test_a_journal_of_version_0_1_0_is_resumed_to_the_same_plays(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    before = stored_plays(run)
    assert 0 < len(before) < len(PLAYS)
    old_sampler().sample(load_prompts(str(GOLDEN / "prompts.jsonl")), output_dir=run)
    after = stored_plays(run)
    assert after == PLAYS
    assert all(row in after for row in before)
    assert VERSION == 3  # of the dump's first line


def test_a_journal_of_version_0_1_0_is_read_copied_and_recovered(tmp_path: Path) -> None:
    """It has no column that says which tokens are estimated."""
    run = interrupted_run(tmp_path)
    path, stored = run / "journal.sqlite", stored_plays(run)
    with (
        closing(Journal(path, lock=False)) as old,
        closing(Journal(":memory:", create=True)) as new,
    ):
        plays = [play for rollout in old.rollouts() for play in rollout.plays]
        assert len(plays) == len(stored)
        assert not any(play.completion and play.completion.tokens_estimated for play in plays)
        assert old.counts().num_estimated == 0
        new.begin(old.identity, old.prompts())
        assert copy_journals([path], new) == len(stored)
        assert [play for rollout in new.rollouts() for play in rollout.plays] == plays
    assert stored_plays(run) == stored
    assert recover(run).num_plays == len(stored)


def test_a_journal_of_version_0_1_0_refuses_another_configuration(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path)
    prompts = load_prompts(str(GOLDEN / "prompts.jsonl"))
    with pytest.raises(ConfigError, match="seed: 3 -> 4"):
        old_sampler(seed=4).sample(prompts, output_dir=run)
    assert len(stored_plays(run)) < len(PLAYS)
