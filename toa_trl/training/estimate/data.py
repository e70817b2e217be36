"""Tokens, steps and FLOPs of a training on its dataset, or on rows as given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.training.data import UNPAIRED, load_training_data
from toa_trl.training.estimate.plan import SEQUENCES
from toa_trl.training.estimate.tokens import lengths, num_steps, padded_tokens, training_flops
from toa_trl.types import Flops
from toa_trl.utils.compat import peak_flops_of

MAX_GIVEN_ROWS = 100  # rows of equal length that stand for all of --num_rows


@dataclass(frozen=True)
class Rows:
    """Lengths of a dataset's sequences."""

    lengths: Sequence[Sequence[int]]  # tokens of the sequences of some rows: one, or of a pair two
    num_rows: int  # of the dataset
    source: str  # where this is from


@dataclass(frozen=True)
class Work:
    """What a training computes."""

    num_tokens: float  # of one epoch
    cut: float  # share of the rows that are longer than max_length
    filled: float  # share of what is computed that is not padding
    num_packed: int | None  # rows after packing; None without packing
    num_steps: int
    flops: float


def read_rows(recipe: str, parsed: tuple[Any, ...]) -> Rows:
    """Return the lengths of a dataset's sequences, counted on a sample of its rows.

    Args:
        recipe: such as sft.
        parsed: options of the estimate, and TRL's ScriptArguments, trainer configuration,
            ModelConfig and DatasetMixtureConfig; perhaps others after them.

    Raises:
        ConfigError: the dataset or the tokenizer cannot be read, or the dataset is a stream.
    """
    from transformers import AutoTokenizer
    from trl.data_utils import maybe_convert_to_chatml

    options, script, training, model, mixture, *_ = parsed
    if options.num_rows is not None and options.mean_tokens is not None:
        row = [options.mean_tokens] * SEQUENCES[recipe]
        given = [row] * min(options.num_rows, MAX_GIVEN_ROWS)
        return Rows(given, options.num_rows, f"{options.num_rows:,} rows as given")
    training.eval_strategy = "no"
    name = model.model_name_or_path or str(options.model_config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=model.model_revision)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    kind = "sft" if recipe == "sft" else "dpo"
    further = [UNPAIRED] if recipe == "kto" else []
    data = load_training_data(kind, script, training, mixture, further).train
    if script.dataset_streaming:
        raise ConfigError("the dataset is streamed")
    sample = data.shuffle(seed=0).select(range(min(len(data), options.num_samples)))
    text_field = vars(training).get("dataset_text_field", "text")
    counted = [lengths(maybe_convert_to_chatml(row), tokenizer, text_field) for row in sample]
    num_rows = len(data)
    if recipe == "kto" and max(map(len, counted), default=1) == 2:  # each response is a row
        num_rows, counted = 2 * num_rows, [[length] for length in chain.from_iterable(counted)]
    share = "all" if len(counted) == num_rows else f"{len(counted):,}"
    return Rows(counted, num_rows, f"{num_rows:,} rows, {share} of them tokenized")


def work_of(
    recipe: str, rows: Rows, training: Any, forward: Flops, global_batch: int, frozen: bool
) -> Work:
    """Return tokens, steps and FLOPs of a training.

    Args:
        recipe: such as sft.
        rows: of the dataset.
        training: configuration of the trainer.
        forward: FLOPs of a forward pass of the model.
        global_batch: rows of a step.
        frozen: whether the model's own weights are frozen (LoRA).
    """
    limit = training.max_length
    num_cut = sum(max(row) > limit for row in rows.lengths)
    sequences = [[min(length, limit) for length in row] for row in rows.lengths]
    scale = rows.num_rows / len(sequences)
    sampled_tokens = sum(map(sum, sequences))
    num_rows, num_packed, computed = rows.num_rows, None, 1.0
    if recipe == "sft" and training.packing:
        firsts = [row[0] for row in sequences]
        packed = packed_rows(firsts, limit, training.packing_strategy)
        filled = sampled_tokens / (packed * limit)
        num_rows = num_packed = math.ceil(packed * scale)
    else:
        padded = padded_tokens(sequences, training.per_device_train_batch_size)
        filled = sampled_tokens / padded
        computed = 1 / filled  # padding is computed too
    steps = num_steps(num_rows, global_batch, training.num_train_epochs, training.max_steps)
    epochs = steps * global_batch / num_rows
    reference_passes = 0.0
    if recipe == "dpo":
        reference_passes = 1 / epochs if training.precompute_ref_log_probs else 1.0
    elif recipe == "kto":
        # the KL term takes another completion of the batch through policy and reference
        others = 0 if training.loss_type == "apo_zero_unpaired" else 1
        each = 1 / epochs if training.precompute_ref_log_probs else 1.0
        reference_passes = others + (1 + others) * each
    epoch = training_flops(sequences, forward, frozen=frozen, reference_passes=reference_passes)
    return Work(
        num_tokens=sampled_tokens * scale,
        cut=num_cut / len(rows.lengths),
        filled=filled,
        num_packed=num_packed,
        num_steps=steps,
        flops=computed * epochs * scale * epoch,
    )


def packed_rows(sequence_lengths: Sequence[int], max_length: int, strategy: str) -> int:
    """Return the number of rows into which TRL packs sequences of these lengths."""
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    rows = Dataset.from_dict({"input_ids": [[0] * length for length in sequence_lengths]})
    return len(pack_dataset(rows, max_length, strategy))


def peak_flops(gpu: str) -> float:
    """Return the peak FLOPs per second of a GPU in dense bfloat16.

    Raises:
        ConfigError: TRL's table does not have it, or TRL has no table.
    """
    peak = peak_flops_of(gpu)
    if peak is None:
        raise ConfigError(
            f"gpu: {gpu!r} is not in TRL's table of peak FLOPs, which TRL has from 1.16 on; for "
            "example H100, H200, A100, L40S, L4, A10G"
        )
    return peak
