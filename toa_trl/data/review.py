"""Human review of preference pairs: marks in review.jsonl beside the run, honoured by data sets.

A rejected pair is left out. An edited response replaces the response of its play in rows of sft,
dpo and kto; its reward stays that of the response that was sampled.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock

from toa_trl.errors import ConfigError
from toa_trl.utils.files import read_jsonl, write_json_lines
from toa_trl.utils.targets import check_ours, is_json_lines, marked

FILE = "review.jsonl"
LOCK_WAIT_S = 30.0
Verdict = Literal["accept", "reject", "edit"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
SIDES = ("chosen", "rejected")
WORDS = {"accept": "accepted", "reject": "rejected, and left out", "edit": "edited"}
Key = tuple[str, int, int]
"""Id of the prompt, play of the chosen response, play of the rejected response."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mark:
    """What a person decided about one pair."""

    mark: Verdict
    chosen: str | None = None  # text that replaces the response
    rejected: str | None = None
    time_s: float = 0.0  # unix time

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is invalid.
        """
        if self.mark not in VERDICTS:
            raise ConfigError(f"mark: must be {', '.join(VERDICTS)}, not {self.mark!r}")
        texts = [text for text in (self.chosen, self.rejected) if text is not None]
        if (self.mark == "edit") != bool(texts):
            raise ConfigError("an edit needs a text, and no other mark has one")
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise ConfigError("an edited response must be a text that is not blank")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ConfigError("an edited response has an unpaired surrogate") from error
        if len(texts) == 2 and texts[0].strip() == texts[1].strip():
            raise ConfigError("the chosen and the rejected response must differ")


@dataclass(frozen=True)
class Review:
    """The marks of a run, in the order in which they were set."""

    marks: Mapping[Key, Mark] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Collect the edited texts by response: the last edit of a play counts."""
        texts: dict[tuple[str, int], str] = {}
        for (prompt_id, *plays), mark in self.marks.items():
            for play, text in zip(plays, (mark.chosen, mark.rejected), strict=True):
                if text is not None:
                    texts[prompt_id, play] = text
        object.__setattr__(self, "_texts", texts)

    def rows(self, rows: Iterable[Row], counts: Counter[str] | None = None) -> Iterator[Row]:
        """Yield the rows of a data set as the review leaves them.

        Args:
            rows: of any format.
            counts: counts what the review says about the rows that it concerns.
        """
        for row in rows:
            reviewed, what = self.apply(row)
            if what is not None and counts is not None:
                counts[what] += 1
            if reviewed is not None:
                yield reviewed

    def apply(self, row: Row) -> tuple[Row | None, str | None]:
        """Return a row as the review leaves it, or None; and what the review says about it."""
        if not self.marks:
            return row, None
        if "chosen_play" in row:
            return self._pair(row)
        text = self._text(row["prompt_id"], row["play"]) if "play" in row else None
        if text is None:
            return row, None
        return {**row, "completion": _response(text)}, WORDS["edit"]

    def _pair(self, row: Row) -> tuple[Row | None, str | None]:
        key = (row["prompt_id"], row["chosen_play"], row["rejected_play"])
        mark = self.marks.get(key)
        if mark is not None and mark.mark == "reject":
            return None, WORDS["reject"]
        changed = dict(row)
        for side in SIDES:
            own = getattr(mark, side) if mark is not None else None
            text = own if own is not None else self._text(key[0], row[f"{side}_play"])
            if text is not None:
                changed[side] = _response(text)
        if changed == row:
            return row, WORDS["accept"] if mark is not None else None
        chosen, rejected = (str(changed[side][0]["content"]).strip() for side in SIDES)
        if chosen == rejected:
            return None, "edited to two equal responses, and left out"
        return changed, WORDS["edit"]

    @property
    def texts(self) -> Mapping[tuple[str, int], str]:
        """The edited texts, by prompt and play."""
        texts: Mapping[tuple[str, int], str] = self._texts  # type: ignore[attr-defined]
        return texts

    def _text(self, prompt_id: str, play: int) -> str | None:
        return self.texts.get((prompt_id, play))


def review_of(run_dir: Path) -> Review:
    """Return the review of a run; without a file it has no marks.

    Raises:
        ConfigError: a line is not a mark.
    """
    path, marks = run_dir / FILE, dict[Key, Mark]()
    if not path.is_file():
        return Review()
    for place, row in read_jsonl(path):
        if isinstance(row, dict) and "toa_trl" in row:
            continue
        try:
            key = (row["prompt_id"], row["chosen_play"], row["rejected_play"])
            values = {name: row.get(name) for name in ("mark", *SIDES)}
            mark = Mark(**values, time_s=float(row.get("time_s") or 0))
            if not isinstance(key[0], str) or any(type(play) is not int for play in key[1:]):
                raise ConfigError("the pair is not named by a prompt and two plays")
        except (LookupError, TypeError, ValueError) as error:
            raise ConfigError(f"{place}: not a mark of a review ({error})") from error
        marks[key] = mark
    return Review(marks)


def review_beside(journal: str) -> Review:
    """Return the review of a run by the path of its journal; a run in memory has none."""
    return Review() if journal == ":memory:" else review_of(Path(journal).parent)


def set_mark(run_dir: Path, key: Key, mark: Mark | None) -> Review:
    """Set the mark of a pair, or remove it, and return the review.

    Raises:
        ConfigError: review.jsonl has a line that is not a mark, or is a file of somebody else.
    """
    path = run_dir / FILE
    with FileLock(run_dir / ".review.toa_trl.lock", timeout=LOCK_WAIT_S):
        check_ours({path: is_json_lines})
        marks = dict(review_of(run_dir).marks)
        marks.pop(key, None)
        if mark is not None:
            marks[key] = Mark(mark.mark, mark.chosen, mark.rejected, time.time())
        _write(path, marks)
    return Review(marks)


def joined_review(run_dirs: Sequence[Path]) -> Review:
    """Return the marks of several runs, in their order.

    Raises:
        ConfigError: a line is not a mark, or two runs have different marks of one pair, or
            different texts for one response.
    """
    marks, places = dict[Key, Mark](), dict[Any, tuple[Any, Path]]()
    for run_dir in run_dirs:
        review = review_of(run_dir)
        found: list[tuple[str, Any, Any]] = []
        for key, mark in review.marks.items():
            content = (mark.mark, mark.chosen, mark.rejected)
            found.append((f"the pair {key[1]}/{key[2]} of {key[0]!r}", key, content))
        for response, text in review.texts.items():
            found.append((f"the response {response[1]} of {response[0]!r}", response, text))
        for what, key, content in found:
            other, first = places.setdefault(key, (content, run_dir))
            if other != content:
                raise ConfigError(
                    f"{run_dir / FILE}: {what} has another mark in {first / FILE}; remove one of "
                    "them (toa-trl view)"
                )
        marks |= review.marks
    return Review(marks)


def write_review(run_dir: Path, review: Review) -> None:
    """Write the marks of a new run; without marks it has no file.

    Raises:
        ConfigError: review.jsonl is a file of somebody else.
    """
    path = run_dir / FILE
    check_ours({path: is_json_lines})
    if review.marks:
        _write(path, review.marks)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, marks: Mapping[Key, Mark]) -> None:
    lines = [marked({"about": "marks of a human review; see toa-trl view"})]
    for (prompt_id, chosen_play, rejected_play), each in marks.items():
        pair = {"prompt_id": prompt_id, "chosen_play": chosen_play, "rejected_play": rejected_play}
        lines.append(pair | {k: v for k, v in asdict(each).items() if v is not None})
    write_json_lines(path, lines)


def _response(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
