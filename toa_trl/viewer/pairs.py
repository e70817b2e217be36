"""Preference pairs for a review: pages of dpo/ by query, with the marks beside the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import duckdb
from pydantic import BaseModel, ConfigDict, Field

from toa_trl.data.review import Key, Mark, review_of, set_mark
from toa_trl.errors import ConfigError
from toa_trl.sampling.journal import Journal
from toa_trl.viewer.plays import select_from_files
from toa_trl.viewer.tree import read_rollout

ORDERS = {
    "prompt": "0",
    "margin": "chosen_reward - rejected_reward",
    "length": "length(chosen[1].content)",
    "longer": "length(chosen[1].content) - length(rejected[1].content)",
}
KEY = "prompt_id, chosen_play, rejected_play"
COUNT = "SELECT count(*) FROM {rows}"


class PairQuery(BaseModel):
    """A page of pairs."""

    model_config = ConfigDict(extra="forbid")

    sort: Literal["prompt", "margin", "length", "longer"] = "margin"
    descending: bool = False
    mark: Literal["", "none", "accept", "reject", "edit"] = ""
    after: str = ""  # key of the last pair of the page before
    limit: int = Field(default=10, ge=1, le=50)


class MarkRequest(BaseModel):
    """A mark that is set, or removed without `mark`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    run: str
    prompt: str
    chosen: int
    rejected: int
    mark: Literal["accept", "reject", "edit"] | None = None
    chosen_text: str | None = None
    rejected_text: str | None = None


def page(journal: Journal, path: Path, query: PairQuery) -> dict[str, Any]:
    """Return {pairs, next, total, marks: number of marks by kind}; total is None without dpo/.

    Marked pairs are those of the review, also those that dpo/ does not have any more.

    Raises:
        ConfigError: `after` is not a key, or review.jsonl is damaged.
        JournalError: the journal cannot be read.
    """
    marks = review_of(path).marks
    files = sorted(path.glob("dpo/*.parquet"))
    values = _after(query.after)
    if query.mark in ("accept", "reject", "edit"):
        wanted = [key for key, mark in marks.items() if mark.mark == query.mark]
        found = _marked(wanted, len(query.after) and int(values[0]), query.limit)
    else:
        found = _of_files(files, query, values, list(marks)) if files else []
    shown = found[: query.limit]
    following = json.dumps(shown[-1]) if len(found) > len(shown) else None
    keys = [_key(parts) for _, *parts in shown]
    pairs = [_pair(journal, key, marks.get(key)) for key in keys]
    return {
        "pairs": [pair for pair in pairs if pair is not None],
        "next": following,
        "total": select_from_files(files, COUNT)[0][0] if files else None,
        "marks": Counter(mark.mark for mark in marks.values()),
    }


def mark(journal: Journal, path: Path, request: MarkRequest) -> dict[str, Any]:
    """Set or remove a mark; return {marks: number of marks by kind}.

    Raises:
        ConfigError: there is no such pair, a text is invalid, or review.jsonl is not this
            project's.
        JournalError: the journal cannot be read.
    """
    key, made = (request.prompt, request.chosen, request.rejected), None
    if request.mark is not None:
        if _pair(journal, key, None) is None:
            raise ConfigError(f"the prompt {request.prompt!r} has no such pair of plays")
        made = Mark(request.mark, request.chosen_text, request.rejected_text)
    marks = set_mark(path, key, made).marks
    return {"marks": Counter(each.mark for each in marks.values())}


def _after(text: str) -> list[Any]:
    try:
        value, *key = json.loads(text or '[0, "", 0, 0]')
        return [float(value), *_key(key)]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"after: not the key of a pair: {text!r}") from error


def _key(parts: Sequence[Any]) -> Key:
    prompt_id, chosen, rejected = parts
    return str(prompt_id), int(chosen), int(rejected)


def _marked(keys: Sequence[Key], start: int, limit: int) -> list[list[Any]]:
    """Return (number of the next one, key) of a page, the latest mark first."""
    latest = list(reversed(keys))[start : start + limit + 1]
    return [[start + number, *key] for number, key in enumerate(latest, 1)]


def _of_files(
    files: Sequence[Path], query: PairQuery, after: Sequence[Any], marked: Sequence[Key]
) -> list[Any]:
    order, sign = ORDERS[query.sort], "<" if query.descending else ">"
    sql = f"SELECT {order} AS value, {KEY} FROM {{rows}}"
    clauses, values = list[str](), list[Any]()
    if query.mark == "none" and marked:
        named = "concat_ws(' ', prompt_id, chosen_play, rejected_play)"
        clauses.append(f"{named} NOT IN (SELECT unnest(?))")
        values.append([" ".join(map(str, key)) for key in marked])
    if query.after:
        value, *key = after
        clauses.append(f"(value {sign} ? OR (value = ? AND ({KEY}) > (?, ?, ?)))")
        values += [value, value, *key]
    where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
    way = "DESC" if query.descending else "ASC"
    tail = f"{where} ORDER BY value {way}, {KEY} LIMIT {query.limit + 1}"
    try:
        return select_from_files(files, f"SELECT * FROM ({sql}) {tail}", values)
    except duckdb.Error as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"dpo/ cannot be read ({reason}); derive it again") from error


def _pair(journal: Journal, key: Key, mark: Mark | None) -> dict[str, Any] | None:
    """Return a pair with its texts, or None if the journal does not have it."""
    prompt_id, *sides = key
    try:
        rollout = read_rollout(journal, prompt_id)
    except ConfigError:
        return None
    plays = {play.index: play for play in rollout.plays}
    pair: dict[str, Any] = {
        "prompt": prompt_id,
        "messages": [[message.role, message.text] for message in rollout.prompt.messages],
        "mark": mark.mark if mark else None,
    }
    for side, index in zip(("chosen", "rejected"), sides, strict=True):
        play = plays.get(index)
        if play is None or play.completion is None or play.reward is None:
            return None
        pair[side] = {
            "play": index,
            "agent": play.action.agent,
            "reward": play.reward,
            "response": play.completion.text,
            "edited": getattr(mark, side) if mark else None,
        }
    return pair
