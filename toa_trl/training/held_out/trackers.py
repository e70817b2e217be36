"""Example responses in the trackers that can show a table or a text."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from toa_trl.utils.escape import for_markdown

NAME = "held_out/examples"
WITH_TABLES = ("wandb", "trackio")


def log_examples(trainer: Any, step: int, examples: Sequence[Mapping[str, Any]]) -> None:
    """Log example responses; called in the main process."""
    if not examples:
        return
    for name in WITH_TABLES:
        if name not in trainer.args.report_to:
            continue
        import pandas as pd

        tracker = import_module(name)
        if name != "wandb" or tracker.run is not None:
            tracker.log({NAME: tracker.Table(dataframe=pd.DataFrame(examples))})
    for callback in trainer.callback_handler.callbacks:
        writer = getattr(callback, "tb_writer", None)
        if writer is not None:
            writer.add_text(NAME, _as_markdown(examples), step)


def _as_markdown(examples: Sequence[Mapping[str, Any]]) -> str:
    columns = [name for name in examples[0] if any(one[name] is not None for one in examples)]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for example in examples:
        cells = [for_markdown(str(example[name])) for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
