"""What `toa-trl check` prints: every finding, and one row with what is learned of it."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from toa_trl.training.findings import Finding
from toa_trl.training.preflight.rows import Checked
from toa_trl.utils.escape import for_terminal

STYLES = {"error": "bold red", "warning": "yellow", "fine": "green"}
LEARNED = "green"
OPEN, CLOSE = "[[", "]]"  # around learned tokens, where there is no colour
MAX_SHOWN = 1200  # characters of a stretch


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print every finding, errors first, and how many there are of each level."""
    order = [*STYLES]
    for finding in sorted(findings, key=lambda finding: order.index(finding.level)):
        line = Text(f"{finding.level:8}", STYLES[finding.level])
        line.append(for_terminal(f"{finding.check}: {finding}"), "default")
        console.print(line, soft_wrap=not console.is_terminal)
    levels = [finding.level for finding in findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    console.print(f"{errors} errors, {warnings} warnings", soft_wrap=True)


def print_row(
    rows: Sequence[Checked], tokenizer: Any, max_length: int | None, console: Console
) -> None:
    """Print the sequences of one row, the first that is not cut, and what is learned of them."""
    if not rows:
        return
    whole = [row for row in rows if row.longest <= (max_length or 1)]
    colored = bool(console.color_system)
    key = "in green" if colored else f"between {OPEN} and {CLOSE}"
    for part in (whole or [*rows])[0].sequences:
        ids, learned = part.ids[:max_length], part.learned[:max_length]
        title = f"\nOne row ({part.column}): {len(ids)} tokens, {sum(learned)} learned, {key}"
        console.print(Text(title, "bold"), soft_wrap=True)
        console.print(Text.assemble(*_stretches(ids, learned, tokenizer, colored)), soft_wrap=True)


def _stretches(
    ids: Sequence[int], learned: Sequence[bool], tokenizer: Any, colored: bool
) -> Iterator[tuple[str, str]]:
    """Yield text and style of each stretch of tokens that are learned, or that are not."""
    pairs = zip(ids, learned, strict=True)
    for is_learned, group in groupby(pairs, key=lambda pair: pair[1]):
        text = for_terminal(tokenizer.decode([token for token, _ in group]))
        if len(text) > MAX_SHOWN:
            half = MAX_SHOWN // 2
            text = f"{text[:half]} ... {len(text) - MAX_SHOWN:,} characters ... {text[-half:]}"
        if is_learned and not colored:
            text = f"{OPEN}{text}{CLOSE}"
        yield text, LEARNED if is_learned else "dim"
