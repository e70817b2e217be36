"""Training data: a dataset or a mixture, of a run, a folder or the Hub, with its checks."""

import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.hub.lineage import FILE, read_lineage
from toa_trl.training.held_out import split
from toa_trl.training.prompts import one_row_per_prompt, reading_options, without_overlaps
from toa_trl.training.rows import MESSAGES, check_rows, kind_of

# kind of dataset -> sets of columns, any of which is enough; the kind is also its folder in a run
FORMATS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("prompt", "completion"), ("messages",), ("text",), ("conversations",), ("input_ids",)),
    "dpo": (("chosen", "rejected"),),
    "rollouts": (("prompt",),),
}
UNPAIRED = ("prompt", "completion", "label")  # KTO accepts it too
HELD_OUT = "_held_out"  # a column that is removed again
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The rows of a training, and where they come from."""

    train: Any  # datasets.Dataset or IterableDataset
    test: Any  # None without evaluation
    sources: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """Of each dataset {dataset, fraction, and its lineage if it has one}."""


def load_training_data(
    kind: str,
    script: Any,
    training: Any,
    mixture: Any,
    further_formats: Sequence[tuple[str, ...]] = (),
) -> TrainingData:
    """Load the train split, and with evaluation the test split, of --dataset_name or `datasets`.

    With `test_split_size` the train split is divided by prompt, and the test split is not read.

    Args:
        kind: "sft", "dpo" or "rollouts"; of a run's folder, the folder of that name in it is
            loaded. Of rollouts, one row per prompt is returned.
        script: TRL's ScriptArguments.
        training: configuration of the trainer.
        mixture: TRL's DatasetMixtureConfig, with `test_split_size`, which counts for --dataset_name
            too; the paths of its parts are replaced.
        further_formats: sets of columns that are accepted besides those of the kind.

    Raises:
        ConfigError: the dataset or split is missing, has another format, or no usable rows, or
            cannot be divided.
    """
    from transformers import set_seed

    split.check_size(mixture.test_split_size)

    if script.dataset_name and mixture.datasets:
        raise ConfigError(
            "dataset_name and datasets: both are given; name one dataset, or a mixture"
        )
    if not script.dataset_name and not mixture.datasets:
        raise ConfigError(
            f"dataset_name: the key is missing; name a run's folder, its {kind} folder, or a "
            "dataset"
        )
    formats = [*FORMATS[kind], *further_formats]
    if kind == "sft":
        formats.append((training.dataset_text_field,))
    if mixture.datasets:
        sources = [(part.path, part.fraction) for part in mixture.datasets]
    else:
        sources = [(script.dataset_name, None)]
    place = script.dataset_name or "datasets"
    # TRL splits a mixture with numpy's generator: every process, and a resumed run, must agree
    set_seed(training.seed)
    test = None
    with training.main_process_first(desc="loading the data"):
        splits = _load_splits(kind, script, mixture, formats)
        train = _train_rows(place, splits, script.dataset_train_split, formats, training, mixture)
        if mixture.test_split_size is not None:
            train, test = _divided(place, train)
        elif training.eval_strategy != "no":
            test = usable_rows(place, splits, script.dataset_test_split, formats)
        if kind == "rollouts":
            names = [str(name) for name, _ in sources]
            train = without_overlaps(train, names)
            test = None if test is None else without_overlaps(test, names)
    described = [
        {"dataset": name, "fraction": fraction, **read_lineage(name)} for name, fraction in sources
    ]
    return TrainingData(train, test, described)


def _train_rows(
    place: str,
    splits: Mapping[str, Any],
    name: str,
    formats: Sequence[tuple[str, ...]],
    training: Any,
    mixture: Any,
) -> Any:
    """Return the usable rows, with a column that says which are held out if some are to be."""
    from datasets import Dataset

    size = mixture.test_split_size
    if size is None or name not in splits:
        return usable_rows(place, splits, name, formats)
    rows = splits[name]
    if not isinstance(rows, Dataset):
        raise ConfigError(
            f"{split.OPTION}: a stream cannot be divided by prompt; leave streaming out, or name "
            "a dataset with a test split"
        )
    if not len(rows):
        return usable_rows(place, splits, name, formats)
    text_column = getattr(training, "dataset_text_field", "text")
    # before usable_rows, which may drop the prompt
    flags = split.held_out_rows(place, rows, size, training.seed, text_column)
    return usable_rows(place, {name: rows.add_column(HELD_OUT, flags)}, name, formats)


def _divided(place: str, rows: Any) -> tuple[Any, Any]:
    """Return the training rows and the held-out rows."""
    flags = rows[HELD_OUT]
    parts = []
    for held_out in (False, True):
        numbers = [number for number, flag in enumerate(flags) if flag is held_out]
        if not numbers:
            part = "held-out" if held_out else "training"
            raise ConfigError(f"{split.OPTION}: no {part} row of {place} is usable")
        parts.append(rows.select(numbers).remove_columns(HELD_OUT))
    return parts[0], parts[1]


def _load_splits(
    kind: str, script: Any, mixture: Any, formats: Sequence[tuple[str, ...]]
) -> Mapping[str, Any]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from trl import get_dataset

    unreadable = (OSError, ValueError, TypeError, StopIteration, ZeroDivisionError)
    try:
        if not mixture.datasets:
            folder = data_folder(script.dataset_name, kind)
            splits: Mapping[str, Any] = load_dataset(
                folder,
                name=script.dataset_config,
                streaming=script.dataset_streaming,
                **(reading_options(folder) if kind == "rollouts" else {}),
            )
            return splits
        for part in mixture.datasets:
            part.path = data_folder(part.path, kind)
            rows = load_dataset(
                part.path,
                part.name,
                split=part.split,
                data_dir=part.data_dir,
                data_files=part.data_files,
                streaming=mixture.streaming,
            )
            if part.columns is not None:
                rows = rows.select_columns(part.columns)
            # checked before they are mixed, which fills missing columns with None
            usable_rows(part.path, {part.split: rows}, part.split, formats)
        # TRL would divide it by row
        mixed: Mapping[str, Any] = get_dataset(replace(mixture, test_split_size=None))
        return mixed
    except ConfigError:
        raise
    except (*unreadable, DatasetGenerationError) as error:
        key = "datasets" if mixture.datasets else f"dataset_name: {script.dataset_name}"
        # datasets raises an empty StopIteration for files without rows
        reason = " ".join(str(error).split()) or "its files hold no rows"
        raise ConfigError(f"{key} could not be read: {reason}") from error


def data_folder(name: str, kind: str) -> str:
    """Return the folder of one kind of data in a run's folder; any other name as it is."""
    run = Path(name)
    is_run = (run / "journal.sqlite").is_file() or (run / FILE).is_file()
    return str(run / kind) if is_run and (run / kind).is_dir() else name


