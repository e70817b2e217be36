"""The trees of some prompts, for the viewer of the report."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from toa_trl.report.rollout_tables import messages_of, read_batches

MAX_PROMPTS = 200
MAX_CHARS = 40_000_000  # of responses in the file; browsers get slow beyond about 50 MB
MAX_INDEX = 6_000_000  # characters of prompts that can be searched
MAX_SEARCHED = 1_000  # of a prompt
UNCHANGED = ("play", "agent", "kind", "parent", "prompt_tokens", "completion_tokens")
COLUMNS = (
    *("prompt_id", "prompt", "metadata", "refs", "depth", "response", "reward", "finish_reason"),
    *("error", *UNCHANGED),
)


def choose_prompts(prompt_ids: Sequence[str], num: int = MAX_PROMPTS) -> list[str]:
    """Return at most `num` prompts, evenly spaced over the run, including the first one."""
    num = min(num, len(prompt_ids))
    return [prompt_ids[i * len(prompt_ids) // num] for i in range(num)]


def read_trees(
    files: Sequence[Path], prompt_ids: Sequence[str], num_plays: int
) -> tuple[list[dict[str, Any]], int]:
    """Return the trees of some prompts for the viewer, and the length at which texts are cut.

    Args:
        files: the rollouts of a run.
        prompt_ids: the prompts, in the order of the result.
        num_plays: approximate number of their plays.
    """
    limit = max(500, MAX_CHARS // max(num_plays, 1))
    trees: dict[str, dict[str, Any]] = {}
    wanted = pa.array(prompt_ids, pa.string())
    for batch in read_batches(files, COLUMNS):
        ids = batch["prompt_id"].cast(pa.string())
        for row in batch.filter(pc.is_in(ids, value_set=wanted)).to_pylist():
            tree = trees.setdefault(row["prompt_id"], _tree(row, limit))
            tree["plays"].append(_play(row, limit))
    for tree in trees.values():
        tree["plays"].sort(key=lambda play: play["play"])
        scored = [play for play in tree["plays"] if play["reward"] is not None]
        for rank, play in enumerate(sorted(scored, key=lambda play: -play["reward"]), 1):
            play["rank"] = rank
    return [trees[i] for i in prompt_ids if i in trees], limit


def read_prompts(files: Sequence[Path], prompt_ids: Sequence[str]) -> list[list[str]]:
    """Return [id, text] of every prompt, for the search: all messages, or their beginning.

    Args:
        files: the rollouts of a run.
        prompt_ids: the prompts, in the order of the result.
    """
    limit = min(MAX_SEARCHED, MAX_INDEX // max(len(prompt_ids), 1))
    texts: dict[str, str] = {}
    for batch in read_batches(files, ["prompt_id", "prompt"]):
        first: dict[str, int] = {}
        for number, prompt_id in enumerate(batch["prompt_id"].to_pylist()):
            if prompt_id not in texts:
                first.setdefault(prompt_id, number)
        for row in batch.take(pa.array(first.values(), pa.int64())).to_pylist():
            parts = [_turn(one, limit)[1] for one in messages_of(row.get("prompt"))]
            texts[row["prompt_id"]] = " ".join(" ".join(parts).split())[:limit]
    return [[prompt_id, texts.get(prompt_id, "")] for prompt_id in prompt_ids]


def as_json(value: Any) -> str:
    """Return JSON for a <script> element, without "<", which could end it or open a comment."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _tree(row: dict[str, Any], limit: int) -> dict[str, Any]:
    try:
        metadata = json.loads(row.get("metadata") or "{}")
    except ValueError:
        metadata = {"metadata": row["metadata"]}
    texts = []
    for key, value in dict(metadata).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        texts.append([key, text[:limit]])
    return {
        "id": row["prompt_id"],
        "messages": [_turn(message, limit) for message in messages_of(row.get("prompt"))],
        "metadata": texts,
        "plays": [],
    }


def _turn(message: dict[str, Any], limit: int) -> list[str]:
    calls = message.get("tool_calls")
    text = message["content"] or (json.dumps(calls, ensure_ascii=False) if calls else "")
    return [message["role"], text[:limit]]


def _play(row: dict[str, Any], limit: int) -> dict[str, Any]:
    reward, response = row["reward"], row.get("response")
    scored = reward is not None and math.isfinite(reward)
    return {
        **{name: row.get(name) for name in UNCHANGED},
        "refs": list(row.get("refs") or ()),
        "depth": row.get("depth") or 0,
        "reward": reward if scored else None,
        "finish": row.get("finish_reason"),
        "response": None if response is None else response[:limit],
        "cut": max(0, len(response or "") - limit),  # characters left out
        "error": None if scored else (row.get("error") or "no reason recorded")[:limit],
    }
