"""What an evaluation has paid for, written down as it comes: responses, scores and verdicts are never asked for twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from toa_trl.rewards.base import DetailedReward, check_scores
from toa_trl.types import Prompt, Score, as_dicts
from toa_trl.utils.files import read_jsonl, replace_text


class Ledger:
    """Values by key, a JSON line for each, in a file or, without one, in memory.

    Args:
        path: of the file; a last line that a kill has cut is dropped.
        names: of the parts of a key, as they stand in a line beside the value's own.
    """

    def __init__(self, path: Path | None, *names: str) -> None:
        self._path, self._names = path, names
        self._rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._file: TextIO | None = None
        if path is not None and path.is_file():
            content = path.read_text(encoding="utf-8", errors="replace")
            if not content.endswith("\n"):
                replace_text(path, content[: content.rfind("\n") + 1])
            self._rows = {tuple(row[name] for name in names): row for _, row in read_jsonl(path)}

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, *key: Any) -> dict[str, Any] | None:
        """The value, if it is there."""
        return self._rows.get(key)

    def add(self, *key: Any, **value: Any) -> dict[str, Any]:
        """Write one; it is in the file when this returns."""
        row = self._rows[key] = {**dict(zip(self._names, key, strict=True)), **value}
        if self._path is not None:
            if self._file is None:  # opened late: what only failed leaves no file
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
        return row

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class KeptReward(DetailedReward):
    """A reward model or a judge whose scores and verdicts are kept in a ledger.

    Args:
        model: with `score`, and for a judge `compare`.
        path: of the ledger; see `ledger_path` for one that nothing else shares.
    """

    def __init__(self, model: Any, path: Path) -> None:
        self._model: Any = model
        self._ledger = Ledger(path, "id", "texts")

    async def check(self) -> None:
        """Raises:
        ConfigError: a server of the model is not there.
        """
        await self._model.check()

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        return list(
            await asyncio.gather(*(self._score(prompt, response) for response in responses))
        )

    async def compare(self, prompt: Prompt, a: str, b: str) -> Score:
        """See `toa_trl.rewards.judge.JudgeReward`."""
        key = (prompt.id, digest(as_dicts(prompt.messages), a, b))
        if (row := self._ledger.get(*key)) is None:
            found = await self._model.compare(prompt, a, b)
            row = self._ledger.add(*key, value=found.value, weight=found.weight)
        return Score(row["value"], weight=row["weight"])

    async def aclose(self) -> None:
        """Close what the model holds, and the ledger."""
        self._ledger.close()
        await self._model.aclose()

    async def _score(self, prompt: Prompt, response: str) -> Score:
        key = (prompt.id, digest(as_dicts(prompt.messages), dict(prompt.metadata), response))
        if (row := self._ledger.get(*key)) is None:
            (found,) = check_scores(
                "the reward model", await self._model.score(prompt, [response]), 1
            )
            row = self._ledger.add(*key, value=float(found))
        return Score(row["value"])


def keep(model: Any, folder: Path, name: str, entry: Mapping[str, Any]) -> KeptReward | None:
    """The model with a ledger in `folder`; None where there is none.

    Args:
        model: made of `entry`.
        folder: of the file.
        name: what the file's begins with.
        entry: as far as it decides what the model says.
    """
    if model is None:
        return None
    return KeptReward(model, ledger_path(folder, name, entry, model.texts))


def ledger_path(folder: Path, name: str, entry: Mapping[str, Any], *further: Any) -> Path:
    """A file for what a model says that no other model and settings share.

    A local checkpoint is told by its files' sizes and times, so that one that was trained again is asked again. A model
    behind a server is told by its name alone: delete the file where another one is served under the old name.

    Args:
        folder: of the file.
        name: what the file's name begins with.
        entry: of the model, as far as it decides what the model says.
        further: whatever else does, as JSON values.
    """
    checkpoint = Path(str(entry.get("model", entry.get("path", ""))))
    files = (
        sorted(checkpoint.glob("*.*"))
        if checkpoint.is_dir()
        else [checkpoint]
        if checkpoint.is_file()
        else []
    )
    state = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
        if file.name != "README.md"
    ]
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    return folder / f"{name}-{digest(entry, state, *further)[:8]}.jsonl"


def digest(*values: Any) -> str:
    """What tells such JSON values from others."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
