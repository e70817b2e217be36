"""Tokens, steps and FLOPs of a training, from the lengths of its sequences. Pure arithmetic."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from toa_trl.models.chat import ChatTemplate


def lengths(row: Mapping[str, Any], tokenizer: Any, text_field: str = "text") -> list[int]:
    """Return the tokens of each sequence that TRL makes of a row: one, or two of a pair.

    Args:
        row: in a format of TRL.
        tokenizer: of the model; conversations are put into its chat template.
        text_field: the column of plain text.
    """
    if "input_ids" in row:
        return [len(row["input_ids"])]
    wanted: list[tuple[str, ...]]
    if "rejected" in row:
        wanted = [("prompt", "chosen"), ("prompt", "rejected")]
    else:
        formats = (("prompt", "completion"), ("messages",), (text_field,))
        wanted = [next(columns for columns in formats if columns[-1] in row)]
    sequences = []
    for columns in wanted:
        parts = [row[column] for column in columns if column in row]
        if isinstance(parts[0], str):
            sequences.append(len(tokenizer("".join(parts)).input_ids) + 1)  # TRL adds the end
        else:
            messages = list(chain.from_iterable(parts))
            sequences.append(len(ChatTemplate(tokenizer).render(messages)))
    return sequences


def padded_tokens(rows: Sequence[Sequence[int]], batch_size: int) -> int:
    """Return the tokens including padding, where each batch is padded to its longest sequence.

    Args:
        rows: lengths of the sequences of each row: one, or two of a pair.
        batch_size: rows of a batch.
    """
    order = list(rows)
    random.Random(0).shuffle(order)
    num_tokens = 0
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        num_tokens += max(map(max, batch)) * sum(map(len, batch))
    return num_tokens


def training_flops(
    rows: Sequence[Sequence[int]],
    forward: Callable[[int], float],
    *,
    frozen: bool,
    reference_passes: float = 0.0,
) -> float:
    """Return the FLOPs of one epoch.

    A backward pass costs two forward passes, or one where the weights are frozen (LoRA). As in
    model FLOPs utilization, recomputation by gradient checkpointing is not counted.

    Args:
        rows: as of `padded_tokens`.
        forward: FLOPs of a forward pass over a number of tokens, such as
            `toa_trl.types.Flops`.
        frozen: whether the model's own weights are frozen.
        reference_passes: forward passes of a reference model for each row.
    """
    passes = (2.0 if frozen else 3.0) + reference_passes
    return passes * sum(map(forward, chain.from_iterable(rows)))


def num_steps(num_rows: int, global_batch: int, epochs: float, max_steps: int = -1) -> int:
    """Return the optimizer steps, as the Trainer counts them: the last batch may be smaller."""
    return max_steps if max_steps > 0 else math.ceil(epochs * math.ceil(num_rows / global_batch))
