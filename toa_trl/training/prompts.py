"""Prompts of a run, for trainers that generate what they learn from."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toa_trl.data.tables import ROLLOUTS
from toa_trl.report.audit import FILE, read_audit
from toa_trl.sampling.run_file import FILE as RUN_FILE

logger = logging.getLogger(__name__)
ONLINE = ("GRPO", "RLOO")
"""Methods whose trainers generate what they learn from."""
COLUMNS = ("prompt", "prompt_id", "metadata")
"""Columns of rollouts that are read; `metadata` is in the first row of each prompt alone."""


def names_of(script: Any, mixture: Any) -> list[str]:
    """Return the names of the data sets of a training.

    Args:
        script: TRL's ScriptArguments.
        mixture: TRL's DatasetMixtureConfig.
    """
    return [script.dataset_name] if script.dataset_name else [p.path for p in mixture.datasets]


def run_of(name: str) -> Path | None:
    """Return the folder of the run that a data set is, or is a part of; None for any other."""
    folder = Path(name)
    for run in (folder, folder.parent):
        if folder.is_dir() and ((run / "journal.sqlite").is_file() or (run / RUN_FILE).is_file()):
            return run
    return None


def reading_options(name: str) -> dict[str, Any]:
    """Return arguments of load_dataset with which it reads the prompts of rollouts alone.

    The responses of a large run would fill the cache.
    """
    if Path(name).name != "rollouts" or run_of(name) is None:
        return {}
    from pyarrow import compute

    return {"columns": [*COLUMNS], "filters": compute.field("metadata").is_valid()}


def one_row_per_prompt(rows: Any) -> Any:
    """Return rollouts with one row per prompt; any other rows as they are.

    Args:
        rows: datasets.Dataset or IterableDataset.
    """
    if not {*COLUMNS, "play"} <= set(rows.column_names or ()):
        return rows
    first = rows.filter(lambda metadata: metadata is not None, input_columns=["metadata"])
    return first.remove_columns([*({*ROLLOUTS.names} - {*COLUMNS}) & {*rows.column_names}])


def without_overlaps(rows: Any, names: Iterable[str]) -> Any:
    """Return rows without the prompts that overlap with an evaluation set, by audits of their runs.

    `sft` and `dpo` of a run do not have them either.

    Args:
        rows: datasets.Dataset or IterableDataset.
        names: of the data sets that the rows come from.
    """
    left_out = set[str]()
    for name in names:
        run = run_of(name)
        found = read_audit(run).contamination if run and (run / FILE).is_file() else None
        left_out.update(found.prompt_ids if found else ())
    if not left_out or "prompt_id" not in (rows.column_names or ()):
        return rows
    logger.warning("%d prompts are left out: they overlap with an evaluation set", len(left_out))
    return rows.filter(lambda name: name not in left_out, input_columns=["prompt_id"])
