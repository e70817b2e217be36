"""How many tokens, steps and FLOPs a training takes: arithmetic alone, from the lengths of its sequences."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lengths(row: Mapping[str, Any], tokenizer: Any, text_field: str = "text") -> list[int]:
    """Tokens of the sequences that TRL makes of a row: one, or of a pair two.

    Args:
        row: in a format of TRL's.
        tokenizer: of the model; of conversations its chat template is filled.
        text_field: the column of plain text.
    """
    if "input_ids" in row:
        return [len(row["input_ids"])]
    wanted: list[tuple[str, ...]]
    if "rejected" in row:
        wanted = [("prompt", "chosen"), ("prompt", "rejected")]
    else:
        wanted = [
            next(
                each
                for each in (("prompt", "completion"), ("messages",), (text_field,))
                if each[-1] in row
            )
        ]
    sequences = []
    for columns in wanted:
        parts = [row[column] for column in columns if column in row]
        if isinstance(parts[0], str):
            sequences.append(len(tokenizer("".join(parts)).input_ids) + 1)  # TRL adds the end
        else:
            messages = [message for part in parts for message in part]
            sequences.append(len(tokenizer.apply_chat_template(messages, return_dict=False)))
    return sequences


def padded_tokens(rows: Sequence[Sequence[int]], batch_size: int, seed: int = 0) -> int:
    """Tokens with their padding, where batches of rows in random order are padded to their longest sequence.

    Args:
        rows: the lengths of each row's sequences: one, or of a pair two.
        batch_size: rows of a batch.
        seed: of the order.
    """
    order = list(rows)
    random.Random(seed).shuffle(order)
    batches = (order[at : at + batch_size] for at in range(0, len(order), batch_size))
    return sum(
        max(length for row in batch for length in row) * sum(len(row) for row in batch)
        for batch in batches
        if batch
    )


def training_flops(
    rows: Sequence[Sequence[int]],
    forward: Callable[[int], float],
    *,
    frozen: bool,
    reference_passes: float = 0.0,
) -> float:
    """FLOPs of one epoch: a backward pass costs two forward ones, and one where the weights are frozen (LoRA).

    What gradient checkpointing computes again is not counted, as model FLOPs utilisation does not count it either.

    Args:
        rows: as of `padded_tokens`.
        forward: FLOPs of a forward pass over so many tokens, e.g. `toa_trl.models.flops.Flops`.
        frozen: the weights are.
        reference_passes: forward passes of a reference model for each row.
    """
    passes = (2.0 if frozen else 3.0) + reference_passes
    return passes * sum(forward(length) for row in rows for length in row)


def num_steps(num_rows: int, global_batch: int, epochs: float, max_steps: int = -1) -> int:
    """Optimizer steps, as the Trainer counts them: the last batch of an epoch may be smaller."""
    return max_steps if max_steps > 0 else math.ceil(epochs * math.ceil(num_rows / global_batch))
