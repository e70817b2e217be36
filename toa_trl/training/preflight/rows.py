"""What becomes of a sample of the rows: BOS, ends, reasoning, and what max_length cuts off."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from toa_trl.training.findings import Finding
from toa_trl.training.preflight.tokens import Tokens, tokens_of
from toa_trl.training.truncation import ends_of

OPENED = re.compile(r"<think>|\[THINK\]")
REASONING = re.compile(r"(?:<think>|\[THINK\])(.*?)(?:</think>|\[/THINK\])", re.DOTALL)
WHOLE = ("bfd_split", "wrapped")  # packing strategies that split long rows instead of cutting them
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Checked:
    """A row, and the sequences that are trained on."""

    row: Row
    sequences: Sequence[Tokens]
    response: Mapping[str, str]
    """Column of each sequence -> content of its last message; empty where it is none."""
    reasoning: Mapping[str, str]
    """Column of each sequence -> reasoning in its response; empty without."""

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence."""
        return max(len(part.ids) for part in self.sequences)


def checked_rows(
    rows: Sequence[Row], tokenizer: Any, training: Any, method: str
) -> tuple[list[Checked], Finding | None]:
    """Return the sequences of rows, and an error if the template refuses any of them."""
    checked: list[Checked] = []
    refused: list[int] = []
    reason = ""
    for number, row in enumerate(rows):
        try:
            sequences = tokens_of(row, tokenizer, training, method)
        except (TemplateError, TypeError) as error:
            reason = reason or str(error)
            refused.append(number)
            continue
        texts = {part.column: _response(row.get(part.column)) for part in sequences}
        response = {name: text for name, (text, _) in texts.items()}
        reasoning = {name: thought for name, (_, thought) in texts.items()}
        checked.append(Checked(row, sequences, response, reasoning))
    if not refused:
        return checked, None
    what = f"the chat template refuses {len(refused)} of {len(rows)} rows: {reason}"
    remedy = "change the roles in these rows, or name another template"
    return checked, Finding("error", "template", what, remedy)


def row_findings(
    checked: Sequence[Checked], tokenizer: Any, method: str, num_embeddings: int | None
) -> Iterator[Finding]:
    """Yield what is wrong with the tokens of rows.

    Args:
        checked: a sample of the rows.
        tokenizer: as the trainer has it.
        method: name of the method.
        num_embeddings: rows of the model's embedding; None: as many as the tokenizer has tokens.
    """
    bos = tokenizer.bos_token_id
    ends = ends_of(tokenizer).tokens
    adds_bos = bos is not None and tokenizer(text="x")["input_ids"][:1] == [bos]

    def num(condition: Callable[[Checked, Tokens], bool]) -> str:
        """Return "3 of 200 rows"; nothing if the condition holds for none."""
        count = sum(any(condition(row, part) for part in row.sequences) for row in checked)
        return f"{count} of {len(checked)} rows" if count else ""

    if rows := num(lambda row, part: bos is not None and part.ids[:2] == [bos, bos]):
        yield Finding(
            "error",
            "bos",
            f"{rows} begin with {tokenizer.bos_token!r} twice",
            "remove it from the texts, to which the tokenizer adds it, or from the chat template",
        )
    elif rows := num(lambda row, part: adds_bos and part.ids[:1] != [bos]):
        yield Finding(
            "warning",
            "bos",
            f"{rows} do not begin with {tokenizer.bos_token!r}, which the tokenizer puts before "
            "every text: the student was trained with it",
            "use the model's own chat template, or put {{ bos_token }} at the start of this one",
        )
    if num_embeddings is not None and (
        rows := num(lambda row, part: max(part.ids, default=0) >= num_embeddings)
    ):
        yield Finding(
            "error",
            "vocabulary",
            f"{rows} have tokens that the model has no embedding for: it has {num_embeddings}, "
            f"the tokenizer {len(tokenizer)}",
            "use the tokenizer of this model",
        )
    unknown = tokenizer.unk_token_id
    if unknown not in (None, tokenizer.eos_token_id) and (
        rows := num(lambda row, part: unknown in part.ids)
    ):
        yield Finding(
            "warning",
            "vocabulary",
            f"{rows} have characters for which the tokenizer has no token: they become "
            f"{tokenizer.unk_token!r}",
            "use a tokenizer that has them, or remove them from the data",
        )
    if method != "reward modeling" and (
        rows := num(lambda row, part: _never_ends(part, ends, tokenizer))
    ):
        yield Finding(
            "error",
            "mask",
            f"{rows} end with a token at which the student stops, and it is not learned: the "
            "student would never stop",
            "leave assistant_only_loss out, or put the end of the turn inside of "
            "{% generation %} in the chat template",
        )
    if rows := num(lambda row, part: not any(part.learned) and part.column != "prompt"):
        what = f"{rows} have no token that is learned"
        yield Finding("warning", "mask", what, "remove them, or change the mask")
    special = [token for token in tokenizer.all_special_tokens if token.strip()]
    if rows := num(lambda row, part: any(token in row.response[part.column] for token in special)):
        yield Finding(
            "warning",
            "special tokens",
            f"responses of {rows} contain special tokens as text, such as those that end a turn",
            "remove them from the data",
        )
    yield from _think_findings(num, tokenizer)