def usable_rows(
    place: str, splits: Mapping[str, Any], name: str, formats: Sequence[tuple[str, ...]]
) -> Any:
    """Return a split without the rows and columns from which nothing can be learned.

    Args:
        place: what error messages begin with.
        splits: name -> datasets.Dataset or IterableDataset.
        name: of the split.
        formats: sets of columns, any of which is enough.

    Raises:
        ConfigError: the split is missing, has another format, or no usable rows.
    """
    from datasets import Dataset

    if name not in splits:
        raise ConfigError(f"{place}: there is no split {name!r}, only {', '.join(splits)}")
    rows = one_row_per_prompt(splits[name]) if ("prompt",) in formats else splits[name]
    columns = _columns_of(place, rows.column_names or [], formats)
    first = next(iter(rows), None)
    if first is None:
        raise ConfigError(f"{place}: the split {name!r} has no rows")
    if "prompt" in first and "prompt" not in columns and _contain_prompt(columns, first):
        # TRL would take a prompt for one half of prompt and completion
        rows = rows.remove_columns("prompt")
        first = {column: value for column, value in first.items() if column != "prompt"}
    checked = dict.fromkeys([*(["prompt"] if "prompt" in first else []), *columns])
    rows = check_rows(place, rows, [*checked])
    if "rejected" not in columns:
        return rows
    kept = rows.filter(operator.ne, input_columns=["chosen", "rejected"])
    if isinstance(rows, Dataset) and len(kept) < len(rows):
        logger.warning(
            "%s: dropped %d of %d rows: chosen equals rejected",
            *(place, len(rows) - len(kept), len(rows)),
        )
        if not len(kept):
            raise ConfigError(
                f"{place}: in every row of {name!r} chosen equals rejected: there is nothing to "
                "learn"
            )
    return kept


def _columns_of(
    place: str, present: Sequence[str], formats: Sequence[tuple[str, ...]]
) -> tuple[str, ...]:
    for columns in formats:
        if set(columns) <= set(present):
            return columns
    wanted = ", or ".join(dict.fromkeys(" and ".join(columns) for columns in formats))
    remedy = "; on the Hub --dataset_config names another configuration"
    raise ConfigError(
        f"{place}: the columns {wanted} are needed; there are: {', '.join(present)}"
        f"{'' if Path(place).exists() else remedy}"
    )


def _contain_prompt(columns: Sequence[str], row: Mapping[str, Any]) -> bool:
    """Whether the columns repeat the prompt: texts do, and conversations that a user begins."""
    if "rejected" not in columns:
        return True
    conversations = [row[name] for name in columns]
    return all(
        kind_of(value) == MESSAGES and value[0].get("role") != "assistant"
        for value in conversations
    )
