"""Reading a journal: its prompts, plays and totals, whose values are checked."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from graphlib import CycleError, TopologicalSorter
from typing import Any, get_args

from toa_trl.sampling.journal.table import SELECT_PROMPT, TYPES, Row
from toa_trl.types import (
    Action,
    AgentCounts,
    Completion,
    Counts,
    Kind,
    Play,
    Prompt,
    Rollout,
    Spending,
)

MAX_S = 1e11  # unix times beyond are invalid
KINDS = get_args(Kind)
# total: a sum of integers may overflow
TOTAL_TOKENS = "CAST(total(prompt_tokens) AS INTEGER), CAST(total(completion_tokens) AS INTEGER)"


class JournalReader(ABC):
    """What can be read from a `Journal`, which opens the file."""

    _plays: str  # subquery: every play, with the columns of `Row`

    @abstractmethod
    def select(self, sql: str, *values: Any) -> list[Any]:
        """Return the rows that a statement reads."""

    @abstractmethod
    def _errors(self) -> AbstractContextManager[None]:
        """Raise what reading raises as a JournalError that says what to do."""

    def plays(self, prompt_id: str) -> list[Play]:
        """Return the plays of one prompt, scored and failed, by index."""
        with self._errors():
            return [as_play(row) for row in self._rows(prompt_id)]

    def rollouts(self) -> Iterator[Rollout]:
        """Yield every prompt with its plays, in the order of the prompts file."""
        for prompt in self.prompts():
            plays = tuple(self.plays(prompt.id))
            with self._errors():
                check_tree(plays)
            yield Rollout(prompt, plays)

    def prompts(self) -> Iterator[Prompt]:
        """Yield every prompt, in the order of the prompts file."""
        for _, prompt_id, messages, metadata in self._prompts():
            with self._errors():
                prompt = as_prompt(prompt_id, messages, metadata)
            yield prompt

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all plays, in the order of the prompts."""
        for _, prompt_id, *_ in self._prompts():
            yield from self._rows(prompt_id)

    def _rows(self, prompt_id: str) -> list[Row]:
        sql = f"SELECT * FROM {self._plays} WHERE prompt_id = ? ORDER BY play"
        return [Row._make(row) for row in self.select(sql, prompt_id)]

    def _prompts(self) -> Iterator[tuple[int, str, str, str]]:
        # Row by row: an open cursor would keep SQLite from emptying the WAL.
        sql = f"{SELECT_PROMPT} WHERE position > ? ORDER BY position LIMIT 1"
        rows = self.select(sql, -1)
        while rows:
            yield rows[0]
            rows = self.select(sql, rows[0][0])

    def num_prompts(self) -> int:
        """Return the number of prompts of the run."""
        return int(self.select("SELECT count(*) FROM prompts")[0][0])

    def has_message_fields(self) -> bool:
        """Return whether a message of a prompt has more than a role and a content."""
        sql = (
            "SELECT EXISTS (SELECT 1 FROM prompts, json_each(messages) AS message, "
            "json_each(message.value) AS field WHERE field.key NOT IN ('role', 'content'))"
        )
        return bool(self.select(sql)[0][0])

    def num_scored(self) -> dict[str, int]:
        """Return the number of scored plays by prompt id, for prompts that have any play."""
        return dict(self.select("SELECT prompt_id, count(reward) FROM plays GROUP BY prompt_id"))

    def counts(self) -> Counts:
        """Return totals over the run."""
        (totals,) = self.select(
            "SELECT count(reward), count(*) - count(reward), "
            "coalesce(sum(reward IS NOT NULL AND finish_reason = 'length'), 0), "
            f"{TOTAL_TOKENS}, "
            f"total(flops), total(reward_flops), count(tokens_estimated) FROM {self._plays}"
        )
        return Counts(self.num_prompts(), *totals)

    def agent_counts(self) -> dict[str, AgentCounts]:
        """Return totals over the run, by name of the agent."""
        rows = self.select(
            "SELECT CAST(agent AS TEXT), count(reward), count(*) - count(reward), "
            f"{TOTAL_TOKENS}, "
            f"total(flops), count(tokens_estimated) FROM {self._plays} GROUP BY agent"
        )
        return {agent: AgentCounts(*totals) for agent, *totals in rows}

    def best_rewards(self) -> dict[str, float]:
        """Return the best raw reward by prompt id, for prompts with a scored play."""
        scored = "SELECT prompt_id, CAST(max(reward) AS REAL) FROM plays WHERE reward IS NOT NULL"
        return dict(self.select(f"{scored} GROUP BY prompt_id"))

    def failures(self, length: int) -> dict[str, int]:
        """Return the number of failed plays by the first `length` characters of the reason."""
        reason = (
            "SELECT CAST(substr(error, 1, ?) AS TEXT), count(*) FROM plays "
            "WHERE error IS NOT NULL GROUP BY 1"
        )
        return dict(self.select(reason, length))

    def num_written_since(self, unix_s: float) -> int:
        """Return the number of plays written at that unix time or later."""
        return int(self.select("SELECT count(*) FROM plays WHERE written_s >= ?", unix_s)[0][0])

    def times(self) -> tuple[float, float] | None:
        """Return the unix times of the first and the last play, or None if there is no play."""
        # Two queries: SQLite then takes both ends from the index instead of scanning it.
        first = self.select("SELECT min(written_s) FROM plays")[0][0]
        last = self.select("SELECT max(written_s) FROM plays")[0][0]
        if first is None:
            return None
        with self._errors():
            check_times((first, last))
        return (first, last)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the run's results; an empty mapping before the run has begun."""
        identity = self._get("identity") or {}
        with self._errors():
            check_identity(identity)
        return identity

    @property
    def reward_spending(self) -> Spending:
        """What calls of the reward model have cost, as far as it is written."""
        with self._errors():
            tokens, cost, *estimated = self._get("reward_spending") or (0, 0.0)
            return Spending(int(tokens), float(cost), *map(int, estimated))

    @property
    def extensions(self) -> list[dict[str, Any]]:
        """When the run was extended (unix times in `time_s`), and the `changes`."""
        return list(self._get("extensions") or ())

    @property
    def completed(self) -> bool:
        """Whether every budget was spent, and the data sets and the report were written."""
        return self._get("completed") is not None

    def _get(self, key: str) -> Any:
        with self._errors():
            rows = self.select("SELECT value FROM run WHERE key = ?", key)
            return json.loads(rows[0][0]) if rows else None


