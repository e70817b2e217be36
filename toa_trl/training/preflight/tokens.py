"""The tokens that TRL's trainers make of a row, and which of them are learned.

The same steps as in the `_prepare_dataset` of each trainer, without a trainer and so without a
model; tests/training/preflight/test_tokens.py compares them with TRL's own.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from toa_trl.training.prompts import ONLINE
from toa_trl.training.rows import MESSAGES, kind_of

Row = Mapping[str, Any]
APPENDED = ("ORPO", "SimPO")  # methods that append the eos themselves


@dataclass(frozen=True)
class Tokens:
    """One sequence that is trained on, before max_length cuts it."""

    column: str
    """Column of the response."""
    ids: list[int]
    learned: list[bool]
    """For each token whether it is learned. Of a reward model: where the score is read."""
    lost: list[int] = field(default_factory=list)
    """End of the prompt that is not part of the sequence, as the template shows it only there."""


def tokens_of(row: Row, tokenizer: Any, training: Any, method: str) -> list[Tokens]:
    """Return the sequences of a row: one, or two of a pair.

    Raises:
        TemplateError: the chat template refuses the row.
    """
    from trl.data_utils import maybe_convert_to_chatml, maybe_extract_prompt

    row = maybe_convert_to_chatml(copy.deepcopy(dict(row)))  # it changes the messages
    if "input_ids" in row:
        mask = row.get("labels") or row.get("completion_mask")
        unlearned = -100 if row.get("labels") else 0
        learned = [value != unlearned for value in mask or row["input_ids"]]
        return [Tokens("input_ids", row["input_ids"], learned if mask else [True] * len(learned))]
    if method in ONLINE:
        prompt = _tokenized(tokenizer, row, row["prompt"], add_generation_prompt=True)
        return [Tokens("prompt", prompt, [False] * len(prompt))]
    if method == "reward modeling":
        return [_scored(row, name, tokenizer) for name in ("chosen", "rejected")]
    if "rejected" in row:
        row = maybe_extract_prompt(row)
        return [_answered(row, name, tokenizer, True, method) for name in ("chosen", "rejected")]
    if "prompt" in row:
        only = getattr(training, "completion_only_loss", None) in (None, True)
        answered = _answered(row, "completion", tokenizer, only or method != "SFT", method)
        return [_for_assistant(answered, row, "completion", tokenizer, training)]
    text_field = getattr(training, "dataset_text_field", "text")
    name = "messages" if "messages" in row else text_field
    value = row[name] if name == "messages" else _with_end(row[name], tokenizer)
    ids = _tokenized(tokenizer, row, value)
    return [_for_assistant(Tokens(name, ids, [True] * len(ids)), row, name, tokenizer, training)]


def _tokenized(tokenizer: Any, row: Row, value: Any, **options: Any) -> list[int]:
    if isinstance(value, str):
        ids: list[int] = tokenizer(text=value)["input_ids"]
        return ids
    given = _template_options(row) | options
    shown: list[int] = tokenizer.apply_chat_template(value, return_dict=True, **given)["input_ids"]
    return shown


def _template_options(row: Row) -> dict[str, Any]:
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"tools": tools, **(row.get("chat_template_kwargs") or {})}


def _with_end(text: str, tokenizer: Any) -> str:
    """Return a text that ends with the eos, which TRL appends to what is no conversation."""
    eos = tokenizer.eos_token or ""
    return text if text.endswith(eos) else text + eos


def _answered(row: Row, name: str, tokenizer: Any, only: bool, method: str) -> Tokens:
    """Return prompt and response; with `only` the response alone is learned."""
    prompt, response = row["prompt"], row[name]
    is_text = isinstance(response, str)
    if is_text:
        response = _with_end(response, tokenizer)
    options = {} if is_text else {"add_generation_prompt": True}
    before = _tokenized(tokenizer, row, prompt, **options)
    ids = _tokenized(tokenizer, row, prompt + response)
    if method in APPENDED and tokenizer.eos_token_id in ids[-2:]:
        # whitespace that the template puts after the eos is left out, see `with_ends`
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(before, ids, strict=False))
    start = sum(1 for _ in same)
    learned = [not only or at >= start for at in range(len(ids))]
    return Tokens(name, ids, learned, before[start:])


def _scored(row: Row, name: str, tokenizer: Any) -> Tokens:
    value = row["prompt"] + row[name] if "prompt" in row else row[name]
    ids = _tokenized(
        tokenizer, row, _with_end(value, tokenizer) if isinstance(value, str) else value
    )
    return Tokens(name, ids, [at == len(ids) - 1 for at in range(len(ids))])


def _for_assistant(tokens: Tokens, row: Row, name: str, tokenizer: Any, training: Any) -> Tokens:
    """Return the sequence with `assistant_only_loss` applied."""
    if not getattr(training, "assistant_only_loss", False) or kind_of(row[name]) != MESSAGES:
        return tokens
    from trl.chat_template_utils import get_training_chat_template

    template = tokenizer.chat_template
    if "{% generation" not in template and "{%- generation" not in template:
        template = get_training_chat_template(tokenizer)
    whole = row.get("prompt", []) + row[name]
    shown = tokenizer.apply_chat_template(
        whole,
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **_template_options(row),
    )
    mask = shown["assistant_masks"]
    learned = [bool(a) and b for a, b in zip(mask, tokens.learned, strict=True)]
    return Tokens(tokens.column, shown["input_ids"], learned, tokens.lost)
