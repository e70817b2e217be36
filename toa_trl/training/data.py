"""The rows to learn from: one data set or a mixture, of a run, a folder or the Hub; checked before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toa_trl.errors import ConfigError
from toa_trl.hub.lineage import FILE, read_lineage

# kind of data -> sets of columns, any of which will do; the kind is the name of its folder in a run, too
FORMATS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("prompt", "completion"), ("messages",), ("text",), ("conversations",), ("input_ids",)),
    "dpo": (("chosen", "rejected"),),
}
UNPAIRED = ("prompt", "completion", "label")  # what KTO takes as well
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """What is trained on, and where it comes from."""

    train: Any
    test: Any  # None where nothing is evaluated
    sources: Sequence[Mapping[str, Any]] = field(
        default_factory=list
    )  # {dataset, fraction, and its lineage, if known}


def load_training_data(
    kind: str,
    script: Any,
    training: Any,
    mixture: Any,
    get_dataset: Callable[[Any], Any],
    *further: tuple[str, ...],
) -> Data:
    """The train and, where one is evaluated, the test split of --dataset_name, or of the mixture `datasets`.

    Args:
        kind: "sft" or "dpo": of a run's folder, the folder of that name in it is taken.
        script: TRL's ScriptArguments.
        training: the trainer's configuration.
        mixture: TRL's DatasetMixtureConfig.
        get_dataset: TRL's, which loads a mixture.
        further: sets of columns that will do as well.

    Raises:
        ConfigError: no such data set or split, another format, no rows, or none that can be learned from.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from transformers import set_seed

    if script.dataset_name and mixture.datasets:
        raise ConfigError(
            "dataset_name and datasets: both are given; name one data set, or a mixture"
        )
    if not script.dataset_name and not mixture.datasets:
        raise ConfigError(
            f"dataset_name: the key is missing; name a run's folder, its {kind} folder, or a data set"
        )
    parts = [(part.path, part.fraction) for part in mixture.datasets] or [
        (script.dataset_name, None)
    ]
    formats = (*FORMATS[kind], *further)
    if kind == "sft":
        formats = (*formats, (training.dataset_text_field,))
    place = script.dataset_name or "datasets"
    set_seed(
        training.seed
    )  # TRL splits a mixture by numpy's: one split for all processes, and after a resume
    with training.main_process_first(desc="loading the data"):
        try:
            for part in mixture.datasets:
                part.path = folder_of(part.path, kind)
                options = {
                    "data_dir": part.data_dir,
                    "data_files": part.data_files,
                    "streaming": mixture.streaming,
                }
                rows = load_dataset(part.path, part.name, split=part.split, **options)
                # each by itself: in the mixture, what one lacks is filled with None
                _checked(
                    part.path,
                    {
                        part.split: rows
                        if part.columns is None
                        else rows.select_columns(part.columns)
                    },
                    part.split,
                    formats,
                )
            if mixture.datasets:
                dataset = get_dataset(mixture)
            else:
                name = folder_of(script.dataset_name, kind)
                dataset = load_dataset(
                    name, name=script.dataset_config, streaming=script.dataset_streaming
                )
        except ConfigError:
            raise
        except (
            OSError,
            ValueError,
            TypeError,
            StopIteration,
            ZeroDivisionError,
            DatasetGenerationError,
        ) as error:
            key = "datasets" if mixture.datasets else f"dataset_name: {script.dataset_name}"
            why = (
                " ".join(str(error).split()) or "its files hold no rows"
            )  # StopIteration, of datasets
            raise ConfigError(f"{key} could not be read: {why}") from error
        train = _checked(place, dataset, script.dataset_train_split, formats)
        test = None
        if training.eval_strategy != "no":
            test = _checked(place, dataset, script.dataset_test_split, formats)
    sources = [
        {"dataset": name, "fraction": fraction, **read_lineage(name)} for name, fraction in parts
    ]
    return Data(train, test, sources)


def folder_of(name: str, kind: str) -> str:
    """Of a run's folder the one with this kind of data; anything else as it is."""
    run = Path(name)
    is_run = any((run / file).is_file() for file in ("journal.sqlite", FILE))
    return str(run / kind) if is_run and (run / kind).is_dir() else name


def _checked(place: str, dataset: Any, name: str, formats: Sequence[tuple[str, ...]]) -> Any:
    """The split, without rows that cannot teach anything."""
    if name not in dataset:
        raise ConfigError(f"{place}: there is no split {name!r}, only {', '.join(dataset)}")
    rows = dataset[name]
    found = rows.column_names or []
    columns = next((needed for needed in formats if set(needed) <= set(found)), None)
    if columns is None:
        wanted = ", or ".join(dict.fromkeys(" and ".join(needed) for needed in formats))
        config = (
            "; on the Hub --dataset_config names another configuration"
            if not Path(place).exists()
            else ""
        )
        raise ConfigError(
            f"{place}: the columns {wanted} are needed; there are: {', '.join(found)}{config}"
        )
    first = next(iter(rows), None)
    if first is None:
        raise ConfigError(f"{place}: the split {name!r} has no rows")
    if "prompt" in found and "prompt" not in columns and _is_in_all(columns, first):
        rows = rows.remove_columns("prompt")  # TRL would take it for one half of prompt-completion
        first = {name: value for name, value in first.items() if name != "prompt"}
    _check_row(place, first, columns)
    if "rejected" not in columns:
        return rows
    kept = rows.filter(_differ, input_columns=["chosen", "rejected"])
    if hasattr(rows, "__len__") and len(kept) < len(rows):
        logger.warning(
            "%s: %d of %d rows are left out: chosen equals rejected",
            place,
            len(rows) - len(kept),
            len(rows),
        )
        if not len(kept):
            raise ConfigError(
                f"{place}: in every row of {name!r} chosen equals rejected: there is nothing to learn"
            )
    return kept


def _differ(chosen: Any, rejected: Any) -> bool:
    return bool(chosen != rejected)


def _is_in_all(columns: Sequence[str], row: Mapping[str, Any]) -> bool:
    """Whether the columns have the prompt in them: texts and conversations that begin with the user have."""
    if "rejected" not in columns:
        return True
    return all(
        _kind(row[name]) == "a list of messages" and row[name][0].get("role") != "assistant"
        for name in columns
    )


def _check_row(place: str, row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Raises:
    ConfigError: its columns are not all texts, or all lists of messages.
    """
    kinds = {
        name: _kind(row[name])
        for name in ("prompt", *columns)
        if name in row and name not in ("label", "input_ids")
    }
    if None in kinds.values() or len(set(kinds.values())) > 1:
        said = ", ".join(
            f"{name} is {kind or f'{row[name]!r:.60}'}" for name, kind in kinds.items()
        )
        raise ConfigError(
            f"{place}: all texts, or all lists of {{role, content}} are needed; in the first row {said}"
        )


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "a text"
    messages = isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    return "a list of messages" if messages else None