def as_play(row: Row) -> Play:
    """Return the play of a row.

    Raises:
        ValueError: a value has another type or is out of range: this package did not write it.
    """
    refs = json.loads(row.refs) if all(map(isinstance, row, TYPES)) else None
    if not isinstance(refs, list) or any(type(ref) is not int for ref in refs):
        raise ValueError(f"play {row.play!r} has a value of the wrong type")
    finite = row.reward is None or math.isfinite(row.reward)
    if row.play < 0 or row.depth < 0 or row.kind not in KINDS or not finite:
        raise ValueError(f"play {row.play} has a value that is out of range")
    action = Action(row.agent, row.kind, tuple(refs), row.parent, row.depth)  # type: ignore[arg-type]
    done = None
    if row.response is not None:  # then the other columns of the completion are not null either
        done = Completion(
            row.response,
            row.finish_reason,  # type: ignore[arg-type]
            row.prompt_tokens,  # type: ignore[arg-type]
            row.completion_tokens,  # type: ignore[arg-type]
            row.flops,
            row.reasoning,
            tokens_estimated=bool(row.tokens_estimated),
        )
    return Play(
        row.play, action, done, row.reward, row.error, row.seed, row.reward_flops, row.second_reward
    )


def as_prompt(prompt_id: Any, messages: str, metadata: str) -> Prompt:
    """Return the prompt of a row.

    Raises:
        TypeError: a value has another type.
        ValueError: there is no message.
    """
    columns = json.loads(metadata)
    if not isinstance(prompt_id, str) or not isinstance(columns, Mapping):
        raise TypeError(f"the prompt {prompt_id!r} has a value of the wrong type")
    prompt = Prompt(prompt_id, json.loads(messages), dict(columns))
    if not prompt.messages:
        raise ValueError(f"the prompt {prompt_id!r} has no message")
    return prompt


def check_tree(plays: Sequence[Play]) -> None:
    """Check that no plays of a prompt see each other in a circle; lost plays may be missing.

    Raises:
        ValueError: some do.
    """
    seen_by = {}
    for play in plays:
        action = play.action
        seen_by[play.index] = (*action.refs, *(() if action.parent is None else (action.parent,)))
    if all(max(seen, default=-1) < index for index, seen in seen_by.items()):
        return  # the rule; else a play was asked for again after a stop
    try:
        TopologicalSorter(seen_by).prepare()
    except CycleError as error:
        raise ValueError(f"play {error.args[1][0]} sees itself, directly or not") from error


def check_identity(identity: Any) -> None:
    """Check the types of a run's identity, as far as it is given.

    Raises:
        ValueError: a value has another type.
    """
    kinds = {"budget": int, "agents": dict, "prompts": dict, "allocation": dict}
    sound = isinstance(identity, dict) and all(
        isinstance(identity.get(key, kind()), kind) for key, kind in kinds.items()
    )
    if not sound:
        raise ValueError("the configuration of the run has a value of the wrong type")


def check_times(times_s: tuple[Any, Any]) -> None:
    """Check that values are unix times.

    Raises:
        ValueError: one is not.
    """
    if not all(isinstance(time_s, float) and 0 <= time_s < MAX_S for time_s in times_s):
        raise ValueError("the time of a play is not a unix time")
