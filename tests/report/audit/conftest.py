"""Runs of given plays, in folders as `Rollouts.save` leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import IDENTITY
from toa_trl.rollouts import Rollouts
from toa_trl.sampling.journal import Journal
from toa_trl.types import Rollout

SHARED = Path(__file__).parents[3] / "../shared/data"


def real(name: str) -> list[dict[str, Any]]:
    """The rows of a file of real text."""
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: the shared data sets are not part of the project")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(path: Path, rows: Iterable[Any]) -> str:
    """The rows as JSONL, and where."""
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def rollouts_of(rollouts: Iterable[Rollout], path: Path | str = ":memory:") -> Rollouts:
    """As they come from a journal."""
    rollouts = list(rollouts)
    journal = Journal(path, create=True)
    journal.begin(IDENTITY, [rollout.prompt for rollout in rollouts])
    journal.append_all(
        [(rollout.prompt.id, play) for rollout in rollouts for play in rollout.plays]
    )
    return Rollouts(journal)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """save(rollouts, **params of Rollouts.save) -> the run's folder, with a journal."""

    def of(rollouts: Iterable[Rollout], **params: Any) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        it = rollouts_of(rollouts, folder / "journal.sqlite")
        it.save(folder, **{"preference": {"policy": "worst"}, **params})
        it._journal.unlock()
        return folder

    return of
