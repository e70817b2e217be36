"""What every column of a run's data sets means, in one line each."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toa_trl.data.tables import MESSAGES
from toa_trl.utils.files import map_leaves

COLUMNS = {
    "prompt": "the messages that were asked",
    "completion": "the response that is learned, as a message",
    "completions": "all scored responses, best first",
    "chosen": "the better response, as a message",
    "rejected": "the worse response, as a message",
    "label": "whether the response is wanted",
    "prompt_id": "id of the prompt, the same in all configurations",
    "metadata": "further columns of the prompts file as JSON, in the first row of each prompt",
    "play": "number of the play within its prompt, from 0, in the order of asking",
    "plays": "number of each response's play within its prompt",
    "chosen_play": "number of the play that gave the better response",
    "rejected_play": "number of the play that gave the worse response",
    "draft_play": "number of the play whose response is the draft in the prompt",
    "agent": "name of the model that answered",
    "agents": "name of the model that gave each response",
    "chosen_agent": "name of the model that gave the better response",
    "rejected_agent": "name of the model that gave the worse response",
    "kind": "what the model was asked for: answer, refine (a draft) or aggregate (several drafts)",
    "refs": "numbers of the plays whose responses were shown as drafts",
    "parent": "number of the play below which this one hangs in the tree; empty at the root",
    "depth": "depth in the tree, 0 for an answer to the prompt alone",
    "response": "text of the response",
    "reasoning": "what a reasoning model thought before it, if it was kept apart",
    "reward": "raw reward of the response; empty where the play failed",
    "rewards": "raw reward of each response",
    "chosen_reward": "raw reward of the better response",
    "rejected_reward": "raw reward of the worse response",
    "second_reward": "raw reward by a model that the search did not see",
    "rank": "rank of the response by reward within its prompt, 1 is best",
    "ranks": "rank of each response by reward",
    "chosen_rank": "rank of the better response by reward within its prompt, 1 is best",
    "rejected_rank": "rank of the worse response by reward within its prompt",
    "finish_reason": "why the response ended: stop, or length where max_tokens cut it",
    "prompt_tokens": "tokens that the model read",
    "completion_tokens": "tokens that the model wrote",
    "tokens_estimated": "whether the tokens were estimated from the texts",
    "flops": "floating-point operations of the model for this play, if its size is known",
    "reward_flops": "floating-point operations of the reward model for this play",
    "seed": "random seed of the play",
    "error": "why the play failed; empty where it was scored",
    "recipe": "name of the recipe that made the row",
}
"""Column -> its meaning; of the same name in several configurations the same."""
LONGEST = 300  # characters of a text in the example


def described_columns(folder: Path, names: Iterable[str]) -> list[dict[str, str]]:
    """Return name, type, meaning and configurations of every column.

    Args:
        folder: with a folder of parquet files for each configuration.
        names: the configurations, in the order in which their columns are listed.
    """
    found: dict[str, tuple[pa.DataType, list[str]]] = {}
    for name in names:
        for column in pq.read_schema(_first_file(folder / name)):
            found.setdefault(column.name, (column.type, []))[1].append(name)
    return [
        {
            "name": column,
            "type": _type(kind),
            "meaning": COLUMNS.get(column, ""),
            "configurations": ", ".join(where),
        }
        for column, (kind, where) in found.items()
    ]


def example_row(folder: Path) -> str:
    """Return the first row of a configuration as JSON, long texts cut; "" where it has none."""
    for batch in pq.ParquetFile(_first_file(folder)).iter_batches(batch_size=1):
        row = map_leaves(_cut, batch.to_pylist()[0])
        text = json.dumps(row, ensure_ascii=False, indent=2, default=str)
        # nothing in it may end the block, begin a comment or change the direction of the text
        shown = text.replace("<", "\\u003c")
        return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in shown)
    return ""


def _first_file(folder: Path) -> Path:
    return min(folder.glob("*.parquet"))


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]} ... ({len(value):,} characters)"
    return value


def _type(kind: pa.DataType) -> str:
    if kind == MESSAGES or (pa.types.is_list(kind) and not pa.types.is_primitive(kind.value_type)):
        inner = kind.value_type
        if pa.types.is_string(inner):
            return "list of texts"
        return "messages" if not pa.types.is_list(inner) else "list of messages"
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}s"
    names = {pa.int64(): "integer", pa.float64(): "number", pa.bool_(): "true or false"}
    return names.get(kind, "text")
