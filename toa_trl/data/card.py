"""The data set card of a run: what it is, how it was made, what was dropped, how to load it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from toa_trl.types import Counts

TEMPLATE = Path(__file__).with_name("card.md.j2")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))


def write_card(
    path: Path,
    identity: Mapping[str, Any],
    counts: Counts,
    num_rows: Mapping[str, int],
    dropped: Mapping[str, Counter[str]],
    params: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write README.md.

    Args:
        path: of the card.
        identity: of the run, as in its journal.
        counts: totals of its journal.
        num_rows: of "rollouts", "sft" and "dpo".
        dropped: for "sft" and "dpo", prompts without a row, by reason.
        params: with which "sft" and "dpo" were made.
    """
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    card = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        identity=identity,
        counts=counts,
        num_rows=num_rows,
        dropped=dropped,
        params=params,
        size=next((name for limit, name in SIZES if num_rows["rollouts"] < limit), "10M<n<100M"),
        folder=path.parent.name,
    )
    path.write_text(card, encoding="utf-8")
