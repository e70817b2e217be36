"""The plays of one prompt, and how a response differs from the drafts that it saw."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from difflib import SequenceMatcher
from typing import Any

from toa_trl.errors import ConfigError, JournalError
from toa_trl.sampling.journal import Journal
from toa_trl.sampling.journal.faults import journal_error
from toa_trl.sampling.journal.reading import as_prompt, check_tree
from toa_trl.sampling.journal.table import SELECT_PROMPT
from toa_trl.types import Play, Rollout
from toa_trl.viewer.plays import find_prompts

WORD = re.compile(r"\s+|\w+|.", re.DOTALL)
LINE = re.compile(r"[^\n]*\n|[^\n]+")
MAX_COST = 1_000_000  # pairs of equal words that a comparison looks at
EXCERPT = 200  # characters of a prompt in a list
Diff = list[tuple[str, str]]
"""("=" | "-" | "+", text): in both, in the draft alone, in the response alone."""


def prompts(journal: Journal, words: str, after: int, limit: int) -> dict[str, Any]:
    """Return {prompts: [{id, text, plays, best}], next}, in the order of the prompts file.

    Args:
        journal: of the run.
        words: see `find_prompts`.
        after: position after which the page begins.
        limit: prompts per page.
    """
    found = find_prompts(journal, words, after, limit + 1)
    shown = found[:limit]
    ids = json.dumps([prompt_id for _, prompt_id, _ in shown])
    played = journal.select(
        "SELECT prompt_id, count(*), max(reward) FROM plays "
        "WHERE prompt_id IN (SELECT value FROM json_each(?)) GROUP BY prompt_id",
        ids,
    )
    by_id = {prompt_id: (num, best) for prompt_id, num, best in played}
    rows = []
    for _, prompt_id, messages in shown:
        num, best = by_id.get(prompt_id, (0, None))
        text = _last_text(messages)[:EXCERPT]
        rows.append({"id": prompt_id, "text": text, "plays": num, "best": best})
    return {"prompts": rows, "next": shown[-1][0] if len(found) > len(shown) else None}


def read_rollout(journal: Journal, prompt_id: str) -> Rollout:
    """Return one prompt with its plays.

    Raises:
        ConfigError: there is no such prompt.
        JournalError: the journal cannot be read.
    """
    rows = journal.select(f"{SELECT_PROMPT} WHERE id = ?", prompt_id)
    if not rows:
        raise ConfigError(f"there is no prompt {prompt_id!r} in this run")
    plays = tuple(journal.plays(prompt_id))
    try:
        check_tree(plays)
        return Rollout(as_prompt(*rows[0][1:]), plays)
    except (ValueError, TypeError, RecursionError) as error:
        raise journal_error(journal.path, error) from error


def tree(journal: Journal, prompt_id: str) -> dict[str, Any]:
    """Return a prompt with its plays, without their responses.

    Returns:
        {id, messages, metadata, before, after (ids of the neighbours or None), plays}.

    Raises:
        ConfigError: there is no such prompt.
        JournalError: the journal cannot be read.
    """
    rollout = read_rollout(journal, prompt_id)
    prompt = rollout.prompt
    ranks = rollout.ranks
    position = "(SELECT position FROM prompts WHERE id = ?)"
    before, after = (
        journal.select(
            f"SELECT id FROM prompts WHERE position {sign} {position} "
            f"ORDER BY position {order} LIMIT 1",
            prompt_id,
        )
        for sign, order in (("<", "DESC"), (">", "ASC"))
    )
    return {
        "id": prompt.id,
        "messages": [[message.role, message.text] for message in prompt.messages],
        "metadata": [[str(key), _as_text(value)] for key, value in prompt.metadata.items()],
        "before": before[0][0] if before else None,
        "after": after[0][0] if after else None,
        "plays": [{**_facts(play), "rank": ranks.get(play.index)} for play in rollout.plays],
    }


def play(journal: Journal, prompt_id: str, index: int) -> dict[str, Any]:
    """Return a play with its response, and the drafts that it saw with the differences.

    Returns:
        The facts of `tree`, {response, reasoning, error, drafts: [{..., response, diff}]}.

    Raises:
        ConfigError: there is no such play.
        JournalError: the journal cannot be read.
    """
    plays = {play.index: play for play in read_rollout(journal, prompt_id).plays}
    if index not in plays:
        raise ConfigError(f"the prompt {prompt_id!r} has no play {index}")
    own = plays[index]
    text = own.completion.text if own.completion else None
    drafts = []
    for ref in own.action.refs:
        if ref not in plays:  # lost
            continue
        draft = plays[ref].completion
        seen = draft.text if draft else ""
        diff = None if text is None else difference(seen, text)
        drafts.append({**_facts(plays[ref]), "response": seen, "diff": diff})
    reasoning = own.completion.reasoning if own.completion else None
    more = {"response": text, "reasoning": reasoning, "error": own.error, "drafts": drafts}
    return {**_facts(own), **more}


def difference(old: str, new: str) -> Diff:
    """Return how two texts differ, by words; by lines, or as a whole, where words take too long."""
    for unit in (WORD, LINE):
        before, after = unit.findall(old), unit.findall(new)
        counts = Counter(after)
        if sum(counts[piece] for piece in before) <= MAX_COST:
            return _merged(before, after)
    return _joined([("-", old), ("+", new)])


def _merged(before: Sequence[str], after: Sequence[str]) -> Diff:
    diff: Diff = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        old, new = "".join(before[i:j]), "".join(after[k:m])
        # spaces between two changes belong to them
        if tag == "equal" and old.strip():
            diff.append(("=", old))
        else:
            diff += [("-", old), ("+", new)]
    return _joined(diff)


def _joined(diff: Diff) -> Diff:
    """Return a difference whose neighbouring changes are one: what is gone, then what is new."""
    joined: Diff = []
    gone = new = ""
    for sign, text in [*diff, ("=", "")]:
        if sign == "-":
            gone += text
        elif sign == "+":
            new += text
        else:
            if gone == new:
                joined.append(("=", gone))
            else:
                joined += [("-", gone), ("+", new)]
            joined.append(("=", text))
            gone = new = ""
    return [(sign, text) for sign, text in joined if text]


def _facts(it: Play) -> dict[str, Any]:
    done = it.completion
    return {
        "play": it.index,
        **asdict(it.action),
        "reward": it.reward,
        "second_reward": it.second_reward,
        "finish": done.finish_reason if done else None,
        "prompt_tokens": done.prompt_tokens if done else None,
        "completion_tokens": done.completion_tokens if done else None,
    }


def _last_text(messages: str) -> str:
    try:
        return str(json.loads(messages)[-1]["content"])
    except (ValueError, LookupError, TypeError) as error:
        raise JournalError(f"a prompt has messages that are not messages: {error}") from error


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