def length_finding(checked: Sequence[Checked], training: Any, method: str) -> Finding | None:
    """Return the share of the rows that max_length cuts or drops."""
    limit = getattr(training, "max_length", None)
    if not limit or not checked:
        return None
    longest = [row.longest for row in checked]
    packs = getattr(training, "packing", False) and method == "SFT"
    if packs and training.packing_strategy in WHOLE:
        return Finding("fine", "max_length", "packing splits long rows; nothing is cut")
    cut = sum(length > limit for length in longest)
    if method == "reward modeling":
        dropped = cut
    else:
        keeps_end = getattr(training, "truncation_mode", "keep_start") == "keep_end"
        left = slice(-limit, None) if keeps_end else slice(None, limit)
        dropped = sum(not any(any(part.learned[left]) for part in row.sequences) for row in checked)
    if not cut:
        what = f"max_length {limit} cuts no row; the longest has {max(longest)} tokens"
        return Finding("fine", "max_length", what)
    percentile = sorted(longest)[int(0.95 * (len(longest) - 1))]
    what = (
        f"max_length {limit} cuts {cut} of {len(checked)} rows ({cut / len(checked):.0%})"
        f"{f', of which {dropped} are dropped' if dropped else ''}: a cut response has no end"
    )
    remedy = (
        f"raise it (95% of the rows have at most {percentile} tokens, the longest {max(longest)}), "
        "or sample with fewer max_tokens"
    )
    return Finding("error" if dropped == len(checked) else "warning", "max_length", what, remedy)


def _think_findings(num: Callable[..., str], tokenizer: Any) -> Iterator[Finding]:
    def shown(part: Tokens) -> str:
        return str(tokenizer.decode(part.ids))

    def learned(part: Tokens) -> str:
        pairs = zip(part.ids, part.learned, strict=True)
        return str(tokenizer.decode([token for token, is_learned in pairs if is_learned]))

    def strips(row: Checked, part: Tokens) -> bool:
        thought = row.reasoning[part.column].strip()[:60]
        return bool(thought) and thought not in shown(part)

    def inserts(row: Checked, part: Tokens) -> bool:
        response = row.response[part.column]
        reasons = row.reasoning[part.column] or OPENED.search(response)
        return bool(response) and not reasons and bool(OPENED.search(learned(part)))

    def opens(row: Checked, part: Tokens) -> bool:
        return bool(OPENED.search(tokenizer.decode(part.lost)))

    if rows := num(strips):
        yield Finding(
            "warning",
            "think",
            f"the chat template drops the reasoning of {rows}: the student learns to answer "
            "without it",
            "name a template that keeps it with --chat_template_path, or remove it from the data",
        )
    elif rows := num(inserts):
        yield Finding(
            "warning",
            "think",
            f"the chat template adds an empty <think> block to the responses of {rows}, and it is "
            "learned: the student learns not to reason",
            "give responses with their reasoning, ask the student without reasoning, or use a "
            "template without the block",
        )
    elif rows := num(opens):
        yield Finding(
            "warning",
            "think",
            f"the generation prompt opens <think>, and the sequences of {rows} do not have it: "
            "the student is trained after another prompt than it is asked with",
            "name a template with --chat_template_path that renders both alike",
        )
    elif rows := num(lambda row, part: bool(part.lost)):
        yield Finding(
            "warning",
            "template",
            f"the end of the prompt is not part of the sequence in {rows}, as the template shows "
            "a prompt alone differently, or tokens merge where the response begins",
            "use a template that renders both alike, or end the prompts at the end of a token",
        )


def _never_ends(part: Tokens, ends: Set[int], tokenizer: Any) -> bool:
    """Return whether the end of the last turn is shown and not learned, while other tokens are."""
    if part.column == "prompt" or not any(part.learned):
        return False
    last = next((at for at in reversed(range(len(part.ids))) if part.ids[at] in ends), None)
    if last is None or tokenizer.decode(part.ids[last + 1 :]).strip():
        return False
    return not part.learned[last]


def _response(value: Any) -> tuple[str, str]:
    """Return the content of the last message, and the reasoning in it or beside it."""
    if not isinstance(value, list) or not value or not isinstance(value[-1], dict):
        return "", ""
    message = value[-1]
    content = message.get("content", message.get("value"))
    content = content if isinstance(content, str) else ""
    return content, message.get("reasoning_content") or "".join(REASONING.findall(content))
