"""What max_length cuts off: responses without an end, and pairs that become equal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from toa_trl.training.findings import Finding
from toa_trl.training.templates import end_of_turn

Tokens = Any  # numpy array of integers
# columns of the rows that TRL's trainers make, the first that a dataset has
LAYOUTS = (
    ("prompt_ids", "chosen_ids", "rejected_ids"),  # DPO: cut by the collator
    ("prompt_ids", "completion_ids"),  # KTO: cut by the collator
    ("chosen_ids", "rejected_ids"),  # rewards: longer rows are dropped
    ("chosen_input_ids", "rejected_input_ids", "chosen_labels", "rejected_labels"),  # CPO, ORPO
    ("input_ids", "seq_lengths", "labels"),  # SFT, packed
    ("input_ids",),  # SFT
)


@dataclass
class Cuts:
    """What max_length did to a dataset."""

    num_responses: int = 0
    num_cut: int = 0
    """Responses whose end is missing."""
    equal: list[int] = field(default_factory=list)
    """Rows whose chosen and rejected became equal."""
    empty: list[int] = field(default_factory=list)
    """Rows of which no response is left; ORPO and SimPO would get NaN from one."""


@dataclass(frozen=True)
class Ends:
    """How a complete response ends, in tokens."""

    tokens: Set[int]
    num_last: int = 1
    """Among how many of the last tokens one of them is."""

    def are_in(self, sequence: Tokens) -> bool:
        """Return whether a sequence is complete; also true where no end is known."""
        return not self.tokens or bool(self.tokens & set(sequence[-self.num_last :].tolist()))


def ends_of(tokenizer: Any) -> Ends:
    """Return the eos, and what the chat template puts after a response."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    eos = getattr(tokenizer, "eos_token_id", None)
    tokens = set() if eos is None else {eos}
    tail = end_of_turn(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    if not tail:
        return Ends(tokens)
    if not tokens & set(tail):
        tokens.add(tail[0])
    return Ends(tokens, len(tail))


def cuts_of(rows: Any, args: Any, ends: Ends) -> Cuts:
    """Count what max_length cuts off.

    Args:
        rows: datasets.Dataset as a trainer of TRL made it.
        args: configuration of the trainer.
        ends: of a complete response.
    """
    cuts = Cuts()
    columns = next((names for names in LAYOUTS if set(names) <= set(rows.column_names)), None)
    max_length = args.max_length
    packs_whole = getattr(args, "packing_strategy", "bfd") == "bfd"
    if columns is None or max_length is None or ("seq_lengths" in columns and not packs_whole):
        return cuts
    keeps_end = getattr(args, "truncation_mode", "keep_start") == "keep_end"

    def is_cut(sequence: Tokens) -> bool:
        return len(sequence) >= max_length and not ends.are_in(sequence)

    for number, row in enumerate(_arrays(rows, columns)):
        if columns[0] == "prompt_ids":
            prompt, *responses = row
            kept = (
                slice(-max_length, None) if keeps_end else slice(max(0, max_length - len(prompt)))
            )
            whole = [len(response[kept]) == len(response) for response in responses]
            cut = [] if keeps_end else [not is_whole for is_whole in whole]
            compared = [response[kept] for response in responses]
        elif columns[0] == "chosen_ids":
            cut, compared = [], row
        elif columns[0] == "chosen_input_ids":
            cut, compared = [is_cut(sequence) for sequence in row[:2]], row[:2]
            if any((labels == -100).all() for labels in row[2:]):
                cuts.empty.append(number)
                continue
        elif "seq_lengths" in columns:
            ids, lengths, labels = row
            bounds = pairwise([0, *np.cumsum(lengths)])
            learned = [slice(*bound) for bound in bounds if (labels[slice(*bound)] != -100).any()]
            cut, compared = [is_cut(ids[part]) for part in learned], []
        else:
            cut, compared = [is_cut(row[0])], []
        if len(compared) == 2 and np.array_equal(*compared):
            cuts.equal.append(number)
            continue
        cuts.num_responses += max(len(cut), len(compared))
        cuts.num_cut += sum(cut)
    return cuts


def _arrays(rows: Any, columns: Sequence[str]) -> Iterator[list[Tokens]]:
    """Yield the lists of each row as numpy arrays, without a Python object for each token."""
    for batch in rows.select_columns([*columns]).with_format("arrow").iter(batch_size=1000):
        yield from map(list, zip(*(_split(batch[name]) for name in columns), strict=True))


def _split(column: Any) -> Iterator[Tokens]:
    lists = column.combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    bounds = lists.offsets.to_numpy()
    return (flat[start:end] for start, end in pairwise(bounds - bounds[0]))


def max_tokens_findings(
    sources: Iterable[Mapping[str, Any]], max_length: int | None
) -> Iterator[Finding]:
    """Yield a warning for each source whose responses may be longer than what is trained on.

    Args:
        sources: of the data, with their lineage.
        max_length: of the training, in tokens.
    """
    for source in sources:
        max_tokens = source.get("max_tokens")
        if max_length and isinstance(max_tokens, int) and max_tokens > max_length:
            yield Finding(
                "warning",
                "max_tokens",
                f"{source.get('dataset')} was sampled with max_tokens {max_tokens}, and max_length "
                f"is {max_length}: longer responses are cut",
            )
