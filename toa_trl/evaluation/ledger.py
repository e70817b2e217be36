"""Ledgers keep responses, scores and verdicts, so that none is paid for twice."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from toa_trl.errors import ToaError
from toa_trl.rewards.base import DetailedReward
from toa_trl.rewards.scoring import check_scores
from toa_trl.sampling.identity import digest_of_values, state_of_files
from toa_trl.types import Prompt, Score, as_dicts
from toa_trl.utils.files import read_jsonl, replace_text


class Ledger:
    """Values by key, one JSON line for each, in a file or, without a path, in memory.

    Args:
        path: path of the file; a last line that a kill has cut short is dropped.
        names: names of the parts of a key in a line.
    """

    def __init__(self, path: Path | None, *names: str) -> None:
        """Read the rows of the file."""
        self._path, self._names = path, names
        self._rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._file: TextIO | None = None
        if path is not None and path.is_file():
            content = path.read_text(encoding="utf-8", errors="replace")
            if not content.endswith("\n"):
                replace_text(path, content[: content.rfind("\n") + 1])
            self._rows = {tuple(row[name] for name in names): row for _, row in read_jsonl(path)}

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def get(self, *key: Any) -> dict[str, Any] | None:
        """Return the row of a key, or None."""
        return self._rows.get(key)

    def add(self, *key: Any, **value: Any) -> dict[str, Any]:
        """Add a row; it is in the file when this returns."""
        row = self._rows[key] = {**dict(zip(self._names, key, strict=True)), **value}
        if self._path is not None:
            if self._file is None:  # opened late: failures alone leave no file
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
        return row

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class KeptReward(DetailedReward):
    """A reward model or a judge whose scores and verdicts are kept in a ledger.

    Args:
        model: a reward model; a judge also has `compare`. It is checked before its first score.
        path: path of the ledger, see `ledger_path`.
    """

    def __init__(self, model: Any, path: Path) -> None:
        """Read the ledger."""
        self._model: Any = model
        self._ledger = Ledger(path, "id", "texts")
        self._checking = asyncio.Lock()
        self._checked: bool | ToaError = False

    async def check(self) -> None:
        """Check the model, once: a failure is raised again."""
        async with self._checking:
            if not self._checked:
                try:
                    await self._model.check()
                    self._checked = True
                except ToaError as error:
                    self._checked = error
            if isinstance(self._checked, ToaError):
                raise self._checked

    async def score_details(self, prompt: Prompt, responses: Sequence[str]) -> list[Score]:
        """See `RewardModel`."""
        scores = [self._score(prompt, response) for response in responses]
        return list(await asyncio.gather(*scores))

    async def compare(self, prompt: Prompt, a: str, b: str) -> Score:
        """See `toa_trl.rewards.judge.JudgeReward`."""
        known = self.known(prompt, a, b)
        if known is not None:
            return known
        await self.check()
        score = await self._model.compare(prompt, a, b)
        self._ledger.add(*_pair_key(prompt, a, b), value=score.value, weight=score.weight)
        return Score(score.value, weight=score.weight)

    def known(self, prompt: Prompt, a: str, b: str) -> Score | None:
        """Return the verdict on a pair that the ledger has, or None."""
        row = self._ledger.get(*_pair_key(prompt, a, b))
        return None if row is None else Score(row["value"], weight=row["weight"])

    async def aclose(self) -> None:
        """Close the ledger and the model."""
        self._ledger.close()
        await self._model.aclose()

    async def _score(self, prompt: Prompt, response: str) -> Score:
        key = (
            prompt.id,
            digest_of_values(as_dicts(prompt.messages), dict(prompt.metadata), response),
        )
        row = self._ledger.get(*key)
        if row is None:
            await self.check()
            scores = await self._model.score(prompt, [response])
            (value,) = check_scores("the reward model", scores, 1)
            row = self._ledger.add(*key, value=value)
        return Score(row["value"])


def _pair_key(prompt: Prompt, a: str, b: str) -> tuple[str, str]:
    return prompt.id, digest_of_values(as_dicts(prompt.messages), a, b)


def ledger_path(folder: Path, name: str, entry: Mapping[str, Any], *further: Any) -> Path:
    """Return the path of a ledger that no other model and settings share.

    A local checkpoint is identified by the sizes and times of its files, so that it is asked again
    after further training. A model behind a server is identified by its name: delete the file when
    another model is served under the old name.

    Args:
        folder: folder of the file.
        name: start of the file's name.
        entry: the keys of the model's entry that decide what it answers.
        further: whatever else decides, as JSON values.
    """
    model = entry.get("model", entry.get("path"))
    state = state_of_files(Path(str(model))) if model else []
    name = re.sub(r"[^\w.-]", "_", name)
    return folder / f"{name}-{digest_of_values(entry, state, *further)[:8]}.jsonl"
